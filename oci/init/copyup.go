package main

import (
	"golang.org/x/sys/unix"
	"strings"

	"github.com/yare-dev/yare/linux"
)

// copyUp copies the directory target into the detached tmpfs, following
// nothing and crossing no mount, so that the tmpfs starts with the image's files.
func copyUp(target, tmpfs int) error {
	from, err := unix.Openat(target, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Openat(tmpfs, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return copyDir(from, to)
}

func copyDir(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := own(to, "", &st); err != nil {
		return err
	}
	names, err := entries(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(from, to, name); err != nil {
			return linux.Wrap("copy", name, err)
		}
	}
	return nil
}

func entries(dir int) (names []string, err error) {
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func copyEntry(from, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		return openBoth(from, to, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, copyDir)
	case unix.S_IFREG:
		create := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL
		if err := openBoth(from, to, name, unix.O_RDONLY, create, copyData); err != nil {
			return err
		}
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return own(to, name, &st)
}

func openBoth(from, to int, name string, fromFlags, toFlags int, f func(from, to int) error) error {
	a, err := unix.Openat(from, name, fromFlags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, toFlags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	return f(a, b)
}

func copyData(from, to int) error {
	for {
		n, err := unix.Sendfile(to, from, nil, 1<<20)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
	}
}

// own gives an entry, or the directory itself when name is "", the owner and
// mode of the original.
func own(dir int, name string, st *unix.Stat_t) error {
	if name == "" {
		if err := unix.Fchown(dir, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return unix.Fchmod(dir, st.Mode&0o7777)
	}
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if strings.Contains(name, "/") || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Fchmodat(dir, name, st.Mode&0o7777, 0)
}
