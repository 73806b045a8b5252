package pki

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// writeFile puts data at path by one rename of a file that is on disk, so that a crash leaves the old content or the
// new. The rename itself is made durable by syncDir.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), ignoreAbsent(os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// writeIfChanged is writeFile unless path holds data already.
func writeIfChanged(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return writeFile(path, data, mode)
}

// sweep removes what writes that a crash cut short have left. The caller holds the folder's lock.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".*.pem.*"))
	for _, name := range left {
		err = errors.Join(err, ignoreAbsent(os.Remove(name)))
	}
	if err != nil {
		return fmt.Errorf("clean certificate folder: %w", err)
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open certificate folder: %w", err)
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("sync certificate folder: %w", err)
	}
	return nil
}
