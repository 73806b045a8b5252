package image

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/rmtree"
)

// maxLinks bounds the symbolic links followed on the way to one entry, as the
// kernel does.
const maxLinks = 40

// tree is a directory tree that an archive is unpacked into. Paths are relative
// to its root, cleaned, without a leading slash; "" is the root itself. The
// kernel resolves them inside the root, whatever links the tree contains.
type tree struct {
	root int

	// The parent resolved last: archives list a directory's entries together.
	// Not used again after a removal, since a link may take its place.
	lastDir string
	lastFD  int
}

// newTree takes over fd, a descriptor of the root directory.
func newTree(fd int) *tree { return &tree{root: fd, lastFD: -1} }

func (t *tree) close() {
	t.forget()
	unix.Close(t.root)
}

func (t *tree) forget() {
	if t.lastFD >= 0 {
		unix.Close(t.lastFD)
		t.lastFD = -1
	}
}

// open resolves p inside the root. The last component is not followed when
// flags has O_NOFOLLOW.
func (t *tree) open(p string, flags uint64) (int, error) {
	if p == "" {
		p = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(t.root, p, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// parent returns a descriptor of p's directory, which is made when it is
// missing and mk is set, and p's last component. The descriptor is the tree's.
func (t *tree) parent(p string, mk bool) (dirFD int, base string, err error) {
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if t.lastFD >= 0 && t.lastDir == dir {
		return t.lastFD, base, nil
	}
	fd, err := -1, error(nil)
	if mk {
		fd, err = t.mkdirs(dir, 0)
	} else {
		fd, err = t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return -1, "", err
	}
	t.forget()
	t.lastDir, t.lastFD = dir, fd
	return fd, base, nil
}

// mkdirs opens the directory dir and makes what is missing of it. A link to
// nowhere on the way gets its target made, as extracting in a chroot does.
func (t *tree) mkdirs(dir string, links int) (int, error) {
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, unix.ENOENT) || dir == "" {
		return fd, err
	}
	up, base := path.Split(dir)
	up = strings.TrimSuffix(up, "/")
	upFD, err := t.mkdirs(up, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(upFD)
	err = unix.Mkdirat(upFD, base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		target, err := readlinkat(upFD, base)
		if err != nil {
			return -1, err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", up, target)
		}
		return t.mkdirs(strings.TrimPrefix(path.Clean(target), "/"), links)
	}
	if err != nil {
		return -1, err
	}
	return t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

func readlinkat(dirFD int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirFD, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// remove deletes the entry base of a directory, with everything below it. It
// follows no link. A missing entry is no error.
func (t *tree) remove(dirFD int, base string) error {
	// The descriptor may be the remembered parent, which the caller goes on to
	// use: it stays open, but is found no more ("\x00" is no path).
	t.lastDir = "\x00"
	err := unix.Unlinkat(dirFD, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return rmtree.Remove(fmt.Sprintf("/proc/self/fd/%d/%s", dirFD, base))
}

// kind is the file type bits of an entry, 0 when there is none.
func kind(dirFD int, base string) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dirFD, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Mode & unix.S_IFMT, err
}
