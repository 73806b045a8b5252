package bare

import "golang.org/x/sys/unix"

// OpenIn opens name below the directory root as if root were "/": symbolic links and ".." cannot lead out, and the magic links of procfs
// are not followed.
func OpenIn(root int, name string, flags int) (int, Errno) {
	return Openat2(root, name, unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}

// Clean is path.Clean("/" + name) without the slash that it begins with: "" for the root.
func Clean(name string) string {
	b := Make[byte](len(name) + 1)
	n := 0 // b[:n] is clean
	for begin := 0; begin < len(name); {
		end := begin
		for end < len(name) && name[end] != '/' {
			end++
		}
		switch part := name[begin:end]; part {
		case "", ".":
		case "..":
			for n > 0 && b[n-1] != '/' {
				n--
			}
			n = max(n-1, 0)
		default:
			if n > 0 {
				b[n] = '/'
				n++
			}
			n += copy(b[n:], part)
		}
		begin = end + 1
	}
	return View(b[:n])
}

// Split is what is before the last slash of a clean name, and what is after it.
func Split(name string) (dir, base string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// MakeDirIn returns an O_PATH descriptor of the directory name below root, making what is missing of it with mode 0755.
func MakeDirIn(root int, name string) (int, *Fault) {
	fd, e := openDirIn(root, name)
	if e == 0 || e != unix.ENOENT {
		return fd, Wrap("open", name, e)
	}
	clean := Clean(name)
	parent, e := Call(unix.SYS_FCNTL, uintptr(root), unix.F_DUPFD_CLOEXEC, 3)
	if e != 0 {
		return -1, Wrap("dup", name, e)
	}
	for begin, end := 0, 0; begin < len(clean); begin = end + 1 {
		for end = begin; end < len(clean) && clean[end] != '/'; {
			end++
		}
		fd, f := makeDir(root, parent, clean[:end], clean[begin:end])
		Close(parent)
		if f != nil {
			return -1, f
		}
		parent = fd
	}
	return parent, nil
}

func openDirIn(root int, name string) (int, Errno) {
	return OpenIn(root, name, unix.O_PATH|unix.O_DIRECTORY)
}

// makeDir opens the directory name below root, which is base in parent, or makes it.
func makeDir(root, parent int, name, base string) (int, *Fault) {
	fd, e := openDirIn(root, name)
	if e != unix.ENOENT {
		return fd, Wrap("open", name, e)
	}
	// EEXIST is a dangling symbolic link: the second open reports it.
	if e = Path(unix.SYS_MKDIRAT, parent, base, 0o755); e != 0 && e != unix.EEXIST {
		return -1, Wrap("mkdir", name, e)
	}
	fd, e = openDirIn(root, name)
	return fd, Wrap("open", name, e)
}

// MakeFileIn returns an O_PATH descriptor of the file (of any type) name below root, making an empty one and its directories if it is
// missing.
func MakeFileIn(root int, name string) (int, *Fault) {
	fd, e := OpenIn(root, name, unix.O_PATH)
	if e == 0 || e != unix.ENOENT {
		return fd, Wrap("open", name, e)
	}
	clean := Clean(name)
	folder, base := Split(clean)
	dir, f := MakeDirIn(root, Text("/", folder))
	if f != nil {
		return -1, f
	}
	fd, e = Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o644)
	Close(dir)
	if e == 0 {
		Close(fd)
	} else if e != unix.EEXIST {
		return -1, Wrap("create", Text("/", clean), e)
	}
	fd, e = OpenIn(root, clean, unix.O_PATH)
	return fd, Wrap("open", name, e)
}
