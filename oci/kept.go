package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// OpenInitIn is [OpenInit] for programs that make one container and end. Copying the program into memory is a tenth of their
// work, so the copy is kept in dir, which only root can write, and sealed in another way: it is executed through an overlay
// without an upper layer, which nobody can write through, whatever they may remount. Where that cannot be, it is OpenInit.
// There is one copy, of the version that was used last; a reboot, after which dir is empty, ends it.
func OpenInitIn(dir string) (*Init, error) {
	i, kept := keptInit(dir)
	if kept == nil {
		return i, nil
	}
	i, err := OpenInit()
	if err != nil && !errors.Is(kept, ErrNoInit) {
		err = errors.Join(err, kept)
	}
	return i, err
}

// keptPrefix begins the names of kept programs' folders, which no container can have.
const keptPrefix = "@init-"

// keptInit returns the kept program through its overlay.
func keptInit(dir string) (*Init, error) {
	sum, err := programs.ReadFile("bin/yare-init.sum")
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(sum) < 16:
		return nil, ErrNoInit
	case err != nil:
		return nil, fmt.Errorf("read sum of container init: %w", err)
	case strings.ContainsAny(dir, ":,\\"):
		return nil, fmt.Errorf("keep container init in %s: overlayfs takes no path with colon, comma or backslash", dir)
	}
	info, err := fs.Stat(programs, "bin/yare-init")
	if err != nil {
		return nil, err
	}
	home := filepath.Join(dir, keptPrefix+string(sum[:16]))
	if !intact(home, info.Size()) {
		if err := keepInit(home); err != nil {
			return nil, err
		}
	}
	tree, err := linux.NewFS("overlay", "overlay", []linux.Option{{Key: "lowerdir", Value: home + "/program:" + home + "/nothing"}},
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(tree, "yare-init", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(tree)
		return nil, linux.Wrap("open", "yare-init", err)
	}
	return &Init{fd: fd, mount: tree}, nil
}

// intact tells whether the program is there as it was kept: whole, and root's alone.
func intact(home string, size int64) bool {
	for _, path := range []string{home, home + "/program", home + "/program/yare-init"} {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || st.Uid != 0 || st.Mode&0o022 != 0 || st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return false
		}
		if path == home+"/program/yare-init" && (st.Size != size || st.Mode&unix.S_IFMT != unix.S_IFREG) {
			return false
		}
	}
	return true
}

// keepInit writes the program down, and removes those of other versions. Of several at once each writes the same; one of
// another version whose program goes meanwhile does without.
func keepInit(home string) error {
	program, err := programs.ReadFile("bin/yare-init")
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(home), home, home + "/program", home + "/nothing"} {
		mode := fs.FileMode(0o700)
		if dir == filepath.Dir(home) {
			mode = 0o711
		}
		if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.MkdirAll(dir, mode); err != nil {
				return err
			}
		}
	}
	f, err := os.CreateTemp(home, "new-")
	if err != nil {
		return fmt.Errorf("keep container init: %w", err)
	}
	_, err = f.Write(program)
	// Not to be read, as in linux.SealedCopy.
	err = errors.Join(err, f.Chmod(0o111), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), home+"/program/yare-init")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep container init: %w", err), os.Remove(f.Name()))
	}
	entries, err := os.ReadDir(filepath.Dir(home))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), keptPrefix) && e.Name() != filepath.Base(home) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(filepath.Dir(home), e.Name()))) // what runs from it has it open
		}
	}
	return err
}
