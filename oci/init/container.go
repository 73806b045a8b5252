package main

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
)

// container turns this process into a container's first one. It returns only
// with an error.
func (s *setup) container() error {
	p := new(plan.Container)
	if err := s.readPlan(p); err != nil {
		return err
	}
	s.slave = -1
	if p.Outcome != 0 {
		s.outcome = s.extra(p.Outcome)
	}
	if p.Late {
		if err := s.enterLate(p.LateNetwork); err != nil {
			return err
		}
	}
	if err := s.openProc(); err != nil {
		return err
	}
	if p.MountNS != 0 {
		if err := s.joinMounts(s.extra(p.MountNS)); err != nil {
			return err
		}
	}
	if p.NewCgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return linux.Wrap("make", "cgroup namespace", err)
		}
	}
	if err := s.makeRoot(p); err != nil {
		return err
	}
	if err := s.names(p); err != nil {
		return err
	}
	if err := s.sysctls(p.Sysctls); err != nil {
		return err
	}
	if err := s.hide(p.Masked, p.Readonly); err != nil {
		return err
	}
	return s.become(&p.Process, p)
}

// enterLate waits for what was made while this program started, and takes this thread there.
func (s *setup) enterLate(network bool) error {
	var kind [1]byte
	n, fds, err := linux.ReceiveMessage(s.syncFD, kind[:])
	if err != nil {
		return err
	}
	defer linux.CloseAll(fds...)
	if n == 0 || kind[0] != plan.MsgEnter || network && len(fds) == 0 {
		return linux.Wrap("wait for", "launcher", unix.ECANCELED)
	}
	tasks := fds
	if network {
		if err := unix.Setns(fds[0], unix.CLONE_NEWNET); err != nil {
			return linux.Wrap("join", "network namespace", err)
		}
		tasks = fds[1:]
	}
	for _, fd := range tasks {
		if err := launch.Enter(fd); err != nil {
			return err
		}
	}
	return nil
}

// openProc opens the host's procfs, while its mounts are those that we see and nobody can have put another there.
func (s *setup) openProc() error {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.privateProc()
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return s.privateProc()
	}
	s.proc = fd
	return nil
}

// privateProc takes a procfs of our own in place of the host's, where that one is in parts mounted over or read-only. It is
// not always ours to make (in a user namespace that does not own the PID namespace), and to make and forget it takes the kernel
// as long as much of the rest.
func (s *setup) privateProc() error {
	fd, err := linux.PrivateProc()
	if err == nil {
		s.closeProc()
		s.proc = fd
	}
	return err
}

func (s *setup) closeProc() {
	linux.CloseAll(s.proc)
	s.proc = -1
}

// writeProc writes one file of procfs, through no mount but the one that was opened: what is written reaches the kernel.
func (s *setup) writeProc(name, value string) error {
	err := s.tryProc(name, value)
	unfit := errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOENT) // the last: of another PID namespace
	if unfit && s.privateProc() == nil {
		err = s.tryProc(name, value)
	}
	return err
}

func (s *setup) tryProc(name, value string) error {
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(s.proc, name, &how)
	if err != nil {
		return linux.Wrap("open", "/proc/"+name, err)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return linux.Wrap("write", "/proc/"+name, err)
}

func (s *setup) names(p *plan.Container) error {
	if p.Hostname != "" {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return linux.Wrap("set", "hostname", err)
		}
	}
	if p.Domainname != "" {
		if err := unix.Setdomainname([]byte(p.Domainname)); err != nil {
			return linux.Wrap("set", "domain name", err)
		}
	}
	return nil
}

func (s *setup) sysctls(list []plan.Setting) error {
	for _, set := range list {
		if err := s.writeProc("sys/"+set.Key, set.Value); err != nil {
			return err
		}
	}
	return nil
}

// makeRoot builds the new root file system and makes it "/".
func (s *setup) makeRoot(p *plan.Container) error {
	if len(p.Masked) > 0 {
		if err := s.openNull(); err != nil {
			return err
		}
	}
	if !p.Shared {
		if err := unix.Mount("", "/", "", uintptr(p.HostPropagation), ""); err != nil {
			return linux.Wrap("set propagation of", "/", err)
		}
	}
	if err := s.openRoot(p); err != nil {
		return err
	}
	for i := range p.Mounts {
		if err := s.mount(&p.Mounts[i]); err != nil {
			return err
		}
	}
	if err := s.devices(p.Devices, p.Links); err != nil {
		return err
	}
	if cwd, err := linux.MakeDirIn(s.root, p.Process.Cwd); err == nil {
		unix.Close(cwd) // what cannot be made is reported when it is entered
	}
	if p.Process.Terminal {
		if err := s.console(&p.Process, true); err != nil {
			return err
		}
	}
	if p.WaitHooks {
		if err := s.send(plan.MsgHooks, ""); err != nil {
			return err
		}
		if err := wait(s.syncFD); err != nil {
			return err
		}
	}
	if err := runHooks(p.CreateContainer, p.State, "creating"); err != nil {
		return err
	}
	if err := s.pivot(p); err != nil {
		return err
	}
	return s.finishRoot(p)
}

// openRoot makes the root directory a mount of its own and opens it.
func (s *setup) openRoot(p *plan.Container) error {
	if p.HostPropagation&unix.MS_SHARED != 0 && !p.Shared {
		if err := privateParent(p.Root); err != nil {
			return err
		}
	}
	tree, place := s.extra(p.RootFD), p.Root
	if p.RootFD != 0 {
		place = "/" // the way to the root may be closed to us, and we are about to leave "/" anyway
	} else {
		var err error
		if tree, err = linux.CloneTree(unix.AT_FDCWD, p.Root, true); err != nil {
			return err
		}
	}
	defer unix.Close(tree)
	if p.Shared { // what is mounted below it is to be seen by nobody else
		if err := linux.SetMountAttr(tree, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}, p.Root); err != nil {
			return err
		}
	}
	target, err := unix.Open(place, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", place, err)
	}
	defer unix.Close(target)
	if err := linux.Attach(tree, target, place); err != nil {
		return err
	}
	s.root, err = unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, 3)
	return linux.Wrap("open", p.Root, err)
}

// privateParent makes the mount that contains the root private, without which
// the kernel does not pivot.
func privateParent(root string) error {
	for dir := root; ; {
		err := unix.Mount("", dir, "", unix.MS_PRIVATE, "")
		if err == nil {
			return nil
		}
		i := strings.LastIndexByte(dir, '/')
		if err != unix.EINVAL || dir == "/" || i < 0 {
			return linux.Wrap("make private", root, err)
		}
		dir = dir[:max(i, 1)]
	}
}

// joinMounts enters a mount namespace, which only a thread with a root and working directory of its own can.
func (s *setup) joinMounts(fd int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return linux.Wrap("unshare", "file system attributes", err)
	}
	return linux.Wrap("join", "mount namespace", unix.Setns(fd, unix.CLONE_NEWNS))
}

// pivot makes the new root "/" and lets go of the old one, where that is ours.
func (s *setup) pivot(p *plan.Container) error {
	if err := unix.Fchdir(s.root); err != nil {
		return linux.Wrap("enter", "root", err)
	}
	if p.Shared {
		if err := unix.Chroot("."); err != nil {
			return linux.Wrap("change", "root", err)
		}
		return linux.Wrap("enter", "/", unix.Chdir("/"))
	}
	if p.NoPivot {
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return linux.Wrap("move root to", "/", err)
		}
		if err := unix.Chroot("."); err != nil {
			return linux.Wrap("change", "root", err)
		}
		return linux.Wrap("enter", "/", unix.Chdir("/"))
	}
	// Stacks the old root on top of the new one. It is entered by descriptor
	// (the working directory is still the new one) and taken off, with nothing
	// propagated back.
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", "old root", err)
	}
	defer unix.Close(old)
	if err := unix.PivotRoot(".", "."); err != nil {
		return linux.Wrap("pivot", "root", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return linux.Wrap("enter", "old root", err)
	}
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return linux.Wrap("detach", "old root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return linux.Wrap("unmount", "old root", err)
	}
	return linux.Wrap("enter", "/", unix.Chdir("/"))
}

func (s *setup) finishRoot(p *plan.Container) error {
	unix.Close(s.root)
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", "/", err)
	}
	s.root = fd
	if p.RootReadonly {
		if err := linux.SetMountAttr(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, "/"); err != nil {
			return err
		}
	}
	if p.RootPropagation != 0 && !p.Shared {
		err := unix.Mount("", "/", "", uintptr(p.RootPropagation), "")
		return linux.Wrap("set propagation of", "/", err)
	}
	return nil
}
