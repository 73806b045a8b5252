package logs

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Rotation says how much of a container's log is kept.
type Rotation struct {
	MaxSize  int64 // bytes of the current file, beyond which it is rotated
	MaxFiles int   // with the current one; at least 2
}

// Apply rotates the log at path if it is too large: it renames the file, has the runtime reopen it, compresses all rotated
// files but the newest and removes those beyond the number. It reports whether it rotated.
func (r Rotation) Apply(path string, reopen func() error) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return resume(path, reopen)
	}
	if err == nil && info.Size() < r.MaxSize {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("rotate log: %w", err)
	}
	names, err := Files(path)
	if err != nil {
		return false, fmt.Errorf("rotate log: %w", err)
	}
	names = names[:len(names)-1]
	for len(names) > 0 && len(names) > r.MaxFiles-2 { // room for the one that follows
		if err := os.Remove(names[0]); err != nil {
			return false, fmt.Errorf("remove old log: %w", err)
		}
		names = names[1:]
	}
	for _, n := range names {
		if !strings.HasSuffix(n, ".gz") {
			if err := compress(n); err != nil {
				return false, fmt.Errorf("compress log %s: %w", n, err)
			}
		}
	}
	aside := path + "." + time.Now().UTC().Format("20060102-150405.000000")
	if err := os.Rename(path, aside); err != nil {
		return false, fmt.Errorf("rotate log: %w", err)
	}
	if err := reopen(); err != nil {
		// The runtime still writes to the old file: give it its name back, and try again another time.
		return false, errors.Join(fmt.Errorf("reopen log: %w", err), os.Rename(aside, path))
	}
	return true, nil
}

// resume goes on with a rotation that was broken off after the rename: the runtime still writes to the file that was put aside.
func resume(path string, reopen func() error) (bool, error) {
	names, err := Files(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(names) == 0 {
		return false, nil // nothing was written yet
	}
	if err != nil {
		return false, fmt.Errorf("rotate log: %w", err)
	}
	if err := reopen(); err != nil {
		return false, fmt.Errorf("reopen log: %w", err)
	}
	return true, nil
}

// Remove removes the log at path with all its rotated files, of which none need be there.
func Remove(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove log: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path)); ok && (rest == "" || rest[0] == '.') {
			errs = append(errs, os.Remove(filepath.Join(filepath.Dir(path), e.Name())))
		}
	}
	return errors.Join(errs...)
}

func compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := name + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	err = errors.Join(err, z.Close(), out.Close())
	if err == nil {
		err = os.Rename(tmp, name+".gz")
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Remove(name)
}
