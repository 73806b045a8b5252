package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/hook"
)

// Delete frees a stopped container, or with force one in any state; force also
// makes a missing one no error.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	c, err := r.load(id)
	if errors.Is(err, ErrNotExist) && force {
		return r.remove(id) // a create that was killed before it had written anything leaves its directory
	}
	if err != nil {
		return err
	}
	status := r.status(c)
	switch {
	case status == specs.StateStopped || status == specs.StateCreating || force:
	case status == specs.StateCreated: // as runc: what never ran may go
		if err := r.Kill(ctx, id, unix.SIGKILL, false); err != nil && !errors.Is(err, ErrState) {
			return err
		}
	default:
		return fmt.Errorf("delete container %s: %w: it is %s", id, ErrState, status)
	}
	group, err := cgroup.Open(c.Cgroup)
	if err != nil {
		return err
	}
	if err := group.Destroy(ctx); err != nil {
		return err
	}
	if err := errors.Join(c.leaveClass(), c.Shared.clear(c)); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if err := r.remove(id); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	for i := range c.Poststop { // whatever one does, the others and the deletion go on
		if err := hook.Run(ctx, c.Poststop[i:i+1], c.state(specs.StateStopped)); err != nil {
			r.Log.Warn("poststop hook failed", "container", id, "err", err)
		}
	}
	return nil
}

// remove removes the state directory, in which there is mostly but one file.
func (r *Runtime) remove(id string) error {
	_ = unix.Unlink(filepath.Join(r.dir(id), recordName))
	if unix.Rmdir(r.dir(id)) == nil {
		return nil
	}
	return os.RemoveAll(r.dir(id))
}
