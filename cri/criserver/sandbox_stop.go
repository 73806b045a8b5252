package criserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/shim"
)

// killTimeout bounds the wait for a killed container to be reaped. Only a
// process stuck in the kernel takes that long.
const killTimeout = 10 * time.Second

// StopPodSandbox kills what runs in a sandbox and frees its network and shim.
// It may be repeated, and is no error for an unknown sandbox.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if cri.Code(err) == codes.NotFound {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if err := s.stopSandbox(ctx, sb); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stopSandbox is StopPodSandbox. Preconditions: sb.op is held.
func (s *Server) stopSandbox(ctx context.Context, sb *sandbox) error {
	if sb.record().Stopped {
		return nil
	}
	containers := s.containersOf(sb.id)
	if _, err := sb.client(); err == nil { // else they end as a dead shim's
		work, workCtx := errgroup.WithContext(ctx)
		for _, c := range containers {
			work.Go(func() error { return s.kill(workCtx, c) })
		}
		if err := work.Wait(); err != nil {
			return err
		}
	}
	if err := sb.condemn(); err != nil {
		s.log.Error("record not written", "sandbox", sb.id, "err", err) // at its end it must be
	}
	if err := s.dismantle(ctx, sb); err != nil {
		return err
	}
	for _, c := range containers {
		// A container that never started ends with its shim.
		s.markExited(c, shim.ExitStatus{Code: 137, Signal: syscall.SIGKILL, At: time.Now()}, "")
	}
	if err := sb.change(func(r *sandboxRecord) { r.Stopped = true }); err != nil {
		return err
	}
	s.emit(sb, sb.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// kill ends a running container and waits until its exit is recorded.
func (s *Server) kill(ctx context.Context, c *container) error {
	r := c.record()
	if r.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	err := c.signal(ctx, syscall.SIGKILL, true)
	if errors.Is(err, shim.ErrNotFound) || errors.Is(err, shim.ErrState) || errors.Is(err, shim.ErrGone) || errors.Is(err, errUnreached) {
		err = nil // it ended, or its shim did, or may have: its exit is on its way
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return c.wait(ctx, killTimeout)
}

// wait returns when the container's exit is recorded.
func (c *container) wait(ctx context.Context, most time.Duration) error {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for container %s to end: %w", c.id, ctx.Err())
	case <-t.C:
		return fmt.Errorf("container %s did not end within %v: %w", c.id, most, context.DeadlineExceeded)
	}
}

// dismantle frees all that a sandbox has in the kernel. Every step may be
// repeated and none minds that there is nothing. Preconditions: sb.op is held,
// or nobody else knows sb.
func (s *Server) dismantle(ctx context.Context, sb *sandbox) error {
	sb.mu.Lock()
	sb.leaving = true
	rec := sb.rec
	sb.mu.Unlock()
	// The shim first: as long as it is there a server that comes after us takes the sandbox for ready, with all that it has,
	// and as long as a process may be in the network namespace its address is not given to another.
	if err := s.endShim(ctx, sb); err != nil {
		return err
	}
	if err := unmountShm(s.sandboxDir(sb.id)); err != nil {
		return err
	}
	if rec.NetNS != "" {
		if err := s.removeNetwork(ctx, &rec); err != nil {
			return err
		}
	}
	return oci.ReleaseUsers(s.usersDir(sb.id))
}

// removeNetwork takes a sandbox's network namespace apart, in which nobody lives any more.
func (s *Server) removeNetwork(ctx context.Context, rec *sandboxRecord) error {
	pod, err := networkPod(rec)
	if err != nil {
		return err
	}
	if err := s.network.Teardown(ctx, pod); err != nil {
		return fmt.Errorf("tear down network: %w", err)
	}
	if err := s.network.DeleteNamespace(ctx, rec.NetNS); err != nil {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

func (s *Server) endShim(ctx context.Context, sb *sandbox) error {
	if client, err := sb.client(); err == nil {
		err := client.Shutdown(ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, shim.ErrGone) {
			return fmt.Errorf("shut shim down: %w", err)
		}
	}
	dir := s.shimDir(sb.id)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := shim.Reap(ctx, dir, s.log); err != nil {
		return fmt.Errorf("reap shim: %w", err)
	}
	return shim.Remove(dir)
}

func unmountShm(dir string) error {
	shm := filepath.Join(dir, "shm")
	err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return linux.Wrap("unmount", shm, err)
}

// eraseSandbox removes a sandbox that nobody knows (any more).
func (s *Server) eraseSandbox(ctx context.Context, sb *sandbox) error {
	if err := s.dismantle(ctx, sb); err != nil {
		return err
	}
	return os.RemoveAll(s.sandboxDir(sb.id))
}

// RemovePodSandbox removes a sandbox and its containers, whatever they do. It is
// no error for an unknown sandbox.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if cri.Code(err) == codes.NotFound {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	sb.op.Lock()
	defer sb.op.Unlock()
	if err := s.removeSandbox(ctx, sb); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *Server) removeSandbox(ctx context.Context, sb *sandbox) error {
	if err := s.stopSandbox(ctx, sb); err != nil {
		return err
	}
	for _, c := range s.containersOf(sb.id) {
		if err := s.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.sandboxDir(sb.id)); err != nil {
		return err
	}
	s.dropSandbox(sb, sandboxName(sb.config.GetMetadata()))
	s.labels.free(sb.record().Level)
	s.emit(sb, sb.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}
