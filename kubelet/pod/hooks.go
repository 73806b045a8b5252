package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/probe"
	"github.com/yare-dev/yare/run"
)

// Exec runs a command in a container of the runtime; it is what exec probes and hooks use. What it prints ends up in Events: only its
// beginning is returned.
func (p *Pods) Exec(ctx context.Context, id string, command []string, timeout time.Duration) (exit int, output string, err error) {
	seconds := int64((timeout + time.Second - 1) / time.Second)
	got, err := p.cri.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
	if err != nil {
		return 0, "", err
	}
	out := got.Stdout[:min(len(got.Stdout), probe.MaxOutput)]
	rest := got.Stderr[:min(len(got.Stderr), probe.MaxOutput-len(out))]
	return int(got.ExitCode), string(out) + string(rest), nil
}

// hook runs a lifecycle handler to its end, bounded by ctx.
func (p *Pods) hook(ctx context.Context, h *corev1.LifecycleHandler, c *corev1.Container, id, podIP string) error {
	switch {
	case h.Exec != nil:
		var timeout time.Duration // none: ctx bounds it
		if until, ok := ctx.Deadline(); ok {
			timeout = max(time.Until(until), time.Second)
		}
		exit, output, err := p.Exec(ctx, id, h.Exec.Command, timeout)
		if err != nil {
			return fmt.Errorf("exec %q: %w", h.Exec.Command, err)
		}
		if exit != 0 {
			return fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, exit, output)
		}
		return nil
	case h.HTTPGet != nil:
		ok, text, err := p.runner.Run(ctx, corev1.ProbeHandler{HTTPGet: h.HTTPGet}, time.Hour, probe.Subject{Container: c, ID: id, IP: podIP})
		if err == nil && !ok {
			err = errors.New(text)
		}
		return err
	case h.Sleep != nil:
		return run.Pause(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
	}
	return errors.New("the hook has no handler that this node supports")
}

// minGrace is what a container gets after its preStop hook has used up all.
const minGrace = 2 * time.Second

// stop ends a container: preStop hook, then its stop signal, then SIGKILL when grace is over.
func (p *Pods) stop(ctx context.Context, c *Container, of *corev1.Container, podIP string, grace time.Duration) error {
	if of != nil && of.Lifecycle != nil && of.Lifecycle.PreStop != nil && grace > 0 && c.Running() {
		began := time.Now()
		hookCtx, cancel := context.WithTimeout(ctx, grace)
		err := p.hook(hookCtx, of.Lifecycle.PreStop, of, c.Id, podIP)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			p.log.Warn("preStop hook failed", "container", of.Name, "id", c.Id, "err", err)
		}
		grace = max(grace-time.Since(began), minGrace)
	}
	_, err := p.cri.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{
		ContainerId: c.Id, Timeout: int64((grace + time.Second - 1) / time.Second)})
	if err != nil {
		return fmt.Errorf("stop container %s: %w", c.Id, err)
	}
	return nil
}
