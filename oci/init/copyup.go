package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
)

// deepest is how deep copyUp goes: its frames are on a stack that does not grow.
const deepest = 1000

// copyUp copies the directory target into the detached tmpfs, following
// nothing and crossing no mount, so that the tmpfs starts with the image's files.
func copyUp(target, tmpfs int) *bare.Fault {
	return both(target, tmpfs, ".", directory, directory, func(from, to int) *bare.Fault { return copyDir(from, to, 0) })
}

const directory = unix.O_RDONLY | unix.O_DIRECTORY

func copyDir(from, to, depth int) *bare.Fault {
	if depth > deepest {
		return bare.Because("", "", "folders are too deep")
	}
	var st unix.Stat_t
	if e := bare.Fstat(from, &st); e != 0 {
		return bare.Wrap("", "", e)
	}
	if e := own(to, "", &st); e != 0 {
		return bare.Wrap("", "", e)
	}
	buffer := bare.Make[byte](8192)
	for {
		n, e := bare.Pointer(unix.SYS_GETDENTS64, from, unsafe.SliceData(buffer), uintptr(len(buffer)))
		if e != 0 || n == 0 {
			return bare.Wrap("", "", e)
		}
		for rest := buffer[:n]; len(rest) > 0; {
			// struct linux_dirent64: inode, offset, length of the entry, type, name.
			length := int(rest[16]) | int(rest[17])<<8
			name := bare.GoString(&rest[19])
			rest = rest[length:]
			if name == "." || name == ".." {
				continue
			}
			if f := copyEntry(from, to, name, depth); f != nil {
				return f.In("copy", name)
			}
		}
	}
}

func copyEntry(from, to int, name string, depth int) *bare.Fault {
	mark := bare.Mark()
	f := copyOne(from, to, name, depth)
	if f == nil {
		bare.Release(mark)
	}
	return f
}

func copyOne(from, to int, name string, depth int) *bare.Fault {
	var st unix.Stat_t
	e := bare.Stat(from, name, unix.AT_SYMLINK_NOFOLLOW, &st)
	if e != 0 {
		return bare.Wrap("", "", e)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if e := bare.Path(unix.SYS_MKDIRAT, to, name, 0o700); e != 0 {
			return bare.Wrap("", "", e)
		}
		return both(from, to, name, directory, directory, func(from, to int) *bare.Fault { return copyDir(from, to, depth+1) })
	case unix.S_IFREG:
		if f := both(from, to, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, copyData); f != nil {
			return f
		}
	case unix.S_IFLNK:
		target := bare.Make[byte](unix.PathMax)
		n, e := bare.Readlinkat(from, name, target)
		if e == 0 {
			e = bare.Symlinkat(bare.View(target[:n]), to, name)
		}
		if e != 0 {
			return bare.Wrap("", "", e)
		}
	default:
		if e := bare.Path(unix.SYS_MKNODAT, to, name, uintptr(st.Mode), uintptr(st.Rdev)); e != 0 {
			return bare.Wrap("", "", e)
		}
	}
	return bare.Wrap("", "", own(to, name, &st))
}

// both opens what is of the same name in two directories for f.
func both(from, to int, name string, fromFlags, toFlags int, f func(from, to int) *bare.Fault) *bare.Fault {
	a, e := bare.Openat(from, name, fromFlags|unix.O_NOFOLLOW, 0)
	if e != 0 {
		return bare.Wrap("", "", e)
	}
	b, e := bare.Openat(to, name, toFlags|unix.O_NOFOLLOW, 0o600)
	if e != 0 {
		return bare.Wrap("", "", e)
	}
	fault := f(a, b)
	bare.Close(a, b)
	return fault
}

func copyData(from, to int) *bare.Fault {
	for {
		n, e := bare.Call(unix.SYS_SENDFILE, uintptr(to), uintptr(from), 0, 1<<20)
		if e != 0 || n == 0 {
			return bare.Wrap("", "", e)
		}
	}
}

// own gives an entry, or the directory itself when name is "", the owner and
// mode of the original.
func own(dir int, name string, st *unix.Stat_t) bare.Errno {
	if name == "" {
		if _, e := bare.Call(unix.SYS_FCHOWN, uintptr(dir), uintptr(st.Uid), uintptr(st.Gid)); e != 0 {
			return e
		}
		_, e := bare.Call(unix.SYS_FCHMOD, uintptr(dir), uintptr(st.Mode&0o7777))
		return e
	}
	if e := bare.Path(unix.SYS_FCHOWNAT, dir, name, uintptr(st.Uid), uintptr(st.Gid), unix.AT_SYMLINK_NOFOLLOW); e != 0 {
		return e
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return 0
	}
	return bare.Path(unix.SYS_FCHMODAT, dir, name, uintptr(st.Mode&0o7777))
}
