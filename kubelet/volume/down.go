package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := linux.Unescape(f[4])
		if point == real || strings.HasPrefix(point, real+"/") {
			out = append(out, point)
		}
	}
	return out, nil
}
