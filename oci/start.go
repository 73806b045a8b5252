package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/hook"
)

// Start lets a created container run its program, and returns when that has
// been exec'ed.
func (r *Runtime) Start(ctx context.Context, id string) error {
	c, err := r.require("start", id, specs.StateCreated)
	if err != nil {
		return err
	}
	if err := r.release(ctx, id); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if err := r.poststart(ctx, c); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return nil
}

// release sends the init on its way and waits for the outcome.
func (r *Runtime) release(ctx context.Context, id string) error {
	path := filepath.Join(r.dir(id), fifoName)
	// Not blocking: if nobody reads, the init is dead.
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", path, err)
	}
	defer unix.Close(fd)
	outcome, err := unix.Open(filepath.Join(r.dir(id), outcomeName), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", outcomeName, err)
	}
	defer unix.Close(outcome)
	// Removed first, so that of two starts one fails.
	if err := os.Remove(path); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		return linux.Wrap("write", path, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(outcome), Events: unix.POLLIN}}, 100)
		if err != nil && err != unix.EINTR {
			return linux.Wrap("wait for", "program", err)
		}
		if n > 0 {
			break
		}
	}
	b, err := linux.ReadAll(outcome)
	if err != nil && err != unix.EAGAIN {
		return linux.Wrap("read", outcomeName, err)
	}
	if len(b) > 0 {
		return errors.New(string(b))
	}
	return nil
}

// poststart runs the hooks after the start. If one fails, the container ends.
func (r *Runtime) poststart(ctx context.Context, c *record) error {
	err := hook.Run(ctx, c.Poststart, c.state(specs.StateRunning))
	if err == nil {
		return nil
	}
	group, gerr := cgroup.Open(c.Cgroup)
	if gerr == nil {
		gerr = group.Kill(context.WithoutCancel(ctx))
	}
	return errors.Join(fmt.Errorf("poststart: %w", err), gerr)
}
