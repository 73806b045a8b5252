package localdriver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/rmtree"
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
	path string     // of root, without links
	mu   sync.Mutex // of making and removing, which takes several steps
}

// openData opens the folder, which is made where it is missing.
func openData(dir string) (*data, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(real)
	if err != nil {
		return nil, err
	}
	d := &data{root: root, path: real}
	for _, name := range []string{contents, making, removed} {
		err = errors.Join(err, root.MkdirAll(name, 0o700))
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// sweep removes what was being made or removed when the last process ended.
func (d *data) sweep() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dir := range []string{making, removed} {
		names, e := d.names(dir)
		err = errors.Join(err, e)
		for _, name := range names {
			err = errors.Join(err, d.removeTree(path.Join(dir, name)))
		}
	}
	return err
}

// removeTree removes a folder, but never through a mount: whatever a pod has mounted in its volume, and left there, is not ours to delete.
func (d *data) removeTree(name string) error {
	points, err := linux.MountPoints()
	if err != nil {
		return err
	}
	below := filepath.Join(d.path, name) + "/"
	for _, p := range points {
		if strings.HasPrefix(p, below) {
			return fmt.Errorf("%s is mounted in it: unmount it first, its content is left alone", p)
		}
	}
	return rmtree.Remove(filepath.Join(d.path, name)) // its parents are root's alone
}

func (d *data) close() { _ = d.root.Close() }

// checkHandle says what is wrong with a handle: it has to be a name.
func checkHandle(handle string) error {
	for _, text := range validation.IsDNS1123Subdomain(handle) {
		return fmt.Errorf("volume handle %q: %s", handle, text)
	}
	return nil
}

// errLost is why a volume is not to be had whose folder was there once.
var errLost = errors.New("its data is not on this node any more")

// open returns the folder of a volume. One that is missing is made, or errLost where it was made before. The caller closes it.
func (d *data) open(handle string, before bool) (*os.File, error) {
	if err := checkHandle(handle); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.root.Open(path.Join(contents, handle))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if before {
		return nil, fmt.Errorf("%w: there is no folder %s. Bring it back, or mount the disk that has it and restart the node's program; to begin anew "+
			"with nothing in it, take the annotation %s away from the PersistentVolume", errLost, filepath.Join(d.path, contents, handle), claim.LocalMade)
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
	if err := d.removeTree(at); err != nil { // left by an attempt that failed
		return err
	}
	if err := d.root.Rename(path.Join(contents, handle), at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.removeTree(at)
}

// handles returns the volumes that have a folder.
func (d *data) handles() ([]string, error) { return d.names(contents) }

func (d *data) names(dir string) ([]string, error) {
	f, err := d.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
