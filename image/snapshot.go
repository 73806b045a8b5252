package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/rmtree"
	"github.com/yare-dev/yare/linux/selinux"
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
	// Boot is the kernel's ID of the boot in which it was made.
	Boot string `json:"boot,omitempty"`
	// UIDs and GIDs are those that the image's files have got.
	UIDs []IDMap `json:"uids,omitempty"`
	GIDs []IDMap `json:"gids,omitempty"`
}

// IDMap is a range of the IDs in a user namespace and what they are outside.
type IDMap = syscall.SysProcIDMap

// MountOptions says how to mount an image; the zero value gives a writable
// root file system with the owners that the image says.
type MountOptions struct {
	ReadOnly bool
	// Users is a descriptor of a user namespace with the mappings UIDs and GIDs:
	// the snapshot's files have the owners that look inside it as the image says.
	// It must be open during the call only. 0 for none.
	Users      int
	UIDs, GIDs []IDMap
	// Label is the SELinux context of all files, whatever their own; empty for their own.
	Label string
}

// Snapshots lists all snapshots, those included that an interrupted Mount or a
// power cut left without a record: of them only the key is known.
func (s *Store) Snapshots() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	for _, e := range entries {
		sn, err := readJSON[Snapshot](s.path("snapshots", e.Name(), "snapshot.json"))
		if errors.Is(err, fs.ErrNotExist) || err != nil && !isMountPoint(s.Rootfs(e.Name())) {
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
	return s.MountWith(ctx, image, key, MountOptions{})
}

// MountReadOnly is Mount without anything to write to, for an image that is a
// volume.
func (s *Store) MountReadOnly(ctx context.Context, image, key string) (rootfs string, err error) {
	return s.MountWith(ctx, image, key, MountOptions{ReadOnly: true})
}

// forget removes what earlier boots left that need not have come to the disk: images that were not settled, and snapshots, of
// which none is mounted.
func (s *Store) forget() error {
	if err := s.forgetImages(); err != nil {
		return err
	}
	snapshots, err := s.Snapshots()
	if err != nil {
		return err
	}
	for _, sn := range snapshots {
		earlier := sn.Boot != "" && sn.Boot != s.boot || s.unreadable(sn.Key)
		if !earlier || isMountPoint(s.Rootfs(sn.Key)) {
			continue
		}
		if err := s.unmount(sn.Key); err != nil {
			return err
		}
	}
	return nil
}

// unreadable tells a record that a power cut spoilt from one that is not there yet.
func (s *Store) unreadable(key string) bool {
	_, err := readJSON[Snapshot](s.path("snapshots", key, "snapshot.json"))
	return err != nil && !errors.Is(err, fs.ErrNotExist)
}

// snapshotDir refuses keys that are not one harmless path component.
func (s *Store) snapshotDir(key string) (string, error) {
	if key == "" || key[0] == '.' || len(key) > 200 || strings.ContainsAny(key, "/\x00") {
		return "", fmt.Errorf("snapshot key %q: %w", key, ErrInvalid)
	}
	return s.path("snapshots", key), nil
}

// MountWith is Mount, or MountReadOnly, for a container in a user namespace. The
// layers are shared with other containers: the kernel maps their files' owners.
// Where it cannot (overlayfs before 5.19, some file systems) the image is copied.
func (s *Store) MountWith(ctx context.Context, image, key string, o MountOptions) (rootfs string, err error) {
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
	sn := Snapshot{Key: key, Image: m.ID, ReadOnly: o.ReadOnly, Boot: s.boot, UIDs: o.UIDs, GIDs: o.GIDs}
	for _, l := range m.Layers {
		sn.Layers = append(sn.Layers, l.Chain)
	}
	rootfs = filepath.Join(dir, "rootfs")
	old, err := readJSON[Snapshot](filepath.Join(dir, "snapshot.json"))
	switch {
	case err == nil && (old.Image != m.ID || old.ReadOnly != sn.ReadOnly || !slices.Equal(old.UIDs, sn.UIDs) || !slices.Equal(old.GIDs, sn.GIDs)):
		return "", fmt.Errorf("mount image %s: snapshot %s is of image %s, or mounted in another way: %w", m.ID, key, old.Image, ErrInvalid)
	case err == nil && isMountPoint(rootfs):
		return rootfs, nil
	}
	if err := s.makeSnapshot(ctx, dir, sn, o); err != nil {
		return "", fmt.Errorf("mount image %s: %w", m.ID, errors.Join(err, s.unmount(key)))
	}
	return rootfs, nil
}

// makeSnapshot brings dir from whatever state it is in to mounted. The record
// is written first, so that no sweep takes the layers, and what is without a
// record is nobody's. It is not synced: after a power cut no container runs.
func (s *Store) makeSnapshot(ctx context.Context, dir string, sn Snapshot, o MountOptions) error {
	for _, l := range sn.Layers {
		if _, err := os.Lstat(s.layerDir(l)); err != nil {
			return fmt.Errorf("layer %s is missing, pull the image again: %w", l, ErrNotFound)
		}
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return err
	}
	if err := s.writeQuickly(filepath.Join(dir, "snapshot.json"), sn); err != nil {
		return err
	}
	if len(sn.Layers) == 0 {
		return o.relabel(ctx, rootfs) // an image of nothing: an empty directory
	}
	fd, err := s.detached(ctx, dir, sn, o)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, rootfs)
}

// detached makes the snapshot's mount and returns its descriptor.
func (s *Store) detached(ctx context.Context, dir string, sn Snapshot, o MountOptions) (int, error) {
	if s.overlay && !copied(dir) {
		fd, err := s.overlaySnapshot(dir, sn, o)
		if err == nil || o.Users == 0 || !cannotMap(err) {
			return fd, err
		}
		s.log.Debug("image copied, since its owners cannot be mapped", "image", sn.Image, "err", err)
	}
	return s.copySnapshot(ctx, dir, sn, o)
}

// cannotMap tells the kernel's and the file systems' ways to say that they do not map IDs.
func cannotMap(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, linux.ErrNotSupported)
}

// relabel gives a folder the context that a mount would have as an option.
func (o MountOptions) relabel(ctx context.Context, dir string) error {
	if o.Label == "" {
		return nil
	}
	c, err := selinux.Parse(o.Label)
	if err != nil {
		return err
	}
	return selinux.Relabel(ctx, dir, c)
}

// copied tells a snapshot that is a copy.
func copied(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "copy"))
	return err == nil
}

// overlaySnapshot returns a detached mount of the snapshot's layers.
func (s *Store) overlaySnapshot(dir string, sn Snapshot, with MountOptions) (int, error) {
	lower := s.lower(sn.Layers)
	o := stack{lower: lower, mapped: with.Users, metacopy: true, context: with.Label}
	if sn.ReadOnly {
		if len(lower) > 1 {
			return o.mount()
		}
		// Overlayfs wants two lower directories where there is no upper.
		empty := filepath.Join(dir, "empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return -1, err
		}
		if err := likeRoot(lower[0], empty, idMaps{}); err != nil {
			return -1, err
		}
		o.lower = []string{empty, lower[0]}
		return o.mount()
	}
	o.upper, o.work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := os.Mkdir(o.upper, 0o755); err == nil {
		if err := likeRoot(lower[0], o.upper, sn.ids()); err != nil {
			return -1, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return -1, err
	}
	// A volatile overlay leaves a mark in its work directory that forbids
	// mounting it again.
	if err := os.RemoveAll(o.work); err != nil {
		return -1, err
	}
	if err := os.Mkdir(o.work, 0o711); err != nil {
		return -1, err
	}
	return o.mount()
}

// copySnapshot fills a snapshot where there is no overlayfs, or none that maps
// IDs. A mount of the copy marks the snapshot as complete, like any other.
func (s *Store) copySnapshot(ctx context.Context, dir string, sn Snapshot, o MountOptions) (int, error) {
	whole := filepath.Join(dir, "copy")
	if !copied(dir) {
		part := filepath.Join(dir, "part")
		if err := os.RemoveAll(part); err != nil {
			return -1, err
		}
		if err := os.Mkdir(part, 0o755); err != nil {
			return -1, err
		}
		if err := s.copyImage(ctx, sn, part); err != nil {
			return -1, err
		}
		if err := o.relabel(ctx, part); err != nil {
			return -1, err
		}
		if err := os.Rename(part, whole); err != nil {
			return -1, err
		}
	}
	tree, err := linux.CloneTree(unix.AT_FDCWD, whole, false)
	if err != nil || !sn.ReadOnly {
		return tree, err
	}
	if err := linux.SetMountAttr(tree, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, whole); err != nil {
		unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// copyImage copies what the layers make together, with mapped owners.
func (s *Store) copyImage(ctx context.Context, sn Snapshot, to string) error {
	lower := s.lower(sn.Layers)
	from := lower[0] // where layers are copies the top one is the whole image
	if s.overlay && len(lower) > 1 {
		fd, err := stack{lower: lower}.mount()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		from = linux.FDPath(fd) + "/."
	}
	return copyTree(ctx, from, to, sn.ids())
}

func (sn Snapshot) ids() idMaps { return idMaps{sn.UIDs, sn.GIDs} }

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
func (s *Store) Unmount(_ context.Context, key string) error { return s.unmount(key) }

func (s *Store) unmount(key string) error {
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
		err = s.rename(dir, filepath.Join(bin, "snapshot"))
	}
	release()
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	if err := rmtree.Remove(bin); err != nil { // the container made it, as deep as it liked
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}
