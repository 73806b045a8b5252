package shim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// A shim of another release, whose messages are not ours, goes on with its containers. Of it we hear only that something has
// happened, and look into the state directory for what; we signal processes by their cgroups, and end all of it as what
// a dead shim leaves. Every request is [ErrOutdated].

// Outdated says why the shim is asked nothing; nil for one of this release.
func (c *Client) Outdated() error { return c.conn.refuse }

// becomeOutdated connects c anew, to a shim that has answered with another version, or (0) has hung up on what we said.
// It returns [ErrGone] when the shim is dead.
func (c *Client) becomeOutdated(ctx context.Context, version int) error {
	socket, err := dial(ctx, filepath.Join(c.dir, socketName))
	if err != nil {
		return err
	}
	c.conn, c.events = newConnection(socket, c.exited), newQueue()
	c.conn.refuse = ErrOutdated
	if version != 0 {
		c.conn.refuse = fmt.Errorf("%w (it speaks version %d, not %d)", ErrOutdated, version, protocol.Version)
	}
	c.pid = oldest(c.record.Cgroup)
	events := c.events
	c.tasks.Go(func() {
		c.conn.hear(c.lookForExits)
		events.close()
	})
	c.tasks.Go(events.pump)
	return nil
}

// lookForExits tells of exits that are recorded and were not told.
func (c *Client) lookForExits() {
	list, err := c.recorded()
	if err != nil {
		c.log.Warn("exits of an outdated shim's containers are not known", "shim", filepath.Base(c.dir), "err", err)
	}
	for _, s := range list {
		c.mu.Lock()
		_, told := c.exits[s.ID]
		c.mu.Unlock()
		if s.State == Stopped && !told {
			c.ended(s.ID, s.Exit)
		}
	}
}

// recorded lists the containers by the state directory. Those without an exit record count as running.
func (c *Client) recorded() ([]Status, error) {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrGone // it was shut down
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []Status
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		state, err := c.state(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s := Status{ID: e.Name(), State: Running, Cgroup: state.Cgroup}
		switch s.Exit, err = readExit(filepath.Join(c.dir, e.Name())); {
		case err == nil:
			s.State = Stopped
		case errors.Is(err, os.ErrNotExist):
			s.Pid = oldest(state.Cgroup)
		default:
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// readExit reads the exit record in a container's directory. Of one that is not understood it is known that there was an exit.
func readExit(dir string) (ExitStatus, error) {
	b, err := os.ReadFile(filepath.Join(dir, exitName))
	if err != nil {
		return ExitStatus{}, err
	}
	var e protocol.Exit
	if err := wire.Unmarshal(b, &e); err != nil {
		return ExitStatus{Code: 255, At: time.Now()}, nil
	}
	return exitStatus(e), nil
}

// killOutdated is Kill without the shim.
func (c *Client) killOutdated(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	group, err := c.Cgroup(id)
	if err != nil {
		return err
	}
	if all || sig == unix.SIGKILL {
		return group.Signal(ctx, sig)
	}
	if pid := oldest(group.Path()); pid != 0 {
		if err := unix.Kill(pid, sig); err == nil {
			return nil
		}
	}
	return fmt.Errorf("signal container %s: %w", id, ErrState)
}

// oldest returns the process of the group that was started first: the shim, or a container's first process. 0 where there is none.
func oldest(group string) (pid int) {
	if group == "" {
		return 0
	}
	g, err := cgroup.Open(group)
	if err != nil {
		return 0
	}
	pids, err := g.Pids()
	if err != nil {
		return 0
	}
	first := uint64(math.MaxUint64)
	for _, p := range pids {
		began, err := linux.StartTime(p)
		if err == nil && (began < first || began == first && p < pid) {
			pid, first = p, began
		}
	}
	return pid
}
