package bare

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the same names. Descriptors that they make are closed on exec. What signals interrupt goes on.

// Call is any that takes only numbers.
func Call(trap uintptr, args ...uintptr) (int, Errno) {
	var a [6]uintptr
	copy(a[:], args)
	for {
		r, _, e := syscall.RawSyscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5])
		if e != unix.EINTR || trap == unix.SYS_CLOSE {
			return int(r), e
		}
	}
}

// Close closes descriptors, ignoring negative ones.
func Close(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_, _ = Call(unix.SYS_CLOSE, uintptr(fd))
		}
	}
}

// Exit ends the process.
func Exit(code int) {
	for {
		_, _ = Call(unix.SYS_EXIT_GROUP, uintptr(code))
	}
}

// Prctl is prctl(2) with numbers.
func Prctl(option int, args ...uintptr) Errno {
	var a [4]uintptr
	copy(a[:], args)
	_, e := Call(unix.SYS_PRCTL, uintptr(option), a[0], a[1], a[2], a[3])
	return e
}

// at is the descriptor of a directory as the kernel takes it.
func at(dir int) uintptr { return uintptr(dir) }

// Openat opens a file.
func Openat(dir int, path string, flags int, mode uint32) (int, Errno) {
	for {
		fd, _, e := syscall.RawSyscall6(unix.SYS_OPENAT, at(dir), uintptr(unsafe.Pointer(CString(path))), uintptr(flags|unix.O_CLOEXEC), uintptr(mode), 0, 0)
		if e != unix.EINTR {
			return int(fd), e
		}
	}
}

// Open opens a file by its path from the root or the working directory.
func Open(path string, flags int) (int, Errno) { return Openat(unix.AT_FDCWD, path, flags, 0) }

// Openat2 opens a file as often as something races with it.
func Openat2(dir int, path string, how unix.OpenHow) (int, Errno) {
	how.Flags |= unix.O_CLOEXEC
	name := CString(path)
	for {
		fd, _, e := syscall.RawSyscall6(unix.SYS_OPENAT2, at(dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&how)), unix.SizeofOpenHow, 0, 0)
		// EAGAIN: a rename or mount raced with the walk; nothing was decided.
		if e != unix.EAGAIN && e != unix.EINTR {
			return int(fd), e
		}
	}
}

// Read reads once.
func Read(fd int, b []byte) (int, Errno) {
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// Pread reads once from a place.
func Pread(fd int, b []byte, from int) (int, Errno) {
	n, e := Pointer(unix.SYS_PREAD64, fd, unsafe.SliceData(b), uintptr(len(b)), uintptr(from))
	return n, e
}

// Pipe makes a pipe.
func Pipe() (read, write int, e Errno) {
	var fds [2]int32
	_, _, e = syscall.RawSyscall(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&fds)), unix.O_CLOEXEC, 0)
	return int(fds[0]), int(fds[1]), e
}

// Fork makes a copy of the process, in which pid is 0, and a pidfd of it. Not by clone3, which the usual filters deny, since they
// cannot see what it is asked for.
func Fork() (pid, pidfd int, e Errno) {
	var fd int32
	r, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PIDFD|uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&fd)), 0, 0, 0)
	return int(r), int(fd), e
}

// Write writes once.
func Write(fd int, s string) (int, Errno) {
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(s))), uintptr(len(s)))
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// Fstat tells what an open file is.
func Fstat(fd int, st *unix.Stat_t) Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	return e
}

// Stat tells what there is at a path. It takes no descriptor: the plan may have left us none.
func Stat(dir int, path string, flags int, st *unix.Stat_t) Errno {
	_, _, e := syscall.RawSyscall6(fstatat, at(dir), uintptr(unsafe.Pointer(CString(path))), uintptr(unsafe.Pointer(st)), uintptr(flags), 0, 0)
	return e
}

// Fstatfs tells what file system an open file is in.
func Fstatfs(fd int, fs *unix.Statfs_t) Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_FSTATFS, uintptr(fd), uintptr(unsafe.Pointer(fs)), 0)
	return e
}

// Path is any call whose arguments are a directory, a path below it and numbers.
func Path(trap uintptr, dir int, path string, args ...uintptr) Errno {
	var a [4]uintptr
	copy(a[:], args)
	_, _, e := syscall.RawSyscall6(trap, at(dir), uintptr(unsafe.Pointer(CString(path))), a[0], a[1], a[2], a[3])
	return e
}

// Name is any call whose arguments are a path and numbers.
func Name(trap uintptr, path string, args ...uintptr) (int, Errno) {
	var a [3]uintptr
	copy(a[:], args)
	r, _, e := syscall.RawSyscall6(trap, uintptr(unsafe.Pointer(CString(path))), a[0], a[1], a[2], 0, 0)
	return int(r), e
}

// Symlinkat makes a symbolic link.
func Symlinkat(target string, dir int, path string) Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_SYMLINKAT, uintptr(unsafe.Pointer(CString(target))), at(dir), uintptr(unsafe.Pointer(CString(path))))
	return e
}

// Fsetxattr sets an extended attribute of an open file.
func Fsetxattr(fd int, name, value string) Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_FSETXATTR, uintptr(fd), uintptr(unsafe.Pointer(CString(name))), uintptr(unsafe.Pointer(CString(value))),
		uintptr(len(value)), 0, 0)
	return e
}

// PivotRoot makes a directory the root, with the old one on top of it.
func PivotRoot(dir string) Errno {
	name := uintptr(unsafe.Pointer(CString(dir)))
	_, _, e := syscall.RawSyscall(unix.SYS_PIVOT_ROOT, name, name, 0)
	return e
}

// Pointer is any call whose arguments are a number, the address of n bytes for the kernel, and numbers.
func Pointer[T any](trap uintptr, first int, p *T, args ...uintptr) (int, Errno) {
	var a [4]uintptr
	copy(a[:], args)
	for {
		r, _, e := syscall.RawSyscall6(trap, uintptr(first), uintptr(unsafe.Pointer(p)), a[0], a[1], a[2], a[3])
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// Second is any call whose arguments are two numbers and an address.
func Second[T any](trap, first, second uintptr, p *T) (int, Errno) {
	r, _, e := syscall.RawSyscall(trap, first, second, uintptr(unsafe.Pointer(p)))
	return int(r), e
}

// Capset sets the capabilities of the process.
func Capset(header *unix.CapUserHeader, sets *[2]unix.CapUserData) Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(sets)), 0)
	return e
}

// Getcwd fills b with the path of the working directory and a zero byte.
func Getcwd(b []byte) (int, Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_GETCWD, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	return int(n), e
}

// Readlinkat fills b with the target of a symbolic link.
func Readlinkat(dir int, path string, b []byte) (int, Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_READLINKAT, at(dir), uintptr(unsafe.Pointer(CString(path))), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), 0, 0)
	return int(n), e
}

// Execve executes a program. It returns only if that fails.
func Execve(path string, args, env []string) Errno {
	name, argv, envv := CString(path), CStrings(args), CStrings(env)
	_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envv)))
	return e
}

// Poll waits, for as many milliseconds, until there is something to read; a negative time is for ever.
func Poll(fd, timeout int) (ready bool, e Errno) {
	file := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	left := unix.NsecToTimespec(int64(timeout) * 1e6)
	limit := &left // Linux writes down what is left of it
	if timeout < 0 {
		limit = nil
	}
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&file)), 1, uintptr(unsafe.Pointer(limit)), 0, 0, 0)
		if e != unix.EINTR {
			return int(n) > 0, e
		}
	}
}

// Sealed is linux.SealedFile for what is only read.
func Sealed(name, content string) (int, *Fault) {
	fd, _, e := syscall.RawSyscall(unix.SYS_MEMFD_CREATE, uintptr(unsafe.Pointer(CString(name))), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL, 0)
	if e == unix.EINVAL { // before 6.3 all were executable
		fd, _, e = syscall.RawSyscall(unix.SYS_MEMFD_CREATE, uintptr(unsafe.Pointer(CString(name))), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING, 0)
	}
	if e != 0 {
		return -1, Wrap("create memory file", name, e)
	}
	for len(content) > 0 {
		n, e := Write(int(fd), content)
		if e != 0 {
			Close(int(fd))
			return -1, Wrap("write memory file", name, e)
		}
		content = content[n:]
	}
	_, e = Call(unix.SYS_FCNTL, fd, unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if e == 0 {
		_, e = Call(unix.SYS_LSEEK, fd, 0, unix.SEEK_SET)
	}
	if e != 0 {
		Close(int(fd))
		return -1, Wrap("seal memory file", name, e)
	}
	return int(fd), nil
}
