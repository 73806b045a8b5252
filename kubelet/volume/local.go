package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/linux"
)

// localVolumes is the type of local volumes in paths.
const localVolumes = "local-volume"

// attributes are those of a mount with the options.
func attributes(options []string, readOnly bool) (sum unix.MountAttr, err error) {
	if readOnly {
		options = append(options[:len(options):len(options)], "ro")
	}
	sum, unknown := linux.MountAttributes(options)
	if unknown != "" {
		return sum, fmt.Errorf("spec.mountOptions: %q is not supported by this node for local volumes: their file system is mounted already", unknown)
	}
	return sum, nil
}

// inode tells folders apart, whatever they are called.
type inode struct{ dev, ino uint64 }

// local mounts the folder of a local volume on dir, unless it is. The first pod of the node that has it makes its files those of the
// pod's group.
func (v *Volumes) local(ctx context.Context, pod *corev1.Pod, pv *corev1.PersistentVolume, dir string, attr unix.MountAttr, src Storage) error {
	if mounted, err := linux.Mounted(dir); mounted || err != nil {
		return err
	}
	source, st, err := openLocal(pv.Spec.Local.Path)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	id := inode{st.Dev, st.Ino}
	defer v.locks.lock(id)() // pods that come later find files that are all of the group
	tree, err := linux.CloneTree(source, "", false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if fsGroup(pod) != nil && attr.Attr_set&unix.MOUNT_ATTR_RDONLY == 0 {
		if err := v.giveLocal(ctx, pod, pv, tree, st, src); err != nil {
			return err
		}
	}
	if err := linux.SetMountAttr(tree, false, attr, pv.Spec.Local.Path); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return attach(tree, dir)
}

// openLocal opens the folder of a local volume.
func openLocal(path string) (fd int, st unix.Stat_t, err error) {
	fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, st, fmt.Errorf("spec.local.path: path %q does not exist", path)
	}
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return -1, st, fmt.Errorf("spec.local.path: open %s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fd, st, nil
	case unix.S_IFBLK:
		err = fmt.Errorf("spec.local.path: %s is a block device, which this node does not mount: mount it, and name the mount point", path)
	default:
		err = fmt.Errorf("spec.local.path: %s is not a directory", path)
	}
	unix.Close(fd)
	return -1, st, err
}

// hostDevice checks the device of a local volume that is one.
func hostDevice(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("spec.local.path: %w", err)
	}
	if info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return fmt.Errorf("spec.local.path: %s is not a block device, as spec.volumeMode Block says", path)
	}
	return nil
}

// giveLocal makes the files of tree those of the pod's group. What another pod has stays as it is, and who asked is told where the
// groups differ.
func (v *Volumes) giveLocal(ctx context.Context, pod *corev1.Pod, pv *corev1.PersistentVolume, tree int, st unix.Stat_t, src Storage) error {
	gid := int(*fsGroup(pod))
	used, err := v.uses(inode{st.Dev, st.Ino})
	if err != nil {
		return err
	}
	if used {
		if int(st.Gid) != gid {
			src.Say(pod, corev1.EventTypeWarning, "AlreadyMountedVolume", fmt.Sprintf("The requested fsGroup is %d, but the volume %s has GID %d. The volume may not be shareable.", gid, pv.Name, st.Gid))
		}
		return nil
	}
	root, err := os.OpenRoot(linux.FDPath(tree))
	if err != nil {
		return err
	}
	defer root.Close()
	return giveRoot(ctx, root, pod, pv.Name, src)
}

// giveRoot makes all files of a volume those of the pod's group; with the policy OnRootMismatch only where the root is not.
func giveRoot(ctx context.Context, root *os.Root, pod *corev1.Pod, name string, src Storage) error {
	gid := int(*fsGroup(pod))
	if p := pod.Spec.SecurityContext.FSGroupChangePolicy; p != nil && *p == corev1.FSGroupChangeOnRootMismatch {
		if given, err := belongs(root, gid); given || err != nil {
			return err
		}
	}
	kept, err := giveTree(ctx, root, gid)
	if kept != nil {
		src.Say(pod, corev1.EventTypeWarning, "FailedFSGroup", fmt.Sprintf("fsGroup %d was not given to all files of volume %s: %v", gid, name, kept))
	}
	return err
}

// uses reports whether a pod has the folder as a local volume.
func (v *Volumes) uses(id inode) (bool, error) {
	points, err := mountsBelow(v.root)
	for _, p := range points {
		var st unix.Stat_t
		if strings.Contains(p, "/kubernetes.io~"+localVolumes+"/") && unix.Stat(p, &st) == nil && (inode{st.Dev, st.Ino}) == id {
			return true, nil
		}
	}
	return false, err
}

// groupMode is what the group of a volume's file may do with it.
func groupMode(info fs.FileInfo) fs.FileMode {
	switch {
	case info.IsDir():
		return info.Mode() | fs.ModeSetgid | 0o770
	case info.Mode()&fs.ModeSymlink != 0: // its mode is that of what it leads to
		return info.Mode()
	}
	return info.Mode() | 0o660
}

// belongs reports whether the root is the group's already.
func belongs(root *os.Root, gid int) (bool, error) {
	info, err := root.Lstat(".")
	return err == nil && int(info.Sys().(*syscall.Stat_t).Gid) == gid && groupMode(info) == info.Mode(), err
}

// giveTree gives all files to the group, the root last: a root that is the group's says that the files are. Files go and come
// meanwhile; no link is followed out of the root. kept is why the first of those that cannot be changed was not.
func giveTree(ctx context.Context, root *os.Root, gid int) (kept, err error) {
	give := func(name string) {
		if err := give(root, name, gid); err != nil && !errors.Is(err, fs.ErrNotExist) && kept == nil {
			kept = err
		}
	}
	for dirs := []string{"."}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		f, err := root.OpenFile(dir, unix.O_DIRECTORY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return kept, err
		}
		for {
			entries, err := f.ReadDir(1000)
			for _, e := range entries {
				name := filepath.Join(dir, e.Name())
				give(name)
				if e.IsDir() {
					dirs = append(dirs, name)
				}
			}
			if err == nil {
				err = context.Cause(ctx)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				f.Close()
				return kept, err
			}
		}
		f.Close()
	}
	give(".")
	return kept, nil
}

func give(root *os.Root, name string, gid int) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if err := root.Lchown(name, -1, gid); err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return err
	}
	return root.Chmod(name, groupMode(info)) // also where it is the same: a new group takes setuid away
}
