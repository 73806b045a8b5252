package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// Client is a connection to one shim.
type Client struct {
	dir    string
	record record
	log    *slog.Logger
	conn   *connection
	events *queue
	pid    int
	reaper int
	tasks  sync.WaitGroup
	once   sync.Once

	mu       sync.Mutex
	exits    map[string]ExitStatus        // of containers, since connecting
	waiters  map[string][]chan ExitStatus // of Wait, by container
	sessions map[uint64]chan ExitStatus   // of Exec
	early    map[uint64]ExitStatus        // exits of sessions that were not yet waited for
}

// exited is called by the reader for every exit.
func (c *Client) exited(r *protocol.Reply) {
	status := exitStatus(r.Exit)
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Session != 0 {
		if waiting, ok := c.sessions[r.Session]; ok {
			waiting <- status // has room for one
			return
		}
		if c.early == nil {
			c.early = map[uint64]ExitStatus{}
		}
		c.early[r.Session] = status
		return
	}
	c.tell(r.ID, status)
}

// ended tells of a container's exit.
func (c *Client) ended(id string, status ExitStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell(id, status)
}

// tell is ended. Preconditions: c.mu is held.
func (c *Client) tell(id string, status ExitStatus) {
	c.exits[id] = status
	for _, w := range c.waiters[id] {
		w <- status
	}
	delete(c.waiters, id)
	c.events.put(Event{ID: id, Exit: status})
}

// Pid returns the shim's process id.
func (c *Client) Pid() int { return c.pid }

// Namespace returns the path through which others join the sandbox's
// namespace of that type, valid while the shim lives; "" where the sandbox has
// the host's.
func (c *Client) Namespace(t specs.LinuxNamespaceType) string {
	pid, name := c.pid, ""
	switch {
	case t == specs.NetworkNamespace && c.record.Net:
		name = "net"
	case t == specs.IPCNamespace && c.record.IPC:
		name = "ipc"
	case t == specs.UTSNamespace && c.record.UTS:
		name = "uts"
	case t == specs.PIDNamespace && c.record.SharePID:
		pid, name = c.reaper, "pid"
	default:
		return ""
	}
	return "/proc/" + strconv.Itoa(pid) + "/ns/" + name
}

// Done is closed when the shim is dead or the client was closed.
func (c *Client) Done() <-chan struct{} { return c.conn.done }

// Events delivers exits from the moment of connecting on. It must be drained.
// It is closed when the shim dies or the client is closed. An exit that
// happened before is found in [Client.Containers].
func (c *Client) Events() <-chan Event { return c.events.out }

// Close disconnects and leaves shim and containers running. Running sessions
// of this client end.
func (c *Client) Close() error {
	c.once.Do(func() { _ = c.disconnect() }) // the shim notices, whatever this says
	c.tasks.Wait()
	return nil
}

// disconnect ends the connection and what serves it.
func (c *Client) disconnect() error {
	err := c.conn.socket.Close()
	close(c.events.stop)
	c.tasks.Wait()
	return err
}

// Shutdown kills what is left of the containers, deletes them, ends the shim
// and removes its cgroup and state directory.
func (c *Client) Shutdown(ctx context.Context) error {
	if c.Outdated() != nil {
		if err := c.Close(); err != nil {
			return err
		}
		if _, err := Reap(ctx, c.dir, c.log); err != nil {
			return err
		}
		return Remove(c.dir)
	}
	list, err := c.Containers(ctx)
	if err != nil {
		return err
	}
	for _, s := range list {
		if err := c.end(ctx, s.ID); err != nil {
			return err
		}
	}
	if _, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.Shutdown}); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.Close(); err != nil {
		return err
	}
	if err := freeCgroup(ctx, c.record.Cgroup); err != nil {
		return err
	}
	return Remove(c.dir)
}

// end deletes a container, whatever it does. It may begin to run at any moment: a server that was killed may have asked for
// its start.
func (c *Client) end(ctx context.Context, id string) error {
	err := c.Delete(ctx, id)
	if errors.Is(err, ErrState) {
		if err := c.Kill(ctx, id, unix.SIGKILL, false); err != nil && !errors.Is(err, ErrState) {
			return err
		}
		if _, err := c.Wait(ctx, id); err != nil {
			return err
		}
		err = c.Delete(ctx, id)
	}
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// freeCgroup ends what is in a cgroup and removes it.
func freeCgroup(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	group, err := cgroup.Open(path)
	if err != nil {
		return err
	}
	return group.Destroy(ctx)
}

// killCgroup ends what is in a cgroup.
func killCgroup(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	group, err := cgroup.Open(path)
	if err != nil {
		return err
	}
	return group.Kill(ctx)
}

// Start lets a Created container run its program and returns when the program
// has been exec'ed, or with the reason why it could not be (the container is
// then Stopped with code 127 or 126).
func (c *Client) Start(ctx context.Context, id string) error {
	state, err := c.state(id)
	if err != nil {
		return err
	}
	request := &protocol.Request{Verb: protocol.Start, ID: id}
	dir := filepath.Join(c.dir, id)
	log := filepath.Join(dir, logJSONName)
	if state.Runtime != nil {
		request.Command.Args = state.Runtime.args(dir, log, "start", id)
	}
	r, err := c.conn.request(ctx, request)
	if err != nil {
		return state.Runtime.explain(err, log)
	}
	return runHooks(ctx, state.Poststart, state.oci(id, specs.StateRunning, r.Pid))
}

// Kill sends a signal to the container's first process, or to all processes
// in its cgroup. A stopped container is ErrState unless all is set.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	if c.Outdated() != nil {
		return c.killOutdated(ctx, id, sig, all)
	}
	r, err := c.foreign(id)
	if err != nil {
		return err
	}
	if r != nil {
		return c.killForeign(ctx, r, id, sig, all)
	}
	if all {
		group, err := c.Cgroup(id)
		if err != nil {
			return err
		}
		return group.Signal(ctx, sig)
	}
	return c.signal(ctx, id, sig)
}

// signal has the shim signal the first process; 0 asks whether there is one.
func (c *Client) signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.Kill, ID: id, Signal: int32(sig)})
	return err
}

// Delete frees a Created or Stopped container: a waiting init is killed, so is
// every process left in its cgroup; the cgroup and the state are removed. An
// unknown container is ErrNotFound.
func (c *Client) Delete(ctx context.Context, id string) error {
	status, err := c.status(ctx, id)
	if err != nil {
		return err
	}
	if c.Outdated() != nil {
		return killCgroup(ctx, status.Cgroup) // its other traces go with those of the shim
	}
	switch status.State {
	case Running:
		return fmt.Errorf("delete container %s: %w: it is running", id, ErrState)
	case Creating, Created:
		if err := c.Kill(ctx, id, unix.SIGKILL, false); err != nil && !errors.Is(err, ErrState) {
			return err
		}
		if _, err := c.Wait(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	state, stateErr := c.state(id)
	if stateErr == nil {
		err = freeContainer(ctx, c.do, filepath.Join(c.dir, id), id, state)
	} else {
		err = freeCgroup(ctx, status.Cgroup)
	}
	if err != nil {
		return err
	}
	if _, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.Delete, ID: id}); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	c.mu.Lock()
	delete(c.exits, id)
	c.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(c.dir, id)); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if stateErr == nil {
		state.stopped(ctx, c.log, id)
	}
	return nil
}

// Containers lists the sandbox's containers, in order of creation.
func (c *Client) Containers(ctx context.Context) ([]Status, error) {
	if c.Outdated() != nil {
		return c.recorded()
	}
	list := []Status{}
	for told := uint64(0); ; {
		r, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.List, Session: told})
		if err != nil {
			return nil, err
		}
		for i := range r.List {
			list = append(list, statusOf(&r.List[i]))
		}
		if told = r.Session; told == 0 {
			return list, nil
		}
	}
}

func statusOf(k *protocol.Container) Status {
	s := Status{ID: k.ID, State: ContainerState(k.State), Pid: k.Pid, CreatedAt: time.Unix(0, k.Created), Cgroup: k.Cgroup}
	if k.Started != 0 {
		s.StartedAt = time.Unix(0, k.Started)
	}
	if s.State == Stopped {
		s.Exit = exitStatus(k.Exit)
	}
	return s
}

// Sweep frees what a server that was killed has left of containers that the shim does not list: it had not heard of them
// yet, or has given them up. No Create may be under way.
func (c *Client) Sweep(ctx context.Context) error {
	if c.Outdated() != nil {
		return nil // it goes with the shim
	}
	list, err := c.Containers(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("sweep shim: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || slices.ContainsFunc(list, func(s Status) bool { return s.ID == e.Name() }) {
			continue
		}
		dir := filepath.Join(c.dir, e.Name())
		var state containerState
		err := readJSON(filepath.Join(dir, stateName), &state)
		if errors.Is(err, os.ErrNotExist) {
			err = nil // the cgroup comes after it
		}
		if err == nil {
			err = freeContainer(ctx, c.do, dir, e.Name(), &state)
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			return fmt.Errorf("sweep container %s: %w", e.Name(), err)
		}
		state.stopped(ctx, c.log, e.Name())
	}
	return nil
}

func (c *Client) status(ctx context.Context, id string) (Status, error) {
	var list []Status
	if c.Outdated() != nil {
		all, err := c.recorded()
		if err != nil {
			return Status{}, err
		}
		list = all
	} else {
		r, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.List, ID: id})
		if err != nil {
			return Status{}, err
		}
		for i := range r.List {
			list = append(list, statusOf(&r.List[i]))
		}
	}
	for _, s := range list {
		if s.ID == id {
			return s, nil
		}
	}
	return Status{}, fmt.Errorf("container %s: %w", id, ErrNotFound)
}

// Wait returns when the container has stopped.
func (c *Client) Wait(ctx context.Context, id string) (ExitStatus, error) {
	waiting := make(chan ExitStatus, 1)
	c.mu.Lock()
	if status, ok := c.exits[id]; ok {
		c.mu.Unlock()
		return status, nil
	}
	c.waiters[id] = append(c.waiters[id], waiting)
	c.mu.Unlock()
	// It may have stopped before we connected.
	s, err := c.status(ctx, id)
	if err != nil {
		return ExitStatus{}, err
	}
	if s.State == Stopped {
		return s.Exit, nil
	}
	select {
	case status := <-waiting:
		return status, nil
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	case <-c.Done():
		return ExitStatus{}, ErrGone
	}
}

// Resize sets the size of the container's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	_, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.Resize, ID: id, Width: size.Width, Height: size.Height})
	return err
}

// CloseStdin closes the container's standard input for good.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	_, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.CloseStdin, ID: id})
	return err
}

// ReopenLog opens the log path anew, after a rotation; not a byte is lost or
// repeated between the two files.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.ReopenLog, ID: id})
	return err
}

// Cgroup returns the container's cgroup: Stats, Update, Freeze, Thaw, Pids.
// These go straight to the kernel, not through the shim.
func (c *Client) Cgroup(id string) (*cgroup.Group, error) {
	state, err := c.state(id)
	if err != nil {
		return nil, err
	}
	return cgroup.Open(state.Cgroup)
}

var validID = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// state reads what Create has written down.
func (c *Client) state(id string) (*containerState, error) {
	s := new(containerState)
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("container %q: %w", id, ErrNotFound)
	}
	err := readJSON(filepath.Join(c.dir, id, stateName), s)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	return s, err
}
