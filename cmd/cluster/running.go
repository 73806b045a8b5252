package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock makes the calling process the cluster's server. It fails when another process is, and with ErrUnknown when the
// cluster was removed since its record was read: a server that starts late must not bring it back. The lock is given
// up when the process ends, however it ends.
func (h Host) Lock(r *Record) (unlock func(), err error) {
	release, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	if now, err := h.Find(r.Name); err != nil {
		return nil, err
	} else if now.ID != r.ID {
		return nil, fmt.Errorf("cluster %q was removed and made again while this server started", r.Name)
	}
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

// startPoll is how often a start looks whether another start of the same cluster has ended.
const startPoll = 20 * time.Millisecond

// Starting claims the cluster as Claim does and keeps others from starting it until done is called: who comes second
// waits, and finds the server of the first. It is an flock of the record's file, so that starts of different clusters
// do not wait for each other and a removal waits for none.
func (h Host) Starting(ctx context.Context, w Wish) (r *Record, created bool, done func(), err error) {
	for {
		r, made, err := h.Claim(w)
		if err != nil {
			return nil, false, nil, err
		}
		created = created || made
		f, err := os.Open(h.recordFile(r.Name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile: claimed anew
		}
		if err != nil {
			return nil, false, nil, err
		}
		if err := flockWithin(ctx, f); err != nil {
			f.Close()
			return nil, false, nil, fmt.Errorf("wait for another start of cluster %q: %w", r.Name, err)
		}
		held, err1 := f.Stat()
		named, err2 := os.Stat(h.recordFile(r.Name))
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return r, created, func() { f.Close() }, nil
		}
		f.Close()
	}
}

// flockWithin waits for the file's lock until ctx ends.
func flockWithin(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(startPoll):
		}
	}
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
