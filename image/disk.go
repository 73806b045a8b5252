package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// step is called before whatever a crash may come between. Tests put faults
// there; an error is that of what was to be done.
func (s *Store) step(what, path string) error {
	if s.faults == nil {
		return nil
	}
	return s.faults(what, path)
}

// writeJSON makes path hold v, at once and durably.
func (s *Store) writeJSON(path string, v any) error {
	if err := s.replaceJSON(path, v, true); err != nil {
		return err
	}
	return s.syncDir(filepath.Dir(path))
}

// writeQuickly makes path hold v at once, but after a power cut perhaps not, or
// in part.
func (s *Store) writeQuickly(path string, v any) error { return s.replaceJSON(path, v, false) }

func (s *Store) replaceJSON(path string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil && durable {
		if err = s.step("sync file", f.Name()); err == nil {
			err = f.Sync()
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return s.rename(f.Name(), path)
}

func (s *Store) rename(from, to string) error {
	if err := s.step("rename", to); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return os.Rename(from, to)
}

// syncDir makes what was made, renamed and removed in a directory durable.
func (s *Store) syncDir(dir string) error {
	if err := s.step("sync directory", dir); err != nil {
		return &os.PathError{Op: "sync", Path: dir, Err: err}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// syncFS writes everything of the file system that dir is on to disk. It fails where
// anything could not be written since dir was opened: who opens it before writing
// hears of all errors, also of those that somebody else was told.
func (s *Store) syncFS(dir *os.File) error {
	err := s.step("sync file system", dir.Name())
	if err == nil {
		err = unix.Syncfs(int(dir.Fd()))
	}
	if err != nil {
		return &os.PathError{Op: "sync", Path: dir.Name(), Err: err}
	}
	return nil
}
