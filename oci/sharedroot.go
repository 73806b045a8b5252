package oci

import (
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/compile"
)

// sharedRoot says how to take away the mounts of a container that has no mount namespace of its own: everything that it
// mounts lies below one mount on its root directory, which did not have it before.
type sharedRoot struct {
	// Namespace is the joined namespace, "" the runtime's own; ID is its inode.
	Namespace string
	ID        uint64
	// Before is the id of the mount that the directory was part of.
	Before uint64
}

// shareRoot notes what is mounted at the root before the container is set up; nil for one with its own mount namespace.
func shareRoot(p *Prepared) (*sharedRoot, error) {
	if !p.Plan.Shared {
		return nil, nil
	}
	s := &sharedRoot{Namespace: p.MountNS}
	if s.Namespace != "" {
		var st unix.Stat_t
		if err := unix.Fstat(p.Extras[0], &st); err != nil {
			return nil, linux.Wrap("stat", s.Namespace, err)
		}
		s.ID = st.Ino
	}
	return s, s.within(func() (err error) {
		s.Before, err = mountID(p.Plan.Root)
		return err
	})
}

// clear unmounts what the container has left on its root.
func (s *sharedRoot) clear(c *record) error {
	if s == nil {
		return nil
	}
	return s.within(func() error {
		for {
			id, err := mountID(c.Rootfs)
			if err != nil || id == s.Before {
				return nil // without the directory there is no mount either
			}
			if err := unix.Unmount(c.Rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return linux.Wrap("unmount", c.Rootfs, err)
			}
		}
	})
}

// within calls f in the mount namespace, on a thread that is then thrown away. A joined namespace that has gone has taken its
// mounts along.
func (s *sharedRoot) within(f func() error) (err error) {
	if s.Namespace == "" {
		return f()
	}
	fd, err := unix.Open(s.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != s.ID {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread cannot be thrown away
			defer runtime.UnlockOSThread()
			err = s.within(f)
			return
		}
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNS)
		}
		if err != nil {
			err = linux.Wrap("join mount namespace", s.Namespace, err)
			return
		}
		err = f()
	}()
	<-done
	return err
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, linux.Wrap("stat", path, err)
}

// enters are the namespaces that a further process joins: user and time ones only where the container has its own.
func enters(r *compile.Result) int {
	flags := r.CloneFlags
	for _, n := range r.Join {
		flags |= compile.CloneFlag(n.Type)
	}
	return int(flags & (unix.CLONE_NEWUSER | unix.CLONE_NEWTIME))
}
