package oci

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/hook"
)

// Start lets a created container run its program.
func (r *Runtime) Start(ctx context.Context, id string) error {
	c, err := r.require("start", id, specs.StateCreated)
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir(id), fifoName)
	// Not blocking: if nobody reads, the init is dead.
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("start container "+id+": open", path, err)
	}
	defer unix.Close(fd)
	// Removed first, so that of two starts one fails.
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		return linux.Wrap("start container", id, err)
	}
	if h := c.Spec.Hooks; h != nil {
		if err := hook.Run(ctx, h.Poststart, c.state(specs.StateRunning)); err != nil {
			r.Log.Warn("poststart hook failed", "container", id, "err", err)
		}
	}
	return nil
}
