package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock makes the calling process the cluster's server. It fails when another process is. The lock is given up when
// the process ends, however it ends.
func (r *Record) Lock() (unlock func(), err error) {
	if err := os.MkdirAll(r.RunDir, 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(r.lockFile(), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if pid, running := r.Server(); running {
			return nil, fmt.Errorf("cluster %q is already served by process %d: 'yare status --name %s' shows it", r.Name, pid, r.Name)
		}
		return nil, fmt.Errorf("lock %s: %w", r.lockFile(), err)
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (r *Record) lockFile() string { return filepath.Join(r.RunDir, "server.lock") }

// Server returns the pid of the process that serves the cluster now.
func (r *Record) Server() (pid int, running bool) {
	f, err := os.Open(r.lockFile())
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0, false // nobody holds it; closing gives it back
	}
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	pid, err = strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid, err == nil && pid > 0
}

// Stop ends the cluster's server: SIGTERM, and SIGKILL after grace. Containers live on. It returns when the
// process is gone, at once when there is none.
func (r *Record) Stop(ctx context.Context, grace time.Duration) error {
	pid, running := r.Server()
	if !running {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if now, running := r.Server(); !running || now != pid {
		return nil // it ended, and its pid may be somebody else's by now
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		gone, err := waitPidfd(ctx, fd, grace)
		if err != nil || gone {
			return err
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// waitPidfd waits until the process of a pidfd has ended.
func waitPidfd(ctx context.Context, fd int, limit time.Duration) (gone bool, err error) {
	for end := time.Now().Add(limit); ; {
		left := time.Until(end)
		if left <= 0 {
			return false, nil
		}
		// A second at a time, so that ctx is heard.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(min(left, time.Second).Milliseconds())+1)
		switch {
		case n > 0:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, err
		}
	}
}
