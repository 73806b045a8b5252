package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// system are folders that hold the host up: none of them is a volume, and with another context the host would not work any more.
var system = []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys",
	"/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log", "/var/run"}

// relabeler sets an attribute. Tests have one of their own, where there is no SELinux.
type relabeler struct{ attribute string }

// Relabel gives a file, or a folder with all that is in it, the context. Whoever writes to it meanwhile cannot lead it elsewhere; what is mounted in
// it is left alone. A file system that has no contexts is no error. It ends with ctx, between two folders.
func Relabel(ctx context.Context, path string, c Context) error {
	return relabeler{attribute}.tree(ctx, path, c.String())
}

func (r relabeler) tree(ctx context.Context, path, context string) error {
	if slices.Contains(system, filepath.Clean(path)) {
		return fmt.Errorf("%s is a folder of the host's system: it is not given another SELinux context", path)
	}
	root, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", path, err)
	}
	defer unix.Close(root)
	switch err := r.one(root, context); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		return linux.Wrap("set SELinux context of", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return linux.Wrap("stat", path, err)
	}
	for below := []string{"."}; len(below) > 0; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("set SELinux context of what is in %s: %w", path, err)
		}
		name := below[len(below)-1]
		dirs, err := r.entries(root, name, context)
		if err != nil {
			return fmt.Errorf("set SELinux context of what is in %s: %w", filepath.Join(path, name), err)
		}
		below = append(below[:len(below)-1], dirs...)
	}
	return nil
}

// left tells the ways in which what was listed may be no more, or be something else, when it is opened.
func left(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG}, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// entries labels what is in the directory name below root, and returns the directories in it.
func (r relabeler) entries(root int, name, context string) (dirs []string, err error) {
	fd, err := linux.Openat2(root, name, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if left(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		list, err := dir.ReadDir(256)
		for _, e := range list {
			isDir, err := r.entry(fd, e.Name(), context)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			if isDir {
				dirs = append(dirs, filepath.Join(name, e.Name()))
			}
		}
		if errors.Is(err, io.EOF) {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (r relabeler) entry(dir int, name, context string) (isDir bool, err error) {
	fd, err := linux.Openat2(dir, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV})
	if left(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, r.one(fd, context)
}

// one sets the context of what an O_PATH descriptor is of, where it has another.
func (r relabeler) one(fd int, context string) error {
	path := linux.FDPath(fd)
	have := make([]byte, len(context)+2)
	if n, err := unix.Getxattr(path, r.attribute, have); err == nil && (string(have[:n]) == context || string(have[:n]) == context+"\x00") {
		return nil
	}
	return unix.Setxattr(path, r.attribute, []byte(context), 0)
}
