package oci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/cgroup"
)

// Errors that a caller tells apart with errors.Is.
var (
	ErrNotExist = errors.New("container does not exist")
	ErrExist    = errors.New("container with given ID already exists")
	ErrState    = errors.New("wrong container state")
	// ErrNotRunning is the ErrState of what has ended. Its text is runc's, which containerd and CRI-O look for.
	ErrNotRunning = fmt.Errorf("container not running: %w", ErrState)
)

// Runtime is the OCI runtime as the command line has it: every call stands
// alone, and all state is below Root. The server does not use it but package
// shim, which shares everything from Prepare down.
type Runtime struct {
	// Root is the state directory.
	Root string
	// Init is the container init; only Create, Run and Exec need it.
	Init *Init
	Log  *slog.Logger
}

// Names in a container's state directory.
const (
	recordName  = "state"
	fifoName    = "start"   // there until the container is started
	outcomeName = "outcome" // a fifo whose end is the exec, and before it a failure
)

// validID tells whether an identifier can be a file name, and is of the letters that runc takes.
func validID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '+' && c != '.' && c != '-' {
			return false
		}
	}
	return len(id) > 0 && len(id) <= 255 && id != "." && id != ".."
}

func (r *Runtime) dir(id string) string { return filepath.Join(r.Root, id) }

// status asks the kernel; the record only says who to ask about.
func (r *Runtime) status(c *record) specs.ContainerState {
	if c.Pid == 0 {
		return specs.StateCreating
	}
	began, err := linux.StartTime(c.Pid)
	if err != nil || began != c.StartTime {
		return specs.StateStopped
	}
	if _, err := os.Stat(filepath.Join(r.dir(c.ID), fifoName)); err == nil {
		return specs.StateCreated
	}
	if group, err := cgroup.Open(c.Cgroup); err == nil {
		if frozen, err := group.Frozen(); err == nil && frozen {
			return "paused"
		}
	}
	return specs.StateRunning
}

// require loads a container that must be in one of the states.
func (r *Runtime) require(verb, id string, states ...specs.ContainerState) (*record, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	status := r.status(c)
	if slices.Contains(states, status) {
		return c, nil
	}
	if status == specs.StateStopped {
		return nil, fmt.Errorf("%s container %s: %w: it is %s", verb, id, ErrNotRunning, status)
	}
	return nil, fmt.Errorf("%s container %s: %w: it is %s", verb, id, ErrState, status)
}

// State is the answer to the verb state.
type State struct {
	specs.State
	Rootfs  string    `json:"rootfs"`
	Created time.Time `json:"created"`
	Owner   string    `json:"owner"`
}

// State returns a container's state.
func (r *Runtime) State(id string) (*State, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	return &State{State: *c.state(r.status(c)), Rootfs: c.Rootfs, Created: c.Created}, nil
}

// List returns all containers below Root.
func (r *Runtime) List() ([]*State, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []*State
	for _, e := range entries {
		if !validID(e.Name()) {
			continue // the init that is kept there
		}
		s, err := r.State(e.Name())
		if errors.Is(err, ErrNotExist) {
			continue // deleted, or not one of ours
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// Kill sends a signal to the container's first process, or to all in its
// cgroup.
func (r *Runtime) Kill(ctx context.Context, id string, sig unix.Signal, all bool) error {
	if all {
		group, err := r.Cgroup(id)
		if err != nil {
			return err
		}
		return group.Signal(ctx, sig)
	}
	c, err := r.require("kill", id, specs.StateCreated, specs.StateRunning, "paused")
	if err != nil {
		return err
	}
	pidfd, err := linux.OpenPid(c.Pid)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	// The pidfd is of whoever has the number now: make sure who that is.
	if began, err := linux.StartTime(c.Pid); err != nil || began != c.StartTime {
		return fmt.Errorf("kill container %s: %w: it is stopped", id, ErrNotRunning)
	}
	return linux.SignalPidfd(pidfd, sig)
}

// Cgroup returns a container's cgroup.
func (r *Runtime) Cgroup(id string) (*cgroup.Group, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	return cgroup.Open(c.Cgroup)
}

// Update changes the limits of a container that has not ended. What limits does not name stay.
func (r *Runtime) Update(id string, limits *specs.LinuxResources) error {
	c, err := r.require("update", id, specs.StateCreated, specs.StateRunning, "paused")
	if err != nil {
		return err
	}
	group, err := cgroup.Open(c.Cgroup)
	if err != nil {
		return err
	}
	return group.Update(limits)
}

// Pause freezes a running container.
func (r *Runtime) Pause(id string) error {
	if _, err := r.require("pause", id, specs.StateRunning, specs.StateCreated); err != nil {
		return err
	}
	group, err := r.Cgroup(id)
	if err != nil {
		return err
	}
	return group.Freeze()
}

// Resume thaws a paused container.
func (r *Runtime) Resume(id string) error {
	if _, err := r.require("resume", id, "paused"); err != nil {
		return err
	}
	group, err := r.Cgroup(id)
	if err != nil {
		return err
	}
	return group.Thaw()
}
