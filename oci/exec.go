package oci

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/launch"
)

// ExecOptions are an exec's.
type ExecOptions struct {
	Process       *specs.Process // read only
	ConsoleSocket string
	Files         []*os.File // standard streams and what the process keeps beyond
	Paused        bool       // also in a paused container: the process begins when that is resumed
}

// Exec starts a process in a running container and returns when its program
// has been exec'ed. It is the caller's child.
func (r *Runtime) Exec(_ context.Context, id string, o ExecOptions) (pid int, err error) {
	states := []specs.ContainerState{specs.StateRunning}
	if o.Paused {
		states = append(states, "paused")
	}
	c, err := r.require("exec in", id, states...)
	if err != nil {
		return 0, err
	}
	if o.Process.Terminal != (o.ConsoleSocket != "") {
		return 0, fmt.Errorf("exec in container %s: a console socket is needed with a terminal, and only then", id)
	}
	spec, err := c.spec()
	if err != nil {
		return 0, err
	}
	p, err := compile.Process(o.Process, spec.Linux.Seccomp, Host())
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	for _, w := range p.Warnings {
		r.Log.Warn("process set up with a restriction", "container", id, "err", w)
	}
	process := launch.Process{Exe: r.Init.FD(), Name: "yare-init", Role: launch.Exec, Preserve: len(o.Files) - 3, CPUs: CPUSet(p.FirstCPUs)}
	if c.Enter&unix.CLONE_NEWUSER != 0 {
		process.OOMScoreAdj, p.OOMScoreAdj = p.OOMScoreAdj, nil
	}
	p.JoinMount, p.Preserve = true, int32(len(o.Files)-3)
	planFD, err := SealPlan(p)
	if err != nil {
		return 0, err
	}
	defer unix.Close(planFD)
	pidfd, err := linux.OpenPid(c.Pid)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	if began, err := linux.StartTime(c.Pid); err != nil || began != c.StartTime {
		return 0, fmt.Errorf("exec in container %s: %w: it is stopped", id, ErrNotRunning)
	}
	group, err := r.Cgroup(id)
	if err != nil {
		return 0, err
	}
	entry, err := group.Entry()
	if err != nil {
		return 0, err
	}
	defer entry.Close()
	s, err := newSetup(r.Log, o.ConsoleSocket)
	if err != nil {
		return 0, err
	}
	defer s.close()
	if sec := spec.Linux.Seccomp; sec != nil {
		s.agent = &agent{sec.ListenerPath, sec.ListenerMetadata, c, specs.StateRunning}
	}
	class, err := c.class(spec)
	if err == nil && class != nil {
		entry.Tasks, err = class.Tasks(entry.Tasks)
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	process.Tasks, process.Cgroup = entry.Tasks, entry.Dir
	process.Join = []launch.Namespace{{FD: pidfd, Flags: launch.Before | c.Enter}}
	if err := s.launch(process, o.Files, planFD, planFD, pidfd); err != nil {
		return 0, err
	}
	if err := s.until(0); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	if err := group.Recheck(entry); err != nil {
		s.kill()
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return s.pid, nil
}

// CPUSet turns a bit mask into what the launcher takes; nil for none.
func CPUSet(mask []uint64) *unix.CPUSet {
	if len(mask) == 0 {
		return nil
	}
	set := new(unix.CPUSet)
	for i := range mask {
		for bit := range 64 {
			if mask[i]&(1<<bit) != 0 {
				set.Set(64*i + bit)
			}
		}
	}
	return set
}
