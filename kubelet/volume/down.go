package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/linux"
)

// Down removes everything that a pod has below the root. It is not an error if there is nothing.
func (v *Volumes) Down(uid types.UID) error {
	dir := v.PodDir(uid)
	if uid == "" || filepath.Base(dir) != string(uid) {
		return fmt.Errorf("remove volumes of pod %q: not a UID", uid)
	}
	v.mu.Lock()
	delete(v.claims, uid)
	v.mu.Unlock()
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	// Later mounts may lie on earlier ones.
	for i := len(below) - 1; i >= 0; i-- {
		if err := unix.Unmount(below[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", below[i], err)
		}
	}
	if below, err = mountsBelow(dir); err != nil {
		return err
	}
	if len(below) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, below[0])
	}
	return os.RemoveAll(dir)
}

// Pods returns the UIDs that have something below the root.
func (v *Volumes) Pods() ([]types.UID, error) {
	entries, err := os.ReadDir(v.root)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("list pods' folders: %w", err)
	}
	var uids []types.UID
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, types.UID(e.Name()))
		}
	}
	return uids, nil
}

// mountsBelow returns the mount points at and below dir in the order in which they were mounted.
func mountsBelow(dir string) ([]string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", dir, err)
	}
	points, err := linux.MountPoints()
	return slices.DeleteFunc(points, func(p string) bool { return p != real && !strings.HasPrefix(p, real+"/") }), err
}
