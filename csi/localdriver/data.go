package localdriver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation"
)

// The folders below Dir.
const (
	contents = "data"
	making   = "making"
	removed  = "removed"
)

// anyone may write into a volume, as into an emptyDir: whose pods those are is not known, and its parents are root's alone.
const anyone = 0o777

// data are the volumes' folders.
type data struct {
	root *os.Root
	mu   sync.Mutex // of making and removing, which takes several steps
}

// openData opens the folder, and removes what was being made or removed when the last process ended.
func openData(dir string) (*data, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d := &data{root: root}
	for _, name := range []string{making, removed} {
		err = errors.Join(err, root.RemoveAll(name))
	}
	for _, name := range []string{contents, making, removed} {
		err = errors.Join(err, root.MkdirAll(name, 0o700))
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *data) close() { _ = d.root.Close() }

// checkHandle says what is wrong with a handle: it has to be a name.
func checkHandle(handle string) error {
	for _, text := range validation.IsDNS1123Subdomain(handle) {
		return fmt.Errorf("volume handle %q: %s", handle, text)
	}
	return nil
}

// open returns the folder of a volume, which is made where it is missing. The caller closes it.
func (d *data) open(handle string) (*os.File, error) {
	if err := checkHandle(handle); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.root.Open(path.Join(contents, handle))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	// Its mode is set before it is there: afterwards it is the pods' to change.
	at := path.Join(making, handle)
	if err := d.root.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := d.root.Chmod(at, anyone); err != nil {
		return nil, err
	}
	if err := d.root.Rename(at, path.Join(contents, handle)); err != nil {
		return nil, err
	}
	return d.root.Open(path.Join(contents, handle))
}

// remove removes a volume's folder with all that is in it. It may be repeated.
func (d *data) remove(handle string) error {
	if err := checkHandle(handle); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := path.Join(removed, handle)
	if err := d.root.RemoveAll(at); err != nil { // left by an attempt that failed
		return err
	}
	if err := d.root.Rename(path.Join(contents, handle), at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.root.RemoveAll(at)
}

// handles returns the volumes that have a folder.
func (d *data) handles() ([]string, error) {
	f, err := d.root.Open(contents)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
