package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// maxOption is the longest value that fsconfig(2) takes, in bytes.
const maxOption = 255

// stack describes one overlay: lower directories from the top down, and the
// upper and work directories unless it is read-only.
type stack struct {
	lower       []string
	upper, work string
	// mapped is a descriptor of the user namespace whose IDs the lower
	// directories' files get, 0 for none. The upper directory is not mapped: the
	// kernel works in it as the host's root, whom the mapping does not have.
	mapped int
	// metacopy copies a file's owner and mode up without its data when only
	// these change. Such an upper directory means nothing without its lower ones.
	metacopy bool
	// context is the SELinux context of all files, in place of their own; empty for their own.
	context string
}

// mount makes a detached overlay mount and returns its descriptor. Nothing can
// reach it but through the descriptor until attach, and when the process dies
// it is gone.
func (o stack) mount() (fd int, err error) {
	if o.mapped == 0 {
		fd, err = o.create()
		if !errors.Is(err, unix.EINVAL) {
			return fd, err
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fd, err = onThread(o.mountApart)
	}()
	<-done
	if err != nil {
		return -1, fmt.Errorf("mount overlay of %d layers: %w", len(o.lower), err)
	}
	return fd, nil
}

// mountApart makes the mount in a mount namespace of its own, which the thread
// gets for good: nobody else sees the mounts that are made on the way.
func (o stack) mountApart() (int, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("set propagation of /: %w", err)
	}
	if o.mapped != 0 {
		if err := o.mapLower(); err != nil {
			return -1, err
		}
		fd, err := o.create()
		if !errors.Is(err, unix.EINVAL) {
			return fd, err
		}
	}
	// Kernels before 6.7 do not know "lowerdir+", and some notice only at the end.
	return o.mountBefore67()
}

// mapLower mounts an id-mapped view of each lower directory over itself: the
// kernel takes lower directories from the caller's mount namespace alone.
func (o stack) mapLower() error {
	for _, dir := range o.lower {
		fd, err := linux.CloneTree(unix.AT_FDCWD, dir, false)
		if err != nil {
			return err
		}
		err = linux.SetMountAttr(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(o.mapped)}, dir)
		if err == nil {
			err = attach(fd, dir)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// create gives the lower directories one by one, so that neither their number
// nor the length of their names is limited by a page.
func (o stack) create() (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	held := &heldPaths{}
	defer held.close()
	options := [][2]string{{"source", "overlay"}}
	for _, l := range o.lower {
		options = append(options, [2]string{"lowerdir+", l})
	}
	if o.upper != "" {
		options = append(options, [2]string{"upperdir", o.upper}, [2]string{"workdir", o.work})
	}
	if o.context != "" {
		options = append(options, [2]string{"context", o.context})
	}
	for _, kv := range options {
		v, err := held.short(kv[1])
		if err != nil {
			return -1, err
		}
		if err := unix.FsconfigSetString(fs, kv[0], v); err != nil {
			return -1, fmt.Errorf("set overlay's %s to %s: %w", kv[0], kv[1], err)
		}
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if o.upper != "" {
		attrs = 0
		// A container's files need not survive a power cut; images are synced
		// by hand.
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return -1, fmt.Errorf("set overlay's volatile: %w", err)
		}
		if err := unix.FsconfigSetString(fs, "metacopy", onOff[o.metacopy]); err != nil {
			return -1, fmt.Errorf("set overlay's metacopy: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create overlay of %d layers: %w", len(o.lower), err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	return m, nil
}

// onThread calls f in a thread that ends with the goroutine it is called from.
func onThread(f func() (int, error)) (fd int, err error) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		return f() // never unlocked
	}
	// The main thread cannot end. It stands still here, so that the next
	// goroutine gets another.
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fd, err = onThread(f)
	}()
	<-done
	return fd, err
}

// mountBefore67 uses mount(2), which takes all directories in one page. They
// fit since they are named by descriptor, as seen by a thread whose working
// directory is that of the descriptors. The mount, which is made on the uppermost
// layer, is nowhere but in the copy that is returned. Preconditions: the thread
// has a mount namespace of its own.
func (o stack) mountBefore67() (int, error) {
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return -1, fmt.Errorf("enter /proc/self/fd: %w", err)
	}
	held := &heldPaths{} // of this mount namespace
	defer held.close()
	dirs := o.lower
	if o.upper != "" {
		dirs = append(slices.Clone(dirs), o.upper, o.work)
	}
	names := make([]string, len(dirs))
	for i, dir := range dirs {
		p, err := held.open(dir)
		if err != nil {
			return -1, err
		}
		names[i] = filepath.Base(p)
	}
	n := len(o.lower)
	data, flags := "lowerdir="+strings.Join(names[:n], ":"), uintptr(unix.MS_RDONLY)
	if o.upper != "" {
		data, flags = data+",volatile,metacopy="+onOff[o.metacopy]+",upperdir="+names[n]+",workdir="+names[n+1], 0
	}
	if o.context != "" {
		data += `,context="` + o.context + `"` // it has commas
	}
	if err := unix.Mount("overlay", o.lower[0], "overlay", flags, data); err != nil {
		return -1, err
	}
	return unix.OpenTree(unix.AT_FDCWD, o.lower[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// onOff is how overlayfs writes a bool.
var onOff = map[bool]string{true: "on", false: "off"}

// heldPaths names directories by descriptor where their paths are too long. The
// names hold while it is open.
type heldPaths struct{ fds []int }

func (h *heldPaths) short(p string) (string, error) {
	if len(p) <= maxOption {
		return p, nil
	}
	return h.open(p)
}

func (h *heldPaths) open(p string) (string, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", p, err)
	}
	h.fds = append(h.fds, fd)
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

func (h *heldPaths) close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
}

// attach puts a detached mount at a directory.
func attach(mount int, dir string) error {
	err := unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach snapshot at %s: %w", dir, err)
	}
	return nil
}

// tryOverlay makes and forgets an overlay in the store's folder.
func (s *Store) tryOverlay() error {
	dir, err := s.temp("probe")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o := stack{lower: []string{filepath.Join(dir, "lower")}, upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work")}
	for _, d := range []string{o.lower[0], o.upper, o.work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	fd, err := o.mount()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
