// Package rmtree removes trees that programs of others have made: as os.RemoveAll does, which it stands in place of wherever pods write.
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// mostOpen is how many folders of a tree are open at once while it is removed. What is deeper is moved up first.
const mostOpen = 64

// Remove removes a file, or a folder with all in it; that there is none is no error. Unlike os.RemoveAll it has few files open however
// deep the tree is, and says of an error where the tree is, not the whole way down: programs of others make trees. Several may remove the same tree.
func Remove(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return linux.Wrap("remove", path, err)
	}
	defer unix.Close(parent)
	r := remover{top: -1}
	return linux.Wrap("remove", path, r.entry(parent, filepath.Base(path), 0))
}

// remover is the removal of one tree.
type remover struct {
	top   int // the tree's folder, to which deep ones are moved; -1 before it is open
	moved int // how many were
}

// entry removes one entry of a folder that is depth levels below the top's parent.
func (r *remover) entry(in int, name string, depth int) error {
	err := unix.Unlinkat(in, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	switch e := unix.Unlinkat(in, name, unix.AT_REMOVEDIR); e {
	case nil, unix.ENOENT:
		return nil
	case unix.ENOTDIR: // a file that may not be removed
		return err
	case unix.ENOTEMPTY, unix.EEXIST:
	default:
		return e
	}
	if depth > mostOpen {
		return r.up(in, name)
	}
	dir, err := unix.Openat(in, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return missing(err)
	}
	f := os.NewFile(uintptr(dir), name)
	defer f.Close()
	if r.top < 0 {
		r.top = dir
	}
	if err := r.content(f, depth); err != nil {
		return err
	}
	return missing(unix.Unlinkat(in, name, unix.AT_REMOVEDIR))
}

// missing takes it for no error that somebody else was faster.
func missing(err error) error {
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// up moves a folder to the top, where it is met again.
func (r *remover) up(in int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(in, name, r.top, "moved-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return missing(err)
		}
	}
}

// content removes all that is in a folder: what was moved into it meanwhile too.
func (r *remover) content(f *os.File, depth int) error {
	for {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := f.Readdirnames(1024)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // the latter of a folder that is itself removed
			return nil
		}
		if err != nil {
			return err
		}
		var first error
		gone := 0
		for _, name := range names {
			if err := r.entry(int(f.Fd()), name, depth+1); err == nil {
				gone++
			} else if first == nil {
				first = err
				if _, bare := err.(unix.Errno); bare {
					first = fmt.Errorf("%q: %w", name, err)
				}
			}
		}
		if gone == 0 || first != nil && len(names) < 1024 {
			return first
		}
	}
}
