package criserver

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/shim"
)

// exitStartError is the code of a container whose program could not be run, as
// containerd reports it.
const exitStartError = 128

// StartContainer lets a created container run.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	client, unreached := c.sandbox.client()
	c.mu.Lock()
	if st := c.rec.state(); st != runtimeapi.ContainerState_CONTAINER_CREATED {
		c.mu.Unlock()
		return nil, status.Errorf(codes.FailedPrecondition, "the container is %s", st)
	}
	if unreached != nil {
		c.mu.Unlock()
		return nil, shimError(unreached)
	}
	c.starting = true
	c.mu.Unlock()
	started := now() // not after the program: what it does at once, and its end, come later
	startErr := client.Start(ctx, c.id)
	if startErr != nil {
		s.endFailed(ctx, c)
	}
	c.mu.Lock()
	var recordErr error
	if startErr == nil {
		recordErr = c.change(func(r *containerRecord) { r.Started = started })
	} else {
		c.rec.Message = startErr.Error()
	}
	c.mu.Unlock()
	if startErr == nil { // told before the end, which is held back until now
		s.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	s.started(c, startErr != nil)
	if startErr != nil {
		return nil, startErr
	}
	if recordErr != nil {
		return nil, fmt.Errorf("the container runs, but: %w", recordErr)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// endFailed kills a container whose start failed. It may run all the same, or be about to: when the caller has not waited for the start,
// or when another runtime has found fault after it.
func (s *Server) endFailed(ctx context.Context, c *container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	err := c.signal(ctx, syscall.SIGKILL, true)
	if err != nil && !errors.Is(err, shim.ErrState) && !errors.Is(err, shim.ErrNotFound) && !errors.Is(err, shim.ErrGone) {
		s.log.Error("container whose start failed is not killed, it ends with its removal", "container", c.id, "err", err)
	}
}

// started ends the time in which the container's end is held back. One whose start failed has ended, whatever its shim tells
// of that: no other word may come between.
func (s *Server) started(c *container, failed bool) {
	c.mu.Lock()
	early := c.early
	c.starting, c.early = false, nil
	reason := ""
	if failed {
		exit := shim.ExitStatus{Code: exitStartError, At: time.Now()}
		if early != nil {
			exit.At = early.At
		}
		early, reason = &exit, "StartError"
	}
	news := early != nil && s.recordExit(c, *early, reason)
	c.mu.Unlock()
	if news {
		s.tellExit(c, *early)
	}
}

// pidOf is a running container's first process.
func (s *Server) pidOf(c *container) (int, error) {
	r := c.record()
	if r.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return 0, status.Error(codes.FailedPrecondition, "the container is not running")
	}
	return c.pid, nil
}

// shimError gives a shim's errors their gRPC codes.
func shimError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, shim.ErrTimeout):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, shim.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, shim.ErrState):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, shim.ErrGone), errors.Is(err, errUnreached):
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}
