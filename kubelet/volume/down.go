package volume

import (
	"context"
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
	"github.com/yare-dev/yare/linux/rmtree"
)

// Down takes the volumes of drivers from a pod and removes everything that it has below the root. It is not an error if there is nothing. It
// may take long, and be repeated.
func (v *Volumes) Down(ctx context.Context, uid types.UID) error {
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
	// subPaths of a driver's volume are mounts of it, which it could not be taken back with.
	if err := unmountBelow(filepath.Join(dir, "volume-subpaths")); err != nil {
		return err
	}
	disks, err := v.disksOf(uid)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range disks {
		if err := v.undo(ctx, uid, d); err != nil {
			errs = append(errs, fmt.Errorf("take volume %s from pod: %w", d.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if len(below) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, below[0])
	}
	return rmtree.Remove(dir)
}

// unmountBelow detaches all that is mounted at and below dir, which need not be there.
func unmountBelow(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(below) { // later mounts may lie on earlier ones
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
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
