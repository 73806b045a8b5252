package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/hook"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// containerState is state.json: what later calls, perhaps of another server
// process, need of the spec.
type containerState struct {
	Cgroup      string            `json:"cgroup"`
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Poststart   []specs.Hook      `json:"poststart,omitempty"`
	Poststop    []specs.Hook      `json:"poststop,omitempty"`
	// The compiled filter, for processes that join.
	Seccomp      []byte `json:"seccomp,omitempty"`
	SeccompFlags uint32 `json:"seccompFlags,omitempty"`
	// Runtime is who has made the container; nil: we have.
	Runtime *Runtime `json:"runtime,omitempty"`
	// Users says that the container is in a user namespace of its own.
	Users bool `json:"users,omitempty"`
}

func (s *containerState) oci(id string, status specs.ContainerState, pid int) *specs.State {
	return &specs.State{Version: specs.Version, ID: id, Status: status, Pid: pid, Bundle: s.Bundle, Annotations: s.Annotations}
}

func runHooks(ctx context.Context, hooks []specs.Hook, state *specs.State) error {
	return hook.Run(ctx, hooks, state)
}

// Create makes a container and leaves it Created, its init waiting for Start.
// On error nothing is left of it. The pid is in the caller's PID namespace.
func (c *Client) Create(ctx context.Context, r CreateRequest) (pid int, err error) {
	if !validID.MatchString(r.ID) {
		return 0, fmt.Errorf("create container %q: invalid identifier", r.ID)
	}
	spec := r.Spec
	if spec == nil {
		if spec, err = oci.LoadSpec(r.Bundle); err != nil {
			return 0, err
		}
	}
	dir := filepath.Join(c.dir, r.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			// Left by a server that was killed before the shim knew of it?
			if _, serr := c.status(ctx, r.ID); !errors.Is(serr, ErrNotFound) {
				return 0, errors.Join(ErrExists, serr)
			}
		} else {
			return 0, err
		}
	}
	create := c.create
	if r.Runtime != nil {
		create = c.createForeign
	}
	pid, err = create(ctx, &r, spec, dir)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	c.mu.Lock()
	delete(c.exits, r.ID) // of one that was given up
	c.mu.Unlock()
	return pid, nil
}

func (c *Client) create(ctx context.Context, r *CreateRequest, spec *specs.Spec, dir string) (pid int, err error) {
	// Written first, so that a server that is killed from here on leaves
	// nothing that cannot be found.
	state := &containerState{Cgroup: oci.CgroupPath(spec, r.ID, false), Bundle: r.Bundle, Annotations: spec.Annotations}
	if l := spec.Linux; l != nil {
		state.Users = slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	}
	if h := spec.Hooks; h != nil {
		state.Poststart, state.Poststop = h.Poststart, h.Poststop
	}
	if err := writeJSON(filepath.Join(dir, stateName), state); err != nil {
		return 0, err
	}
	p, err := oci.Prepare(oci.PrepareOptions{ID: r.ID, Bundle: r.Bundle, Spec: spec})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	defer func() {
		if err != nil {
			clean := context.WithoutCancel(ctx)
			err = errors.Join(err, p.Group.Destroy(clean))
		}
	}()
	if err := p.Furnish(); err != nil {
		return 0, err
	}
	switch {
	case p.Plan.Process.Notify: // the shim would have to talk to the agent
		return 0, errors.New("linux.seccomp.listenerPath: not supported in pods")
	case r.Spec.Linux.IntelRdt != nil:
		return 0, errors.New("linux.intelRdt: not supported in pods")
	case len(p.NetDevices) > 0: // the network namespace is the pod's, of all its containers
		return 0, errors.New("linux.netDevices: not supported in pods")
	case p.Plan.Shared:
		return 0, errors.New("linux.namespaces: a mount namespace of its own is required in pods")
	}
	for _, w := range p.Plan.Process.Warnings {
		c.log.Warn("container set up with a restriction", "container", r.ID, "err", w)
	}
	if len(p.Plan.Process.Seccomp) > 0 {
		state.Seccomp, state.SeccompFlags = p.Plan.Process.Seccomp, p.Plan.Process.SeccompFlags
		if err := writeJSON(filepath.Join(dir, stateName), state); err != nil {
			return 0, err
		}
	}
	request := &protocol.Request{Verb: protocol.Create, ID: r.ID, LogPath: r.LogPath, Terminal: spec.Process.Terminal,
		Stdin: r.Stdin, StdinOnce: r.StdinOnce, OOMFile: p.Group.OOMFile(), CgroupPath: state.Cgroup, Launch: wireLaunch(p)}
	if err := p.Seal(); err != nil {
		return 0, err
	}
	fds := []int{p.PlanFD}
	if p.Entry.Dir >= 0 {
		fds = append(fds, p.Entry.Dir)
	}
	fds = append(append(append(fds, p.Entry.Tasks...), p.Joins...), p.Extras...)
	return c.launch(ctx, request, fds, spec, state)
}

// launch has the shim start the init, and runs the runtime hooks on the way.
func (c *Client) launch(ctx context.Context, r *protocol.Request, fds []int, spec *specs.Spec, state *containerState) (int, error) {
	call, err := c.conn.send(r, fds...)
	if err != nil {
		return 0, err
	}
	defer c.conn.end(r)
	answer, err := c.conn.wait(ctx, call)
	if err == nil && answer.Phase {
		s := state.oci(r.ID, specs.StateCreating, answer.Pid)
		if err = runHooks(ctx, append(append([]specs.Hook(nil), spec.Hooks.Prestart...), spec.Hooks.CreateRuntime...), s); err == nil {
			_, err = c.conn.request(ctx, &protocol.Request{Verb: protocol.Continue, ID: r.ID})
		}
		if err == nil {
			answer, err = c.conn.wait(ctx, call)
		}
	}
	if err != nil {
		// Whatever the shim has made of it so far has to go; after an error
		// reply there is nothing, and that is fine.
		clean := context.WithoutCancel(ctx)
		_, _ = c.conn.request(clean, &protocol.Request{Verb: protocol.Abandon, ID: r.ID})
		return 0, err
	}
	for _, w := range answer.Warnings {
		c.log.Warn("container set up with a restriction", "container", r.ID, "err", w)
	}
	return answer.Pid, nil
}

func wireLaunch(p *oci.Prepared) protocol.Launch {
	l := protocol.Launch{CloneFlags: uint64(p.CloneFlags), HasCgroup: p.Entry.Dir >= 0, Tasks: len(p.Entry.Tasks), TimeOffsets: p.TimeOffsets,
		OOMScoreAdj: p.OOMScoreAdj}
	for _, n := range p.Join {
		l.Join = append(l.Join, uint64(compile.CloneFlag(n.Type)))
	}
	for _, m := range p.UIDs {
		l.UIDs = append(l.UIDs, protocol.IDMap{Container: m.ContainerID, Host: m.HostID, Size: m.Size})
	}
	for _, m := range p.GIDs {
		l.GIDs = append(l.GIDs, protocol.IDMap{Container: m.ContainerID, Host: m.HostID, Size: m.Size})
	}
	return l
}
