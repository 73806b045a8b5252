package main

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// container turns this process into a container's first one. It returns only
// with a fault.
func (s *setup) container(p *plan.Container) *bare.Fault {
	endBySignals()
	if f := s.readPlan(p); f != nil {
		return f
	}
	if p.Outcome != 0 {
		s.outcome = s.extra(p.Outcome)
	}
	if p.NewNetwork {
		if _, e := bare.Call(unix.SYS_UNSHARE, unix.CLONE_NEWNET); e != 0 {
			return bare.Wrap("make", "network namespace", e)
		}
	}
	if p.Late {
		if f := s.enterLate(); f != nil {
			return f
		}
	}
	if f := s.openProc(); f != nil {
		return f
	}
	if p.MountNS != 0 {
		if f := s.joinMounts(s.extra(p.MountNS)); f != nil {
			return f
		}
	}
	if p.NewCgroupNS {
		if _, e := bare.Call(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP); e != 0 {
			return bare.Wrap("make", "cgroup namespace", e)
		}
	}
	if f := s.makeRoot(p); f != nil {
		return f
	}
	if f := names(p); f != nil {
		return f
	}
	if f := s.sysctls(p.Sysctls); f != nil {
		return f
	}
	if f := s.hide(p.Masked, p.Readonly); f != nil {
		return f
	}
	return s.become(&p.Process, p)
}

// enterLate waits for the v1 groups, which are made while this program starts, and enters them.
func (s *setup) enterLate() *bare.Fault {
	kind, tasks, f := bare.Receive(s.syncFD)
	if f != nil {
		return f
	}
	if kind != plan.MsgEnter {
		return bare.Wrap("wait for", "launcher", unix.ECANCELED)
	}
	for _, fd := range tasks {
		if _, e := bare.Write(int(fd), "0"); e != 0 {
			return bare.Wrap("join", "cgroup", e)
		}
		bare.Close(int(fd))
	}
	return nil
}

// openProc opens the host's procfs, while its mounts are those that we see and nobody can have put another there.
func (s *setup) openProc() *bare.Fault {
	fd, e := bare.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if e != 0 {
		return s.privateProc()
	}
	var fs unix.Statfs_t
	if e := bare.Fstatfs(fd, &fs); e != 0 || fs.Type != unix.PROC_SUPER_MAGIC {
		bare.Close(fd)
		return s.privateProc()
	}
	s.proc = fd
	return nil
}

// privateProc takes a procfs of our own in place of the host's, where that one is in parts mounted over or read-only: nobody can have
// mounted anything over its files. It is not always ours to make (in a user namespace that does not own the PID namespace), and to make
// and forget it takes the kernel as long as much of the rest.
func (s *setup) privateProc() *bare.Fault {
	fd, f := bare.NewFS("proc", "proc", nil, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if f == nil {
		s.closeProc()
		s.proc = fd
	}
	return f
}

func (s *setup) closeProc() {
	bare.Close(s.proc)
	s.proc = -1
}

// writeProc writes one file of procfs, through no mount but the one that was opened: what is written reaches the kernel.
func (s *setup) writeProc(name, value string) *bare.Fault {
	f := s.tryProc(name, value)
	unfit := f.Is(unix.EXDEV) || f.Is(unix.EROFS) || f.Is(unix.ENOENT) // the last: of another PID namespace
	if unfit && s.privateProc() == nil {
		f = s.tryProc(name, value)
	}
	return f
}

func (s *setup) tryProc(name, value string) *bare.Fault {
	how := unix.OpenHow{Flags: unix.O_WRONLY, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV}
	fd, e := bare.Openat2(s.proc, name, how)
	if e != 0 {
		return bare.Wrap("open", bare.Text("/proc/", name), e)
	}
	_, e = bare.Write(fd, value)
	bare.Close(fd)
	return bare.Wrap("write", bare.Text("/proc/", name), e)
}

func names(p *plan.Container) *bare.Fault {
	if p.Hostname != "" {
		if _, e := bare.Name(unix.SYS_SETHOSTNAME, p.Hostname, uintptr(len(p.Hostname))); e != 0 {
			return bare.Wrap("set", "hostname", e)
		}
	}
	if p.Domainname != "" {
		if _, e := bare.Name(unix.SYS_SETDOMAINNAME, p.Domainname, uintptr(len(p.Domainname))); e != 0 {
			return bare.Wrap("set", "domain name", e)
		}
	}
	return nil
}

func (s *setup) sysctls(list []plan.Setting) *bare.Fault {
	for i := range list {
		if f := s.writeProc(bare.Text("sys/", list[i].Key), list[i].Value); f != nil {
			return f
		}
	}
	return nil
}

// makeRoot builds the new root file system and makes it "/".
func (s *setup) makeRoot(p *plan.Container) *bare.Fault {
	if len(p.Masked) > 0 {
		if f := s.openNull(); f != nil {
			return f
		}
	}
	if !p.Shared {
		if e := bare.Mount("", "/", p.HostPropagation); e != 0 {
			return bare.Wrap("set propagation of", "/", e)
		}
	}
	if f := s.openRoot(p); f != nil {
		return f
	}
	for i := range p.Mounts {
		mark := bare.Mark()
		if f := s.mount(&p.Mounts[i]); f != nil {
			return f
		}
		bare.Release(mark)
	}
	if f := s.devices(p.Devices, p.Links); f != nil {
		return f
	}
	if cwd, f := bare.MakeDirIn(s.root, p.Process.Cwd); f == nil {
		bare.Close(cwd) // what cannot be made is reported when it is entered
	}
	if p.Process.Terminal {
		if f := s.console(&p.Process, true); f != nil {
			return f
		}
	}
	if p.WaitHooks {
		if f := s.send(plan.MsgHooks, "", -1); f != nil {
			return f
		}
		if f := wait(s.syncFD); f != nil {
			return f
		}
	}
	if f := runHooks(p.CreateContainer, p.State, "creating"); f != nil {
		return f
	}
	if f := s.pivot(p); f != nil {
		return f
	}
	return s.finishRoot(p)
}

// openRoot makes the root directory a mount of its own and opens it.
func (s *setup) openRoot(p *plan.Container) *bare.Fault {
	if p.HostPropagation&unix.MS_SHARED != 0 && !p.Shared {
		if f := privateParent(p.Root); f != nil {
			return f
		}
	}
	tree, place := s.extra(p.RootFD), p.Root
	if p.RootFD != 0 {
		place = "/" // the way to the root may be closed to us, and we are about to leave "/" anyway
	} else {
		var f *bare.Fault
		if tree, f = bare.CloneTree(unix.AT_FDCWD, p.Root, true); f != nil {
			return f
		}
	}
	if p.Shared { // what is mounted below it is to be seen by nobody else
		if f := bare.SetMountAttr(tree, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}, p.Root); f != nil {
			return f
		}
	}
	target, e := bare.Open(place, unix.O_PATH|unix.O_DIRECTORY)
	if e != 0 {
		return bare.Wrap("open", place, e)
	}
	if f := bare.Attach(tree, target, place); f != nil {
		return f
	}
	bare.Close(target)
	s.root = tree
	return nil
}

// privateParent makes the mount that contains the root private, without which
// the kernel does not pivot.
func privateParent(root string) *bare.Fault {
	for dir := root; ; {
		e := bare.Mount("", dir, unix.MS_PRIVATE)
		if e == 0 {
			return nil
		}
		slash := len(dir) - 1
		for slash >= 0 && dir[slash] != '/' {
			slash--
		}
		if e != unix.EINVAL || dir == "/" || slash < 0 {
			return bare.Wrap("make private", root, e)
		}
		dir = dir[:max(slash, 1)]
	}
}

// joinMounts enters a mount namespace, which only a process with a root and working directory of its own can.
func (s *setup) joinMounts(fd int) *bare.Fault {
	if _, e := bare.Call(unix.SYS_UNSHARE, unix.CLONE_FS); e != 0 {
		return bare.Wrap("unshare", "file system attributes", e)
	}
	_, e := bare.Call(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNS)
	return bare.Wrap("join", "mount namespace", e)
}

// pivot makes the new root "/" and lets go of the old one, where that is ours.
func (s *setup) pivot(p *plan.Container) *bare.Fault {
	if _, e := bare.Call(unix.SYS_FCHDIR, uintptr(s.root)); e != 0 {
		return bare.Wrap("enter", "root", e)
	}
	if p.NoPivot && !p.Shared {
		if e := bare.Mount(".", "/", unix.MS_MOVE); e != 0 {
			return bare.Wrap("move root to", "/", e)
		}
	}
	if p.NoPivot || p.Shared {
		if _, e := bare.Name(unix.SYS_CHROOT, "."); e != 0 {
			return bare.Wrap("change", "root", e)
		}
	} else if f := takeOff(); f != nil {
		return f
	}
	_, e := bare.Name(unix.SYS_CHDIR, "/")
	return bare.Wrap("enter", "/", e)
}

// takeOff makes the working directory the root. The old root is stacked on top of the new one. It is entered by descriptor (the
// working directory is still the new one) and taken off, with nothing propagated back.
func takeOff() *bare.Fault {
	old, e := bare.Open("/", unix.O_PATH|unix.O_DIRECTORY)
	if e != 0 {
		return bare.Wrap("open", "old root", e)
	}
	if e := bare.PivotRoot("."); e != 0 {
		return bare.Wrap("pivot", "root", e)
	}
	if _, e := bare.Call(unix.SYS_FCHDIR, uintptr(old)); e != 0 {
		return bare.Wrap("enter", "old root", e)
	}
	if e := bare.Mount("", ".", unix.MS_SLAVE|unix.MS_REC); e != 0 {
		return bare.Wrap("detach", "old root", e)
	}
	if _, e := bare.Name(unix.SYS_UMOUNT2, ".", unix.MNT_DETACH); e != 0 {
		return bare.Wrap("unmount", "old root", e)
	}
	bare.Close(old)
	return nil
}

func (s *setup) finishRoot(p *plan.Container) *bare.Fault {
	bare.Close(s.root)
	fd, e := bare.Open("/", unix.O_PATH|unix.O_DIRECTORY)
	if e != 0 {
		return bare.Wrap("open", "/", e)
	}
	s.root = fd
	if p.RootReadonly {
		if f := bare.SetMountAttr(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, "/"); f != nil {
			return f
		}
	}
	if p.RootPropagation != 0 && !p.Shared {
		return bare.Wrap("set propagation of", "/", bare.Mount("", "/", p.RootPropagation))
	}
	return nil
}
