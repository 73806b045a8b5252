package linux

import "golang.org/x/sys/unix"

// SealedFile returns a memory file with the given content that nobody can
// change any more, by any descriptor. Executable ones may be executed through
// FDPath.
func SealedFile(name string, data []byte, executable bool) (int, error) {
	return SealedCopy(name, executable, func(write func([]byte) error) error { return write(data) })
}

// SealedCopy is [SealedFile] with content that comes in pieces.
func SealedCopy(name string, executable bool, content func(write func([]byte) error) error) (int, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	kind := unix.MFD_NOEXEC_SEAL
	if executable {
		kind = unix.MFD_EXEC
	}
	fd, err := unix.MemfdCreate(name, flags|kind)
	if err == unix.EINVAL { // before 6.3 all were executable
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, wrap("create memory file", name, err)
	}
	err = content(func(rest []byte) error {
		for len(rest) > 0 {
			n, err := unix.Write(fd, rest)
			if err != nil && err != unix.EINTR {
				return err
			}
			rest = rest[max(n, 0):]
		}
		return nil
	})
	if err != nil {
		unix.Close(fd)
		return -1, wrap("write memory file", name, err)
	}
	if executable {
		// Not to be read: a process of a program that its user namespace cannot
		// read is the initial one's, and root of the namespace cannot trace it.
		if err := unix.Fchmod(fd, 0o111); err != nil {
			unix.Close(fd)
			return -1, wrap("change mode of memory file", name, err)
		}
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, wrap("seal memory file", name, err)
	}
	return fd, nil
}
