package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxOption is the longest value that fsconfig(2) takes, in bytes.
const maxOption = 255

// stack describes one overlay: lower directories from the top down, and the
// upper and work directories unless it is read-only.
type stack struct {
	lower       []string
	upper, work string
}

// mount makes a detached overlay mount and returns its descriptor. Nothing can
// reach it but through the descriptor until attach, and when the process dies
// it is gone.
func (o stack) mount() (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	held := &heldPaths{}
	defer held.close()
	if err := o.setLower(fs, held); err != nil {
		return -1, err
	}
	options := [][2]string{{"source", "overlay"}}
	if o.upper != "" {
		options = append(options, [2]string{"upperdir", o.upper}, [2]string{"workdir", o.work})
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
	if o.upper != "" {
		// A container's files need not survive a power cut; images are synced
		// by hand. Kernels before 5.10 do not know the option.
		_ = unix.FsconfigSetFlag(fs, "volatile")
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create overlay of %d layers: %w", len(o.lower), err)
	}
	attrs := 0
	if o.upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	return m, nil
}

// setLower gives the lower directories one by one, so that neither their number
// nor the length of their names is limited by a page. Kernels before 6.7 take
// one string; there descriptors keep it short.
func (o stack) setLower(fs int, held *heldPaths) error {
	for i, l := range o.lower {
		v, err := held.short(l)
		if err != nil {
			return err
		}
		err = unix.FsconfigSetString(fs, "lowerdir+", v)
		if i == 0 && errors.Is(err, unix.EINVAL) {
			return o.setLowerAtOnce(fs, held)
		}
		if err != nil {
			return fmt.Errorf("set overlay's layer %s: %w", l, err)
		}
	}
	return nil
}

func (o stack) setLowerAtOnce(fs int, held *heldPaths) error {
	short := make([]string, len(o.lower))
	for i, l := range o.lower {
		p, err := held.open(l)
		if err != nil {
			return err
		}
		short[i] = p
	}
	joined := strings.Join(short, ":")
	if len(joined) > maxOption {
		return fmt.Errorf("%d layers need overlayfs of Linux 6.7: %w", len(o.lower), errors.ErrUnsupported)
	}
	return unix.FsconfigSetString(fs, "lowerdir", joined)
}

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
		return fmt.Errorf("attach overlay at %s: %w", dir, err)
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
