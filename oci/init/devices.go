package main

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// devices makes device nodes and symbolic links below the root.
func (s *setup) devices(devices []plan.Device, links []plan.Link) error {
	for i := range devices {
		if err := s.device(&devices[i]); err != nil {
			return linux.Wrap("make device", devices[i].Path, err)
		}
	}
	for _, l := range links {
		dir, err := linux.MakeDirIn(s.root, path.Dir(l.Path))
		if err != nil {
			return linux.Wrap("link", l.Path, err)
		}
		err = unix.Symlinkat(l.Target, dir, path.Base(l.Path))
		if err == unix.EEXIST && path.Base(l.Path) == "ptmx" {
			// An image's own /dev/ptmx node would open the host's terminals.
			if err = unix.Unlinkat(dir, path.Base(l.Path), 0); err == nil {
				err = unix.Symlinkat(l.Target, dir, path.Base(l.Path))
			}
		}
		unix.Close(dir)
		if err != nil && err != unix.EEXIST {
			return linux.Wrap("link", l.Path, err)
		}
	}
	return nil
}

func (s *setup) device(d *plan.Device) error {
	if d.Bind {
		return s.bindDevice(d)
	}
	dir, err := linux.MakeDirIn(s.root, path.Dir(d.Path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := path.Base(d.Path)
	if err := unix.Mknodat(dir, name, d.Mode, int(d.Dev)); err != nil {
		if err == unix.EPERM {
			return s.bindDevice(d)
		}
		if err != unix.EEXIST {
			return err
		}
	}
	// By descriptor, so that what is changed is what is checked.
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || (st.Rdev != d.Dev && d.Mode&unix.S_IFMT != unix.S_IFIFO) {
		return unix.EEXIST
	}
	if err := unix.Fchownat(fd, "", int(d.UID), int(d.GID), unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	// The umask took bits away, and fchmodat2 by descriptor is newer than the
	// kernels that we support. The directory is ours alone until we pivot.
	return unix.Fchmodat(dir, name, d.Mode&0o7777, 0)
}

// bindDevice mounts the host's node, for user namespaces, where none can be made.
func (s *setup) bindDevice(d *plan.Device) error {
	tree, err := linux.CloneTree(unix.AT_FDCWD, d.Path, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := linux.MakeFileIn(s.root, d.Path)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return linux.Attach(tree, target, d.Path)
}

// console makes a terminal of the container's own devpts, sends its master to
// the launcher, and keeps the slave for the program. When onDev, the slave is
// also mounted on /dev/console.
func (s *setup) console(p *plan.Process, onDev bool) error {
	master, err := linux.OpenIn(s.root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	if err != nil {
		return linux.Wrap("open", "terminal", err)
	}
	defer unix.Close(master)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(master, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return linux.Wrap("open terminal: not a devpts", "/dev/pts/ptmx", unix.EINVAL)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return linux.Wrap("unlock", "terminal", err)
	}
	slave, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return linux.Wrap("open", "terminal", e)
	}
	s.slave = int(slave)
	if p.Width != 0 || p.Height != 0 {
		size := &unix.Winsize{Row: p.Height, Col: p.Width}
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size); err != nil {
			return linux.Wrap("resize", "terminal", err)
		}
	}
	if onDev {
		target, err := linux.MakeFileIn(s.root, "/dev/console")
		if err != nil {
			return err
		}
		if err := clone(s.slave, target, "/dev/console", 0); err != nil {
			return err
		}
	}
	return s.send(plan.MsgConsole, "", master)
}

// takeTerminal makes the terminal this session's and the standard streams.
func (s *setup) takeTerminal() error {
	if err := unix.IoctlSetInt(s.slave, unix.TIOCSCTTY, 0); err != nil {
		return linux.Wrap("take", "terminal", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(s.slave, fd, 0); err != nil {
			return linux.Wrap("take", "terminal", err)
		}
	}
	return nil
}
