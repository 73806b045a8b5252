package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/hook"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
)

// CreateOptions are a create's.
type CreateOptions struct {
	Bundle string
	// ConsoleSocket receives the terminal's master; required with a terminal.
	ConsoleSocket string
	// Files are the container's standard streams and what it keeps beyond.
	Files   []*os.File
	NoPivot bool
}

// Create makes a container and leaves it waiting for Start. The process is the
// caller's child, and is to be reaped by it or by the subreaper that it leaves
// it to. On error nothing is left.
func (r *Runtime) Create(ctx context.Context, id string, o CreateOptions) (pid int, err error) {
	if !validID.MatchString(id) || len(id) > 255 || id == "." || id == ".." {
		return 0, fmt.Errorf("create container %q: invalid identifier", id)
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return 0, fmt.Errorf("create container %s: %w", id, err)
	}
	spec, err := LoadSpec(bundle)
	if err != nil {
		return 0, fmt.Errorf("create container %s: %w", id, err)
	}
	if spec.Process != nil && spec.Process.Terminal != (o.ConsoleSocket != "") {
		return 0, fmt.Errorf("create container %s: a console socket is needed with process.terminal, and only then", id)
	}
	if err := os.MkdirAll(r.Root, 0o711); err != nil {
		return 0, fmt.Errorf("create container %s: %w", id, err)
	}
	if err := os.Mkdir(r.dir(id), 0o711); errors.Is(err, os.ErrExist) {
		return 0, fmt.Errorf("create container %s: %w", id, ErrExist)
	} else if err != nil {
		return 0, fmt.Errorf("create container %s: %w", id, err)
	}
	pid, err = r.create(ctx, id, bundle, spec, o)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("create container %s: %w", id, err), os.RemoveAll(r.dir(id)))
	}
	return pid, nil
}

func (r *Runtime) create(ctx context.Context, id, bundle string, spec *specs.Spec, o CreateOptions) (pid int, err error) {
	c := &record{ID: id, Bundle: bundle, Created: time.Now().UTC(), Cgroup: CgroupPath(spec, id), Annotations: spec.Annotations, Spec: spec}
	if err := r.save(c); err != nil {
		return 0, err
	}
	p, err := Prepare(PrepareOptions{ID: id, Bundle: bundle, Spec: spec, NoPivot: o.NoPivot, Preserve: len(o.Files) - 3})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	c.Rootfs = p.Result.Plan.Root
	defer func() {
		if err != nil {
			clean := context.WithoutCancel(ctx)
			err = errors.Join(err, p.Group.Kill(clean), p.Group.Remove())
		}
	}()
	fifo := filepath.Join(r.dir(id), fifoName)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return 0, linux.Wrap("make fifo", fifo, err)
	}
	// Open for reading and writing, it waits for nobody; the init reads.
	start, err := unix.Open(fifo, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, linux.Wrap("open", fifo, err)
	}
	defer unix.Close(start)
	process := launch.Process{Exe: r.Init.FD(), Name: "yare-init", Role: launch.Container, Preserve: len(o.Files) - 3,
		CloneFlags: p.CloneFlags, UIDs: p.UIDs, GIDs: p.GIDs, Tasks: p.Entry.Tasks, Cgroup: p.Entry.Dir}
	for i, fd := range p.Joins {
		process.Join = append(process.Join, launch.Namespace{FD: fd, Flags: int(compile.CloneFlag(p.Join[i].Type))})
	}
	s := &setup{log: r.Log, consoleSocket: o.ConsoleSocket}
	s.hooks = func() error {
		all := append(append([]specs.Hook(nil), spec.Hooks.Prestart...), spec.Hooks.CreateRuntime...)
		c.Pid = s.pid
		return hook.Run(ctx, all, c.state(specs.StateCreating))
	}
	if err := s.launch(process, o.Files, p.Plan, start); err != nil {
		return 0, err
	}
	defer s.close()
	if err := s.until(plan.MsgReady); err != nil {
		return 0, err
	}
	c.Pid = s.pid
	if c.StartTime, err = linux.StartTime(c.Pid); err != nil {
		return 0, err
	}
	return c.Pid, r.save(c)
}

// setup is the launcher's side of an init's set-up.
type setup struct {
	log           interface{ Warn(string, ...any) }
	consoleSocket string
	hooks         func() error
	pid, pidfd    int
	sync          int
}

// launch starts the init with the streams, the plan and what else it gets.
func (s *setup) launch(p launch.Process, files []*os.File, planFD int, extra ...int) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("make", "socket pair", err)
	}
	defer unix.Close(pair[1])
	for _, f := range files {
		p.Files = append(p.Files, int(f.Fd()))
	}
	p.Files = append(append(p.Files, planFD, pair[1]), extra...)
	if s.pid, s.pidfd, err = launch.Start(p); err != nil {
		unix.Close(pair[0])
		return err
	}
	s.sync = pair[0]
	return nil
}

func (s *setup) close() { linux.CloseAll(s.sync, s.pidfd) }

// until serves the init until it says what is awaited; 0 awaits the exec. If
// the set-up fails, the init is dead and reaped.
func (s *setup) until(awaited byte) error {
	err := s.serve(awaited)
	if err != nil {
		_ = linux.SignalPidfd(s.pidfd, unix.SIGKILL)
		_ = linux.Retry(func() error { _, e := unix.Wait4(s.pid, nil, 0, nil); return e })
	}
	return err
}

func (s *setup) serve(awaited byte) error {
	buf := make([]byte, 4096)
	for {
		n, fds, err := linux.ReceiveMessage(s.sync, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			if awaited == 0 {
				return nil
			}
			return errors.New("container init died")
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
