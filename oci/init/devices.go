package main

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// devices makes device nodes and symbolic links below the root.
func (s *setup) devices(devices []plan.Device, links []plan.Link) *bare.Fault {
	for i := range devices {
		mark := bare.Mark()
		if f := s.device(&devices[i]); f != nil {
			return f.In("make device", devices[i].Path)
		}
		bare.Release(mark)
	}
	for i := range links {
		mark := bare.Mark()
		if f := s.link(&links[i]); f != nil {
			return f.In("link", links[i].Path)
		}
		bare.Release(mark)
	}
	return nil
}

// link makes a symbolic link, unless something is there.
func (s *setup) link(l *plan.Link) *bare.Fault {
	dir, name, f := s.place(l.Path)
	if f != nil {
		return f
	}
	e := bare.Symlinkat(l.Target, dir, name)
	if e == unix.EEXIST && name == "ptmx" {
		// An image's own /dev/ptmx node would open the host's terminals.
		if e = bare.Path(unix.SYS_UNLINKAT, dir, name, 0); e == 0 {
			e = bare.Symlinkat(l.Target, dir, name)
		}
	}
	bare.Close(dir)
	if e == unix.EEXIST {
		return nil
	}
	return bare.Wrap("", "", e)
}

// place is the directory of what is to be made at a path below the root, made if it is missing, and the name in it.
func (s *setup) place(path string) (dir int, name string, f *bare.Fault) {
	folder, name := bare.Split(bare.Clean(path))
	dir, f = bare.MakeDirIn(s.root, bare.Text("/", folder))
	return dir, name, f
}

func (s *setup) device(d *plan.Device) *bare.Fault {
	if d.Bind {
		return s.bindDevice(d)
	}
	dir, name, f := s.place(d.Path)
	if f != nil {
		return f
	}
	e := bare.Path(unix.SYS_MKNODAT, dir, name, uintptr(d.Mode), uintptr(d.Dev))
	if e == unix.EPERM {
		bare.Close(dir)
		return s.bindDevice(d)
	}
	if e == 0 || e == unix.EEXIST {
		e = settle(dir, name, d)
	}
	bare.Close(dir)
	return bare.Wrap("", "", e)
}

// settle gives a device node its owner and mode, and makes sure that it is what it is to be.
func settle(dir int, name string, d *plan.Device) bare.Errno {
	// By descriptor, so that what is changed is what is checked.
	fd, e := bare.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if e != 0 {
		return e
	}
	var st unix.Stat_t
	if e := bare.Fstat(fd, &st); e != 0 {
		return e
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || (st.Rdev != d.Dev && d.Mode&unix.S_IFMT != unix.S_IFIFO) {
		return unix.EEXIST
	}
	if e := bare.Path(unix.SYS_FCHOWNAT, fd, "", uintptr(d.UID), uintptr(d.GID), unix.AT_EMPTY_PATH); e != 0 {
		return e
	}
	bare.Close(fd)
	// The umask took bits away, and fchmodat2 by descriptor is newer than the
	// kernels that we support. The directory is ours alone until we pivot.
	return bare.Path(unix.SYS_FCHMODAT, dir, name, uintptr(d.Mode&0o7777))
}

// bindDevice mounts the host's node, for user namespaces, where none can be made.
func (s *setup) bindDevice(d *plan.Device) *bare.Fault {
	tree, f := bare.CloneTree(unix.AT_FDCWD, d.Path, false)
	if f != nil {
		return f
	}
	target, f := bare.MakeFileIn(s.root, d.Path)
	if f != nil {
		return f
	}
	f = bare.Attach(tree, target, d.Path)
	bare.Close(tree, target)
	return f
}

// console makes a terminal of the container's own devpts, sends its master to
// the launcher, and keeps the slave for the program. When onDev, the slave is
// also mounted on /dev/console.
func (s *setup) console(p *plan.Process, onDev bool) *bare.Fault {
	master, e := bare.OpenIn(s.root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	if e != 0 {
		return bare.Wrap("open", "/dev/pts/ptmx", e).In("open", "terminal")
	}
	var fs unix.Statfs_t
	if e := bare.Fstatfs(master, &fs); e != 0 || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return bare.Wrap("open terminal: not a devpts", "/dev/pts/ptmx", unix.EINVAL)
	}
	unlocked := int32(0)
	if _, e := bare.Second(unix.SYS_IOCTL, uintptr(master), unix.TIOCSPTLCK, &unlocked); e != 0 {
		return bare.Wrap("unlock", "terminal", e)
	}
	if s.slave, e = bare.Call(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC); e != 0 {
		return bare.Wrap("open", "terminal", e)
	}
	if p.Width != 0 || p.Height != 0 {
		size := unix.Winsize{Row: p.Height, Col: p.Width}
		if _, e := bare.Second(unix.SYS_IOCTL, uintptr(master), unix.TIOCSWINSZ, &size); e != 0 {
			return bare.Wrap("resize", "terminal", e)
		}
	}
	if onDev {
		target, f := bare.MakeFileIn(s.root, "/dev/console")
		if f != nil {
			return f
		}
		if f := clone(s.slave, target, "/dev/console", 0); f != nil {
			return f
		}
	}
	f := s.send(plan.MsgConsole, "", master)
	bare.Close(master)
	return f
}

// takeTerminal makes the terminal this session's and the standard streams.
func (s *setup) takeTerminal() *bare.Fault {
	if _, e := bare.Call(unix.SYS_IOCTL, uintptr(s.slave), unix.TIOCSCTTY, 0); e != 0 {
		return bare.Wrap("take", "terminal", e)
	}
	for fd := range uintptr(3) {
		if _, e := bare.Call(unix.SYS_DUP3, uintptr(s.slave), fd, 0); e != 0 {
			return bare.Wrap("take", "terminal", e)
		}
	}
	return nil
}
