package oci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/hook"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
)

// CreateOptions are a create's.
type CreateOptions struct {
	Bundle string
	// Opened is the bundle, if the caller has read it already.
	Opened *Bundle
	// ConsoleSocket receives the terminal's master; required with a terminal.
	ConsoleSocket string
	// Files are the container's standard streams and what it keeps beyond.
	Files   []*os.File
	NoPivot bool
	// NoNewKeyring leaves the container the caller's session keyring.
	NoNewKeyring bool
	// Born, if not nil, is called when there is a process that goes on by itself, and before its program runs.
	Born func()
	// Systemd has systemd make the cgroup, from a path of the form "slice:prefix:name".
	Systemd bool
}

// Create makes a container and leaves it waiting for Start. The process is the
// caller's child, and is to be reaped by it or by the subreaper that it leaves
// it to. On error nothing is left.
func (r *Runtime) Create(ctx context.Context, id string, o CreateOptions) (pid int, err error) {
	pid, err = r.make(ctx, id, o, (*creation).create)
	if err != nil {
		return 0, fmt.Errorf("create container %s: %w", id, err)
	}
	return pid, nil
}

// Run is Create and Start in one, without a trip through the file system for
// the latter.
func (r *Runtime) Run(ctx context.Context, id string, o CreateOptions) (pid int, err error) {
	pid, err = r.make(ctx, id, o, (*creation).run)
	if err != nil {
		return 0, fmt.Errorf("run container %s: %w", id, err)
	}
	return pid, nil
}

// creation is a container that is being made.
type creation struct {
	*Runtime
	*Prepared
	record *record
	hooks  *specs.Hooks
	setup  *setup
	o      CreateOptions
	class  []int // tasks files of its class of service
}

// make makes the state directory, and with act the container. On error nothing
// is left.
func (r *Runtime) make(ctx context.Context, id string, o CreateOptions, act func(*creation, context.Context) error) (pid int, err error) {
	if !validID(id) {
		return 0, errors.New("invalid identifier")
	}
	b := o.Opened
	if b == nil {
		if b, err = OpenBundle(o.Bundle); err != nil {
			return 0, err
		}
	}
	if b.Spec.Process != nil && b.Spec.Process.Terminal != (o.ConsoleSocket != "") {
		return 0, errors.New("a console socket is needed with process.terminal, and only then")
	}
	err = os.Mkdir(r.dir(id), 0o711)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(r.Root, 0o711); err == nil {
			err = os.Mkdir(r.dir(id), 0o711)
		}
	}
	if errors.Is(err, os.ErrExist) {
		return 0, ErrExist
	}
	if err != nil {
		return 0, err
	}
	c := &creation{Runtime: r, hooks: b.Spec.Hooks, o: o, record: &record{ID: id, Bundle: b.Dir, Created: time.Now().UTC(),
		Cgroup: CgroupPath(b.Spec, id, o.Systemd), Annotations: b.Spec.Annotations, Spec: b.text}}
	if err := c.prepare(ctx, b.Spec, act); err != nil {
		return 0, errors.Join(err, os.RemoveAll(r.dir(id)))
	}
	return c.record.Pid, nil
}

// prepare decides about the container and has it set up.
func (c *creation) prepare(ctx context.Context, spec *specs.Spec, act func(*creation, context.Context) error) (err error) {
	if h := spec.Hooks; h != nil {
		c.record.Poststart, c.record.Poststop = h.Poststart, h.Poststop
	}
	c.record.Class = spec.Linux != nil && spec.Linux.IntelRdt != nil
	if err := c.write(c.record); err != nil {
		return err
	}
	c.Prepared, err = Prepare(PrepareOptions{ID: c.record.ID, Bundle: c.record.Bundle, Spec: spec, NoPivot: c.o.NoPivot, NoNewKeyring: c.o.NoNewKeyring,
		Preserve: len(c.o.Files) - 3, Systemd: c.o.Systemd, Init: c.Init})
	if err != nil {
		return err
	}
	defer c.Prepared.Close()
	defer func() {
		if err != nil {
			clean := context.WithoutCancel(ctx)
			err = errors.Join(err, c.Group.Destroy(clean), c.record.Shared.clear(c.record))
		}
	}()
	c.record.Rootfs, c.record.Enter = c.Plan.Root, enters(c.Result)
	if c.record.Shared, err = shareRoot(c.Prepared); err != nil {
		return err
	}
	leave, err := c.enterClass(spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(err != nil)) }()
	for _, w := range c.Plan.Process.Warnings {
		c.Log.Warn("container set up with a restriction", "err", w)
	}
	if c.setup, err = newSetup(c.Log, c.o.ConsoleSocket); err != nil {
		return err
	}
	defer c.setup.close()
	if spec.Linux.Seccomp != nil {
		c.setup.agent = &agent{spec.Linux.Seccomp.ListenerPath, spec.Linux.Seccomp.ListenerMetadata, c.record, specs.StateCreating}
	}
	c.setup.hooks = func() error {
		if len(c.NetDevices) > 0 {
			if err := link.MoveTo(fmt.Sprintf("/proc/%d/ns/net", c.setup.pid), c.NetDevices); err != nil {
				return err
			}
		}
		if spec.Hooks == nil {
			return nil
		}
		all := append(append([]specs.Hook(nil), spec.Hooks.Prestart...), spec.Hooks.CreateRuntime...)
		c.record.Pid = c.setup.pid
		return hook.Run(ctx, all, c.record.state(specs.StateCreating))
	}
	return act(c, ctx)
}

// launch starts the init and serves it until it waits to be started. The cgroup is made while the init's program starts and mostly
// makes its network namespace, and signals are caught while the init works: both by this thread, since another one takes longer to
// be made than that.
func (c *creation) launch(start int, extras ...int) error {
	process := launch.Process{Exe: c.Init.FD(), Name: "yare-init", Role: launch.Container, Preserve: len(c.o.Files) - 3,
		CloneFlags: c.CloneFlags, UIDs: c.UIDs, GIDs: c.GIDs, TimeOffsets: c.TimeOffsets, OOMScoreAdj: c.OOMScoreAdj,
		Tasks: c.Entry.Tasks, Cgroup: c.Entry.Dir}
	for i, fd := range c.Joins {
		process.Join = append(process.Join, launch.Namespace{FD: fd, Flags: int(compile.CloneFlag(c.Join[i].Type))})
	}
	c.Plan.Late = true
	if c.CloneFlags&unix.CLONE_NEWNET != 0 && c.lateNetwork() {
		c.Plan.NewNetwork = true
		process.CloneFlags &^= unix.CLONE_NEWNET
	}
	if err := c.Seal(); err != nil {
		return err
	}
	if err := c.setup.launch(process, c.o.Files, c.PlanFD, append([]int{start}, extras...)...); err != nil {
		return c.poor(err)
	}
	if err := c.makeLate(); err != nil {
		c.setup.kill()
		return err
	}
	if c.o.Born != nil {
		c.o.Born()
	}
	c.record.Pid = c.setup.pid
	var noted error
	if c.record.StartTime, noted = linux.StartTime(c.record.Pid); noted == nil {
		noted = c.write(c.record)
	}
	if err := c.setup.until(plan.MsgReady); err != nil {
		return c.poor(err)
	}
	if noted == nil {
		noted = c.publish(c.record)
	}
	if noted != nil {
		c.setup.kill()
	}
	return noted
}

// poor names the limit where the init had too little memory to be born, or to live.
func (c *creation) poor(err error) error {
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, errInitDied) && linux.OOMKilled(c.Group.OOMFile()) {
		return fmt.Errorf("%w for want of memory: raise linux.resources.memory.limit", err)
	}
	return err
}

// lateNetwork tells whether the init may be started in our network namespace, to make its own there. One that is to belong
// to its user namespace is made with it. And in a PID namespace that is others' it would show them ours, as /proc/<pid>/net of
// its first moments.
func (c *creation) lateNetwork() bool {
	return !c.Foreign() && !slices.ContainsFunc(c.Join, func(n compile.Namespace) bool { return n.Type == specs.PIDNamespace })
}

// makeLate makes what the process is to be in and is not born in, and has the init go there.
func (c *creation) makeLate() error {
	var fds []int
	if !c.furnished {
		if err := c.Furnish(); err != nil {
			return err
		}
		fds = c.Entry.Tasks
	}
	err := linux.SendMessage(c.setup.sync, []byte{plan.MsgEnter}, append(slices.Clone(fds), c.class...)...)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // an init that is dead has said why, or is found to be
	}
	return err
}

// create leaves the init waiting at a fifo, and at another to tell how its
// start went.
func (c *creation) create(context.Context) error {
	start, err := c.fifo(fifoName)
	if err != nil {
		return err
	}
	defer unix.Close(start)
	outcome, err := c.fifo(outcomeName)
	if err != nil {
		return err
	}
	defer unix.Close(outcome)
	c.Plan.Outcome = int32(len(c.Extras) + 1)
	return c.launch(start, append(c.Extras, outcome)...)
}

// fifo makes a fifo. Open for reading and writing, it waits for nobody.
func (c *creation) fifo(name string) (int, error) {
	path := filepath.Join(c.dir(c.record.ID), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return -1, linux.Wrap("make fifo", path, err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	return fd, linux.Wrap("open", path, err)
}

// run starts the init at once.
func (c *creation) run(ctx context.Context) error {
	var start [2]int
	if err := unix.Pipe2(start[:], unix.O_CLOEXEC); err != nil {
		return linux.Wrap("make", "pipe", err)
	}
	defer unix.Close(start[1])
	err := c.launch(start[0], c.Extras...)
	unix.Close(start[0])
	if err != nil {
		return err
	}
	if _, err := unix.Write(start[1], []byte{1}); err != nil {
		return linux.Wrap("start", "container", err)
	}
	if err := c.setup.until(0); err != nil {
		return err
	}
	return c.poststart(ctx, c.record)
}

// setup is the launcher's side of an init's set-up.
type setup struct {
	log           *slog.Logger
	consoleSocket string
	hooks         func() error
	agent         *agent
	pid, pidfd    int
	sync, theirs  int // the ends of a socket pair, ours and the init's
}

// newSetup makes what the caller is to close.
func newSetup(log *slog.Logger, consoleSocket string) (*setup, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, linux.Wrap("make", "socket pair", err)
	}
	return &setup{log: log, consoleSocket: consoleSocket, pidfd: -1, sync: pair[0], theirs: pair[1]}, nil
}

// launch starts the init with the streams, the plan and what else it gets.
func (s *setup) launch(p launch.Process, files []*os.File, planFD int, extra ...int) (err error) {
	for _, f := range files {
		p.Files = append(p.Files, int(f.Fd()))
	}
	p.Files = append(append(p.Files, planFD, s.theirs), extra...)
	s.pid, s.pidfd, err = launch.Start(p)
	unix.Close(s.theirs)
	s.theirs = -1
	return err
}

func (s *setup) close() { linux.CloseAll(s.sync, s.theirs, s.pidfd) }

// until serves the init until it says what is awaited; 0 awaits the exec. If
// the set-up fails, the init is dead and reaped.
func (s *setup) until(awaited byte) error {
	err := s.serve(awaited)
	if err != nil {
		s.kill()
	}
	return err
}

// kill ends the init and reaps it.
func (s *setup) kill() {
	_ = linux.SignalPidfd(s.pidfd, unix.SIGKILL)
	_ = linux.Retry(func() error { _, e := unix.Wait4(s.pid, nil, 0, nil); return e })
}

var errInitDied = errors.New("container init died")

func (s *setup) serve(awaited byte) error {
	buf := make([]byte, 4096)
	for {
		n, fds, err := linux.ReceiveMessage(s.sync, buf)
		if errors.Is(err, unix.ECONNRESET) {
			continue // it ended with a message from us unread; what it said before is still to come
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if awaited == 0 {
				return nil
			}
			return errInitDied
		}
		text := string(buf[1:n])
		switch buf[0] {
		case awaited:
			return nil
		case plan.MsgConsole:
			err = sendConsole(s.consoleSocket, fds)
		case plan.MsgHooks:
			if err = s.hooks(); err == nil {
				err = linux.SendMessage(s.sync, []byte{1})
			}
		case plan.MsgListener:
			if err = s.agent.send(s.pid, fds); err == nil {
				err = linux.SendMessage(s.sync, []byte{1})
			}
		case plan.MsgWarning:
			s.log.Warn("container set up with a restriction", "err", text)
		case plan.MsgError, plan.MsgExec:
			err = errors.New(text)
		}
		linux.CloseAll(fds...)
		if err != nil {
			return err
		}
	}
}

// sendConsole hands the terminal's master to whoever listens.
func sendConsole(socket string, fds []int) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("connect to console socket: %w", err)
	}
	defer conn.Close()
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(fds...), nil)
	if err != nil {
		return fmt.Errorf("send terminal: %w", err)
	}
	return nil
}
