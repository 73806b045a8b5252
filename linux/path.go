package linux

import (
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenIn opens name below the directory root as if root were "/": symbolic
// links and ".." cannot lead out, and the magic links of procfs are not
// followed.
func OpenIn(root int, name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	return Openat2(root, name, how)
}

// Openat2 is the system call of that name, as often as something raced with it.
func Openat2(dir int, name string, how unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &how)
		// EAGAIN: a rename or mount raced with the walk; nothing was decided.
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return fd, wrap("open", name, err)
	}
}

// MakeDirIn returns an O_PATH descriptor of the directory name below root,
// making what is missing of it with mode 0755.
func MakeDirIn(root int, name string) (int, error) {
	if fd, err := OpenIn(root, name, unix.O_PATH|unix.O_DIRECTORY); err == nil || !isNotExist(err) {
		return fd, err
	}
	parts := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	parent, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, wrap("dup", name, err)
	}
	for i, part := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		fd, err := OpenIn(root, prefix, unix.O_PATH|unix.O_DIRECTORY)
		if isNotExist(err) {
			// EEXIST is a dangling symbolic link: the second open reports it.
			if err = unix.Mkdirat(parent, part, 0o755); err == nil || err == unix.EEXIST {
				fd, err = OpenIn(root, prefix, unix.O_PATH|unix.O_DIRECTORY)
			} else {
				err = wrap("mkdir", prefix, err)
			}
		}
		unix.Close(parent)
		if err != nil {
			return -1, err
		}
		parent = fd
	}
	return parent, nil
}

// FDPath is the path of an open descriptor of the calling process, for calls
// that take only a path. It is only right where /proc is the host's.
func FDPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func isNotExist(err error) bool { return errors.Is(err, unix.ENOENT) }

// topDir is the file attribute T of chattr(1).
const topDir = 0x20000

// SpreadBelow asks the file system to lay out each directory that will be made in this one apart from the others, as ext4 does
// for a directory's attribute T, instead of near. It is a hint: file systems without it say nothing.
func SpreadBelow(dir int) {
	if flags, err := unix.IoctlGetInt(dir, unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(dir, unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}
