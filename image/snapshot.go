package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Snapshot is a root file system made of an image. It keeps the image's layers
// on disk, whether the image is removed or not.
type Snapshot struct {
	Key string `json:"key"`
	// Image is the image's ID.
	Image string `json:"image"`
	// Layers are the chain IDs from the bottom up.
	Layers   []string `json:"layers"`
	ReadOnly bool     `json:"readOnly,omitempty"`
}

// Snapshots lists all snapshots, those included that an interrupted Mount left
// without a record: of them only the key is known.
func (s *Store) Snapshots() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	for _, e := range entries {
		sn, err := readJSON[Snapshot](s.path("snapshots", e.Name(), "snapshot.json"))
		if errors.Is(err, fs.ErrNotExist) {
			sn, err = Snapshot{Key: e.Name()}, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, sn)
	}
	return all, nil
}

// Mount makes a writable root file system of an image and returns its path. The
// key is the caller's name for it: one path component. When the key has one
// already it is mounted again if need be, with what was written to it; that
// it is of another image is an error.
func (s *Store) Mount(ctx context.Context, image, key string) (rootfs string, err error) {
	return s.mount(ctx, image, key, false)
}

// MountReadOnly is Mount without anything to write to, for an image that is a
// volume.
func (s *Store) MountReadOnly(ctx context.Context, image, key string) (rootfs string, err error) {
	return s.mount(ctx, image, key, true)
}

// snapshotDir refuses keys that are not one harmless path component.
func (s *Store) snapshotDir(key string) (string, error) {
	if key == "" || key[0] == '.' || len(key) > 200 || strings.ContainsAny(key, "/\x00") {
		return "", fmt.Errorf("snapshot key %q: %w", key, ErrInvalid)
	}
	return s.path("snapshots", key), nil
}

func (s *Store) mount(ctx context.Context, image, key string, readOnly bool) (rootfs string, err error) {
	dir, err := s.snapshotDir(key)
	if err != nil {
		return "", err
	}
	m, err := s.resolve(image)
	if err != nil {
		return "", err
	}
	release, err := s.share()
	if err != nil {
		return "", err
	}
	defer release()
	sn := Snapshot{Key: key, Image: m.ID, ReadOnly: readOnly}
	for _, l := range m.Layers {
		sn.Layers = append(sn.Layers, l.Chain)
	}
	rootfs = filepath.Join(dir, "rootfs")
	old, err := readJSON[Snapshot](filepath.Join(dir, "snapshot.json"))
	switch {
	case err == nil && (old.Image != m.ID || old.ReadOnly != readOnly):
		return "", fmt.Errorf("mount image %s: snapshot %s is of image %s: %w", m.ID, key, old.Image, ErrInvalid)
	case err == nil && isMountPoint(rootfs):
		return rootfs, nil
	}
	if err := s.makeSnapshot(ctx, dir, sn); err != nil {
		return "", fmt.Errorf("mount image %s: %w", m.ID, errors.Join(err, s.Unmount(ctx, key)))
	}
	return rootfs, nil
}

// makeSnapshot brings dir from whatever state it is in to mounted. The record
// is written first, so that no sweep takes the layers, and what is without a
// record is nobody's. It is not synced: after a power cut no container runs.
func (s *Store) makeSnapshot(ctx context.Context, dir string, sn Snapshot) error {
	for _, l := range sn.Layers {
		if !s.hasLayer(l) {
			return fmt.Errorf("layer %s is missing, pull the image again: %w", l, ErrNotFound)
		}
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return err
	}
	if err := writeQuickly(filepath.Join(dir, "snapshot.json"), sn); err != nil {
		return err
	}
	if len(sn.Layers) == 0 {
		return nil // an image of nothing: an empty directory
	}
	lower := s.lower(sn.Layers)
	if !s.overlay {
		return s.copySnapshot(ctx, lower[0], dir, sn.ReadOnly)
	}
	o := stack{lower: lower}
	if !sn.ReadOnly {
		o.upper, o.work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
		if err := os.Mkdir(o.upper, 0o755); err == nil {
			if err := likeRoot(lower[0], o.upper); err != nil {
				return err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A volatile overlay leaves a mark in its work directory that forbids
		// mounting it again.
		if err := os.RemoveAll(o.work); err != nil {
			return err
		}
		if err := os.Mkdir(o.work, 0o711); err != nil {
			return err
		}
	} else if len(lower) == 1 {
		// Overlayfs wants two lower directories where there is no upper.
		empty := filepath.Join(dir, "empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return err
		}
		if err := likeRoot(lower[0], empty); err != nil {
			return err
		}
		o.lower = []string{empty, lower[0]}
	}
	fd, err := o.mount()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, rootfs)
}

// copySnapshot fills a snapshot where there is no overlayfs. A bind mount of
// itself marks it as complete and makes it a mount like the other.
func (s *Store) copySnapshot(ctx context.Context, from, dir string, readOnly bool) error {
	rootfs, upper := filepath.Join(dir, "rootfs"), filepath.Join(dir, "upper")
	if _, err := os.Lstat(upper); errors.Is(err, fs.ErrNotExist) {
		part := filepath.Join(dir, "part")
		if err := os.RemoveAll(part); err != nil {
			return err
		}
		if err := os.Mkdir(part, 0o755); err != nil {
			return err
		}
		if err := copyTree(ctx, from, part); err != nil {
			return err
		}
		if err := os.Rename(part, upper); err != nil {
			return err
		}
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, upper, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount of %s: %w", upper, err)
	}
	defer unix.Close(tree)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("make mount of %s read-only: %w", upper, err)
		}
	}
	return attach(tree, rootfs)
}

// isMountPoint compares the mount IDs of dir and the directory above it.
func isMountPoint(dir string) bool {
	var here, above unix.Statx_t
	const mask = unix.STATX_MNT_ID
	if unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, mask, &here) != nil ||
		unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), unix.AT_SYMLINK_NOFOLLOW, mask, &above) != nil {
		return false
	}
	return here.Mnt_id != above.Mnt_id
}

// Rootfs is where the snapshot of key is, or would be, mounted.
func (s *Store) Rootfs(key string) string { return s.path("snapshots", key, "rootfs") }

// Unmount removes a snapshot with everything written to it. It is no error that
// there is none. Processes that still use it keep it until they end.
func (s *Store) Unmount(_ context.Context, key string) error {
	dir, err := s.snapshotDir(key)
	if err != nil {
		return err
	}
	rootfs := filepath.Join(dir, "rootfs")
	for {
		err := unix.Unmount(rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no more, a mount point
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", rootfs, err)
		}
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	release, err := s.share()
	if err != nil {
		return err
	}
	bin, err := s.temp("trash")
	if err == nil {
		err = os.Rename(dir, filepath.Join(bin, "snapshot"))
	}
	release()
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	if err := os.RemoveAll(bin); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}
