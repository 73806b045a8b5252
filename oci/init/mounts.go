package main

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// mount makes one mount: a detached one first, with all its attributes, then
// onto the target's descriptor.
func (s *setup) mount(m *plan.Mount) *bare.Fault {
	if m.Type == plan.Remount {
		return s.remount(m)
	}
	source, f := s.source(m)
	if f != nil {
		return f.In("mount", m.Target)
	}
	if f := applyAttrs(source, m); f != nil {
		return f
	}
	target, f := s.target(m, source)
	if f != nil {
		return f.In("mount", m.Target)
	}
	if m.CopyUp {
		if f := copyUp(target, source); f != nil {
			return f.In("copy up", m.Target)
		}
	}
	if f := bare.Attach(source, target, m.Target); f != nil {
		return f
	}
	bare.Close(target)
	if m.Label != "" {
		if e := relabel(source, m.Label); e != 0 {
			return bare.Wrap("set SELinux context of", m.Target, e)
		}
	}
	// Propagation comes last: a mount onto a target in a shared one joins its group.
	if m.Propagation != 0 {
		if f := bare.SetMountAttr(source, false, unix.MountAttr{Propagation: m.Propagation}, m.Target); f != nil {
			return f
		}
	}
	if m.RecPropagation != 0 {
		if f := bare.SetMountAttr(source, true, unix.MountAttr{Propagation: m.RecPropagation}, m.Target); f != nil {
			return f
		}
	}
	bare.Close(source)
	return nil
}

// remount changes what is mounted.
func (s *setup) remount(m *plan.Mount) *bare.Fault {
	fd, e := bare.OpenIn(s.root, m.Target, unix.O_PATH)
	if e != 0 {
		return bare.Wrap("open", m.Target, e)
	}
	if len(m.Options) > 0 {
		if f := bare.Reconfigure(fd, m.Options, m.Target); f != nil {
			return f
		}
	}
	if m.Set|m.Clear != 0 {
		if f := bare.SetMountAttr(fd, false, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, m.Target); f != nil {
			return f
		}
	}
	bare.Close(fd)
	return nil
}

// relabel gives a directory an SELinux context.
func relabel(dir int, context string) bare.Errno {
	fd, e := bare.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if e != 0 {
		return e
	}
	e = bare.Fsetxattr(fd, "security.selinux", context)
	bare.Close(fd)
	return e
}

// source returns what is to be mounted, detached.
func (s *setup) source(m *plan.Mount) (int, *bare.Fault) {
	switch {
	case m.FD != 0:
		return s.extra(m.FD), nil
	case m.Type == "":
		return bare.CloneTree(unix.AT_FDCWD, m.Source, m.Recursive)
	}
	return bare.NewFS(m.Type, m.Source, m.Options, m.Set)
}

func applyAttrs(fd int, m *plan.Mount) *bare.Fault {
	if m.Type == "" && m.Set|m.Clear != 0 {
		if f := bare.SetMountAttr(fd, false, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, m.Target); f != nil {
			return f
		}
	}
	if m.RecSet|m.RecClear != 0 {
		return bare.SetMountAttr(fd, true, unix.MountAttr{Attr_set: m.RecSet, Attr_clr: m.RecClear}, m.Target)
	}
	return nil
}

// target returns the mount point inside the root, made to fit the source.
func (s *setup) target(m *plan.Mount, source int) (int, *bare.Fault) {
	var st unix.Stat_t
	if e := bare.Fstat(source, &st); e != 0 {
		return -1, bare.Wrap("stat", m.Source, e)
	}
	if m.NoFollow {
		if fd, e := bare.OpenIn(s.root, m.Target, unix.O_PATH|unix.O_NOFOLLOW); e == 0 {
			return fd, nil
		}
	}
	var fd int
	var f *bare.Fault
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, f = bare.MakeDirIn(s.root, m.Target)
	} else {
		fd, f = bare.MakeFileIn(s.root, m.Target)
	}
	if f != nil {
		return -1, f
	}
	return fd, s.checkTarget(fd, m)
}

// checkTarget refuses mounts inside procfs: with them an image or a volume
// could fake what we, or the program's own checks, read there. The mount of
// procfs itself has a target outside it.
func (s *setup) checkTarget(fd int, m *plan.Mount) *bare.Fault {
	var fs unix.Statfs_t
	if e := bare.Fstatfs(fd, &fs); e != 0 {
		return bare.Wrap("stat", m.Target, e)
	}
	if fs.Type != unix.PROC_SUPER_MAGIC || allowedInProc(m.Target) {
		return nil
	}
	return bare.Because("", "", "mounting inside /proc is prohibited")
}

// allowedInProc lists the read-only views that lxcfs-like programs provide,
// and procfs remounted on itself.
func allowedInProc(target string) bool {
	switch target {
	case "/proc", "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps",
		"/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid",
		"/proc/sys/crypto/fips_enabled":
		return true
	}
	return false
}

// openNull opens the host's /dev/null and makes sure that it is the device:
// what an image has there is never trusted.
func (s *setup) openNull() *bare.Fault {
	fd, e := bare.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW)
	if e != 0 {
		return bare.Wrap("open", "/dev/null", e)
	}
	var st unix.Stat_t
	if e := bare.Fstat(fd, &st); e != 0 {
		return bare.Wrap("stat", "/dev/null", e)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return bare.Because("", "", "/dev/null is not the null device")
	}
	// A clone now, while the host's mounts are visible, for what is masked.
	var f *bare.Fault
	s.devNull, f = bare.CloneTree(fd, "", false)
	bare.Close(fd)
	return f
}

// hide masks paths with the null device or an empty read-only directory, and
// makes others read-only. Missing ones are passed over.
func (s *setup) hide(masked, readonly []string) *bare.Fault {
	null, empty := cover{fd: s.devNull}, cover{fd: -1}
	for _, path := range masked {
		target, e := bare.OpenIn(s.root, path, unix.O_PATH)
		if missing(e) {
			continue
		}
		if e != 0 {
			return bare.Wrap("open", path, e)
		}
		var st unix.Stat_t
		if e := bare.Fstat(target, &st); e != 0 {
			return bare.Wrap("stat", path, e)
		}
		c := &null
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if c = &empty; c.fd < 0 {
				var f *bare.Fault
				if c.fd, f = bare.NewFS("tmpfs", "tmpfs", leastOptions[:], unix.MOUNT_ATTR_RDONLY); f != nil {
					return f
				}
			}
		}
		if f := c.put(target, path); f != nil {
			return f
		}
	}
	bare.Close(empty.fd)
	for _, path := range readonly {
		target, e := bare.OpenIn(s.root, path, unix.O_PATH)
		if missing(e) {
			continue
		}
		if e != 0 {
			return bare.Wrap("open", path, e)
		}
		if f := clone(target, target, path, unix.MOUNT_ATTR_RDONLY); f != nil {
			return f
		}
	}
	return nil
}

// leastOptions make the smallest tmpfs that there is.
var leastOptions = [...]bare.Option{{Key: "nr_blocks", Value: "1"}, {Key: "nr_inodes", Value: "1"}}

// cover is a mount that is put over any number of paths.
type cover struct {
	fd       int
	attached bool
}

// put covers target, and closes it. The first is covered by the mount itself,
// the others by copies of it: only what is attached can be copied before Linux 6.15.
func (c *cover) put(target int, path string) *bare.Fault {
	if c.attached {
		return clone(c.fd, target, path, 0)
	}
	c.attached = true
	f := bare.Attach(c.fd, target, path)
	bare.Close(target)
	return f
}

func missing(e bare.Errno) bool { return e == unix.ENOENT || e == unix.ENOTDIR }

// clone mounts a copy of source on target, and closes target.
func clone(source, target int, path string, attrs uint64) *bare.Fault {
	tree, f := bare.CloneTree(source, "", attrs != 0)
	if f != nil {
		return f.In("hide", path)
	}
	if attrs != 0 {
		if f := bare.SetMountAttr(tree, false, unix.MountAttr{Attr_set: attrs}, path); f != nil {
			return f
		}
	}
	f = bare.Attach(tree, target, path)
	bare.Close(tree, target)
	return f
}
