// Package diskusage measures what is in directories. It is not part of package linux because that is linked into yare-init, which
// package os would make a third larger and slower to start.
package diskusage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Usage is space taken on a file system: Bytes of whole blocks, and Inodes.
type Usage struct{ Bytes, Inodes int64 }

// Of is what the directory dir takes with all that is in it. Files with several names count once; what is mounted in it,
// what vanishes meanwhile and what lies deeper than a path can name does not count. Whoever writes to it meanwhile cannot lead
// it elsewhere. A dir that is not there takes nothing.
func Of(dir string) (Usage, error) {
	var u Usage
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return u, nil
	}
	if err != nil {
		return u, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(root)
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return u, fmt.Errorf("stat %s: %w", dir, err)
	}
	u.Bytes, u.Inodes = st.Blocks*512, 1
	seen := map[uint64]bool{} // inodes with several names
	for below := []string{"."}; len(below) > 0; {
		name := below[len(below)-1]
		dirs, err := u.add(root, name, seen)
		if err != nil {
			return u, fmt.Errorf("measure %s: %w", filepath.Join(dir, name), err)
		}
		below = append(below[:len(below)-1], dirs...)
	}
	return u, nil
}

// add counts what is in the directory name below root, and returns the directories in it.
func (u *Usage) add(root int, name string, seen map[uint64]bool) (dirs []string, err error) {
	fd, err := linux.Openat2(root, name, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	for _, gone := range []syscall.Errno{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG} {
		if errors.Is(err, gone) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
				continue
			} else if err != nil {
				return nil, err
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			switch {
			case isDir:
				dirs = append(dirs, filepath.Join(name, n))
			case st.Nlink > 1 && seen[st.Ino]:
				continue
			case st.Nlink > 1:
				seen[st.Ino] = true
			}
			u.Bytes += st.Blocks * 512
			u.Inodes++
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
