package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is one file of a volume.
type File struct {
	Data []byte
	Mode fs.FileMode
	UID  *int64 // owner; nil: root
}

const (
	dataLink   = "..data"
	timeLayout = "..2006_01_02_15_04_05."
)

// writeFiles makes dir show exactly files, a map of relative clean paths, replacing all at once. gid, unless nil, owns
// them. It reports whether anything changed.
func writeFiles(dir string, files map[string]File, gid *int64) (changed bool, err error) {
	for name := range files {
		if err := checkPath(name); err != nil {
			return false, err
		}
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read current version: %w", err)
	}
	if old != "" && same(filepath.Join(dir, old), files) {
		return false, links(dir, files)
	}
	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format(timeLayout))
	if err != nil {
		return false, fmt.Errorf("make version: %w", err)
	}
	if err := fill(fresh, files, gid); err != nil {
		return false, errors.Join(err, os.RemoveAll(fresh))
	}
	next := filepath.Join(dir, dataLink+"_tmp")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("remove left-over link: %w", err)
	}
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return false, fmt.Errorf("link version: %w", err)
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return false, fmt.Errorf("publish version: %w", err)
	}
	if err := links(dir, files); err != nil {
		return true, err
	}
	return true, sweep(dir, filepath.Base(fresh))
}

func checkPath(name string) error {
	if name == "" || filepath.IsAbs(name) || filepath.Clean(name) != name || strings.HasPrefix(name, "..") ||
		slices.Contains(strings.Split(name, "/"), "..") {
		return fmt.Errorf("file %q: the path must be relative, below the volume, and not begin with \"..\"", name)
	}
	return nil
}

// fill writes files below a fresh directory.
func fill(dir string, files map[string]File, gid *int64) error {
	if err := own(dir, nil, gid); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		for up := filepath.Dir(path); ; up = filepath.Dir(up) {
			if _, err := os.Stat(up); err == nil {
				break
			}
			if err := os.MkdirAll(up, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			return err
		}
		mode := f.Mode.Perm()
		if gid != nil {
			mode |= 0o040
		}
		if err := own(path, f.UID, gid); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil { // not by WriteFile: umask
			return err
		}
	}
	return nil
}

func own(path string, uid, gid *int64) error {
	if uid == nil && gid == nil {
		return nil
	}
	u, g := -1, -1
	if uid != nil {
		u = int(*uid)
	}
	if gid != nil {
		g = int(*gid)
	}
	return os.Lchown(path, u, g)
}

// same reports whether the version in dir has exactly these files.
func same(dir string, files map[string]File) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := files[name]
		if !ok {
			return fs.ErrNotExist
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.Data) {
			return fs.ErrInvalid
		}
		return nil
	})
	return err == nil && n == len(files)
}

// links makes the user-visible links of the top-level names, and removes those that lead nowhere any more.
func links(dir string, files map[string]File) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if want[e.Name()] {
			delete(want, e.Name())
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes all versions but keep: the one before, and what crashes left.
func sweep(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..2") && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
