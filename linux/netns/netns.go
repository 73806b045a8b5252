// Package netns makes, enters and deletes named network namespaces: namespaces
// that a bind mount of /proc/<tid>/ns/net on a file keeps alive, as ip-netns(8)
// does. It is the kernel, thinly; it replaces containernetworking/plugins' ns
// package.
//
// A namespace belongs to a thread, and the Go scheduler moves goroutines between
// threads. So every function locks its thread while it is elsewhere, and gives
// the thread back only when it has verifiably returned home; otherwise the
// thread ends with its goroutine and takes the wrong namespace with it.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

const self = "/proc/thread-self/ns/net"

// New makes a network namespace held by a bind mount on path, which must not
// exist. setup, if not nil, runs inside it. When New fails, path is gone again.
// The caller's thread stays where it is.
func New(path string, setup func() error) error {
	err := apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := Pin(path, self); err != nil {
			return err
		}
		if setup == nil {
			return nil
		}
		if err := setup(); err != nil {
			return errors.Join(err, Delete(path))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", path, err)
	}
	return nil
}

// Pin keeps the namespace that the file from shows (such as /proc/<pid>/ns/net)
// alive at path, which must not exist.
func Pin(path, from string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s on %s: %w", from, path, err), os.Remove(path))
	}
	return nil
}

// Delete lets go of the namespace at path. The kernel reaps the namespace and
// the links in it in the background, as soon as no process is in it. A path that
// is gone is no error.
func Delete(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Do runs f in the network namespace at path. f must not start goroutines that
// rely on the namespace; sockets that it opens stay in the namespace.
func Do(path string, f func() error) error {
	return apart(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// apart runs f in a goroutine and thread of its own, which f may move to another
// network namespace. A goroutine is needed since the caller may hold its thread
// locked, for its own reasons.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open %s: %w", self, err)
			return
		}
		defer unix.Close(home)
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// IsHeld reports whether path holds a namespace: a file without its mount (after
// a reboot, or a crash between the two) does not.
func IsHeld(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// List returns the paths of the files in dir, whether or not they hold a
// namespace. A dir that does not exist is empty.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	paths := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}
