package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// mount makes one mount: a detached one first, with all its attributes, then
// onto the target's descriptor.
func (s *setup) mount(m *plan.Mount) error {
	if m.Type == plan.Remount {
		fd, err := linux.OpenIn(s.root, m.Target, unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if len(m.Options) > 0 {
			if err := linux.Reconfigure(fd, fsOptions(m), m.Target); err != nil {
				return err
			}
		}
		if m.Set|m.Clear == 0 {
			return nil
		}
		return linux.SetMountAttr(fd, false, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, m.Target)
	}
	source, err := s.source(m)
	if err != nil {
		return linux.Wrap("mount", m.Target, err)
	}
	defer unix.Close(source)
	if err := applyAttrs(source, m); err != nil {
		return err
	}
	target, err := s.target(m, source)
	if err != nil {
		return linux.Wrap("mount", m.Target, err)
	}
	defer unix.Close(target)
	if m.CopyUp {
		if err := copyUp(target, source); err != nil {
			return linux.Wrap("copy up", m.Target, err)
		}
	}
	if err := linux.Attach(source, target, m.Target); err != nil {
		return err
	}
	if m.Label != "" {
		if err := relabel(source, m.Label); err != nil {
			return linux.Wrap("set SELinux context of", m.Target, err)
		}
	}
	// Propagation comes last: a mount onto a target in a shared one joins its group.
	if m.Propagation != 0 {
		if err := linux.SetMountAttr(source, false, unix.MountAttr{Propagation: m.Propagation}, m.Target); err != nil {
			return err
		}
	}
	if m.RecPropagation != 0 {
		return linux.SetMountAttr(source, true, unix.MountAttr{Propagation: m.RecPropagation}, m.Target)
	}
	return nil
}

// relabel gives a directory an SELinux context.
func relabel(dir int, context string) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, "security.selinux", []byte(context), 0)
}

// source returns what is to be mounted, detached.
func (s *setup) source(m *plan.Mount) (int, error) {
	switch {
	case m.FD != 0:
		return s.extra(m.FD), nil
	case m.Type == "":
		return linux.CloneTree(unix.AT_FDCWD, m.Source, m.Recursive)
	}
	return linux.NewFS(m.Type, m.Source, fsOptions(m), int(m.Set))
}

func fsOptions(m *plan.Mount) []linux.Option {
	options := make([]linux.Option, len(m.Options))
	for i, o := range m.Options {
		options[i] = linux.Option{Key: o.Key, Value: o.Value}
	}
	return options
}

func applyAttrs(fd int, m *plan.Mount) error {
	if m.Type == "" && m.Set|m.Clear != 0 {
		if err := linux.SetMountAttr(fd, false, unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, m.Target); err != nil {
			return err
		}
	}
	if m.RecSet|m.RecClear != 0 {
		return linux.SetMountAttr(fd, true, unix.MountAttr{Attr_set: m.RecSet, Attr_clr: m.RecClear}, m.Target)
	}
	return nil
}

// target returns the mount point inside the root, made to fit the source.
func (s *setup) target(m *plan.Mount, source int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return -1, linux.Wrap("stat", m.Source, err)
	}
	if m.NoFollow {
		if fd, err := linux.OpenIn(s.root, m.Target, unix.O_PATH|unix.O_NOFOLLOW); err == nil {
			return fd, nil
		}
	}
	var fd int
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err = linux.MakeDirIn(s.root, m.Target)
	} else {
		fd, err = linux.MakeFileIn(s.root, m.Target)
	}
	if err != nil {
		return -1, err
	}
	return fd, s.checkTarget(fd, m)
}

// checkTarget refuses mounts inside procfs: with them an image or a volume
// could fake what we, or the program's own checks, read there. The mount of
// procfs itself has a target outside it.
func (s *setup) checkTarget(fd int, m *plan.Mount) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return linux.Wrap("stat", m.Target, err)
	}
	if fs.Type != unix.PROC_SUPER_MAGIC || allowedInProc(m.Target) {
		return nil
	}
	unix.Close(fd)
	return errors.New("mounting inside /proc is prohibited")
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
func (s *setup) openNull() error {
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", "/dev/null", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return linux.Wrap("stat", "/dev/null", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return errors.New("/dev/null is not the null device")
	}
	// A clone now, while the host's mounts are visible, for what is masked.
	s.devNull, err = linux.CloneTree(fd, "", false)
	unix.Close(fd)
	return err
}

// hide masks paths with the null device or an empty read-only directory, and
// makes others read-only. Missing ones are passed over.
func (s *setup) hide(masked, readonly []string) error {
	null, empty := &cover{fd: s.devNull}, &cover{fd: -1}
	defer func() { linux.CloseAll(empty.fd) }()
	for _, path := range masked {
		target, err := linux.OpenIn(s.root, path, unix.O_PATH)
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(target, &st); err != nil {
			return linux.Wrap("stat", path, err)
		}
		c := null
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if c = empty; c.fd < 0 {
				options := []linux.Option{{Key: "nr_blocks", Value: "1"}, {Key: "nr_inodes", Value: "1"}}
				if c.fd, err = linux.NewFS("tmpfs", "tmpfs", options, unix.MOUNT_ATTR_RDONLY); err != nil {
					return err
				}
			}
		}
		if err := c.put(target, path); err != nil {
			return err
		}
	}
	for _, path := range readonly {
		target, err := linux.OpenIn(s.root, path, unix.O_PATH)
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := clone(target, target, path, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return nil
}

// cover is a mount that is put over any number of paths.
type cover struct {
	fd       int
	attached bool
}

// put covers target, and closes it. The first is covered by the mount itself,
// the others by copies of it: only what is attached can be copied before Linux 6.15.
func (c *cover) put(target int, path string) error {
	if c.attached {
		return clone(c.fd, target, path, 0)
	}
	defer unix.Close(target)
	c.attached = true
	return linux.Attach(c.fd, target, path)
}

func missing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// clone mounts a copy of source on target, and closes target.
func clone(source, target int, path string, attrs uint64) error {
	defer unix.Close(target)
	tree, err := linux.CloneTree(source, "", attrs != 0)
	if err != nil {
		return linux.Wrap("hide", path, err)
	}
	defer unix.Close(tree)
	if attrs != 0 {
		if err := linux.SetMountAttr(tree, false, unix.MountAttr{Attr_set: attrs}, path); err != nil {
			return err
		}
	}
	return linux.Attach(tree, target, path)
}
