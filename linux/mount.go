package linux

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Option is one file system parameter of a new mount: a flag when Value is
// empty.
type Option struct{ Key, Value string }

// NewFS makes a file system instance and returns it as a detached mount with
// the given MOUNT_ATTR_ flags.
func NewFS(fstype, source string, options []Option, attrs int) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen", fstype, err)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, fsError(fs, fstype, "source", err)
		}
	}
	for _, o := range options {
		if o.Value == "" {
			err = unix.FsconfigSetFlag(fs, o.Key)
		} else {
			err = unix.FsconfigSetString(fs, o.Key, o.Value)
		}
		if err != nil {
			return -1, fsError(fs, fstype, o.Key, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, fstype, "", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fsError(fs, fstype, "", err)
	}
	return fd, nil
}

// fsError adds what the kernel wrote to the context's message log.
func fsError(fs int, fstype, option string, err error) error {
	b := make([]byte, 512)
	if n, rerr := unix.Read(fs, b); rerr == nil && n > 2 {
		err = errors.Join(err, errors.New(string(b[2:n])))
	}
	if option != "" {
		fstype += " option " + option
	}
	return wrap("make file system", fstype, err)
}

// CloneTree returns a detached copy of the mount at path (or of the part of it
// below path), with everything mounted below when recursive.
func CloneTree(dirfd int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dirfd, path, flags)
	return fd, wrap("open tree", path, err)
}

// Attach mounts the detached mount on target, an O_PATH descriptor. name is
// for the error.
func Attach(mount, target int, name string) error {
	return wrap("mount on", name, unix.MoveMount(mount, "", target, "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// SetMountAttr changes a mount: attr.Attr_set and Attr_clr are MOUNT_ATTR_
// flags, Propagation an MS_ flag or 0, Userns_fd for MOUNT_ATTR_IDMAP.
func SetMountAttr(mount int, recursive bool, attr unix.MountAttr, name string) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return wrap("set mount attributes of", name, unix.MountSetattr(mount, "", flags, &attr))
}

// MountAttribute returns what an option of mount(8) changes of a mount; ok is false for options that are no mount's but a file
// system's.
func MountAttribute(o string) (a unix.MountAttr, ok bool) {
	const atime = unix.MOUNT_ATTR__ATIME
	switch o {
	case "ro":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, true
	case "rw":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}, true
	case "suid":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}, true
	case "dev":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC}, true
	case "exec":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOEXEC}, true
	case "nodiratime":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "diratime":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODIRATIME}, true
	case "nosymfollow":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "symfollow":
		return unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "noatime":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: atime}, true
	case "strictatime", "atime":
		return unix.MountAttr{Attr_set: unix.MOUNT_ATTR_STRICTATIME, Attr_clr: atime}, true
	case "relatime", "norelatime", "nostrictatime":
		return unix.MountAttr{Attr_clr: atime}, true // relatime is the kernel's zero
	}
	return unix.MountAttr{}, false
}

// MountAttributes returns what options of mount(8) change of a mount, the later ones before the earlier ones. unknown is the first that is
// not a mount's; "" when all are.
func MountAttributes(options []string) (sum unix.MountAttr, unknown string) {
	for _, o := range options {
		a, ok := MountAttribute(o)
		if !ok {
			return sum, o
		}
		sum.Attr_set, sum.Attr_clr = sum.Attr_set&^a.Attr_clr|a.Attr_set, sum.Attr_clr&^a.Attr_set|a.Attr_clr
	}
	return sum, ""
}

// Mounted reports whether something is mounted on path itself, be it a folder of the same file system. Nothing is where there is no such
// path; a link is not followed.
func Mounted(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	switch {
	case err == unix.ENOENT:
		return false, nil
	case err != nil:
		return false, wrap("stat", path, err)
	case st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return false, wrap("tell what is mounted at", path, unix.ENOTSUP)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// MountPoints returns where something is mounted in this process's mount namespace, in the order of mounting. The
// paths have no symbolic links in them.
func MountPoints() ([]string, error) {
	b, err := ReadFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, Unescape(f[4]))
		}
	}
	return points, nil
}

// Shared reports whether the mount that path is on is shared: what is mounted below it is seen by all who have a copy of it, and the other way
// round.
func Shared(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return false, wrap("stat", path, err)
	}
	b, err := ReadFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 6 && f[0] == id {
			for _, option := range f[6:] {
				if option == "-" {
					break
				}
				if strings.HasPrefix(option, "shared:") {
					return true, nil
				}
			}
		}
	}
	return false, nil
}
