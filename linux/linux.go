// Package linux is the kernel, thinly: system calls that Yare needs and the
// standard library lacks, with errors that name the object. It decides nothing.
//
// Descriptors are plain ints, owned by the caller, always close-on-exec. The
// package is linked into yare-init, so it imports neither fmt nor net.
//
// Kernels from 5.12 on are supported (openat2, the mount API by descriptor,
// mount_setattr, clone3, pidfd).
package linux

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrNotSupported means that this kernel lacks a feature. It is always wrapped
// with what was tried.
var ErrNotSupported = errors.New("not supported by this kernel")

// wrap makes "op path: cause" and turns the kernel's ways of saying that there
// is no such feature into ErrNotSupported.
func wrap(op, path string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.ENOSYS, unix.EOPNOTSUPP:
		err = unsupported{err}
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// unsupported keeps the errno beside ErrNotSupported.
type unsupported struct{ errno error }

func (u unsupported) Error() string   { return u.errno.Error() }
func (u unsupported) Unwrap() []error { return []error{u.errno, ErrNotSupported} }

// Wrap returns nil for nil, otherwise an error "op path: cause" that unwraps to
// the cause, and to ErrNotSupported where the kernel lacks the feature.
func Wrap(op, path string, err error) error { return wrap(op, path, err) }

// Retry calls f again as long as a signal interrupts it.
func Retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// CloseAll closes descriptors, ignoring negative ones.
func CloseAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// ReadFile reads a whole small file by path relative to dirfd.
func ReadFile(dirfd int, path string) ([]byte, error) {
	fd, err := unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("open", path, err)
	}
	defer unix.Close(fd)
	b, err := ReadAll(fd)
	return b, wrap("read", path, err)
}

// ReadAll reads from the descriptor to its end.
func ReadAll(fd int) ([]byte, error) {
	b := make([]byte, 0, 4096)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return b, err
		}
		if n == 0 {
			return b, nil
		}
		b = b[:len(b)+n]
	}
}

// WriteFile writes data to an existing file relative to dirfd in one write, as
// the files of procfs, sysfs and cgroupfs want it.
func WriteFile(dirfd int, path, data string) error {
	fd, err := unix.Openat(dirfd, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", path, err)
	}
	defer unix.Close(fd)
	return wrap("write", path, Retry(func() error {
		_, err := unix.Write(fd, []byte(data))
		return err
	}))
}

// CreateFile writes a regular file, which it makes or empties. It is os.WriteFile without what that does for files that can be
// waited for, which programs of a few milliseconds feel.
func CreateFile(path string, data []byte, mode uint32) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, mode)
	if err != nil {
		return wrap("create", path, err)
	}
	for len(data) > 0 && err == nil {
		n := 0
		err = Retry(func() error { n, err = unix.Write(fd, data); return err })
		data = data[max(n, 0):]
	}
	return wrap("write", path, errors.Join(err, unix.Close(fd)))
}
