package criserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/oci/shim"
)

// StopContainer sends the stop signal, waits the grace period (seconds), and
// kills. It may be repeated; a call with a shorter period overtakes one with a
// longer. It is no error for a container that has ended or is unknown.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if cri.Code(err) == codes.NotFound {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.stopContainer(ctx, c, time.Duration(r.GetTimeout())*time.Second); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// signal has the shim signal the container's first process, or all.
func (c *container) signal(ctx context.Context, sig syscall.Signal, all bool) error {
	client, err := c.sandbox.client()
	if err != nil {
		return err
	}
	return client.Kill(ctx, c.id, sig, all)
}

func (s *Server) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	r := c.settled()
	if r.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	if grace > 0 {
		sig, err := parseSignal(r.StopSignal)
		if err != nil {
			s.log.Warn("stop signal not understood, sending TERM", "container", c.id, "err", err)
			sig = syscall.SIGTERM
		}
		err = c.signal(ctx, sig, false)
		if err != nil && !errors.Is(err, shim.ErrState) && !errors.Is(err, shim.ErrNotFound) && !errors.Is(err, shim.ErrGone) {
			s.log.Warn("stop signal not sent, the container is killed", "container", c.id, "err", err)
			return s.kill(ctx, c)
		}
		err = c.wait(ctx, grace)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return s.kill(ctx, c)
}

// settled is the record when no start is under way, whose container would run after a stop that had found it not started.
func (c *container) settled() containerRecord {
	c.mu.Lock()
	rec, starting := c.rec, c.starting
	c.mu.Unlock()
	if !starting {
		return rec
	}
	c.op.Lock() // which the start holds
	defer c.op.Unlock()
	return c.record()
}

// RemoveContainer removes a container, killing it if it runs. Its log stays. It
// is no error for an unknown container.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if cri.Code(err) == codes.NotFound {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removeContainer(ctx, c); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Server) removeContainer(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := s.kill(ctx, c); err != nil {
		return err
	}
	if err := s.eraseContainer(ctx, c); err != nil {
		return err
	}
	r := c.record()
	s.dropContainer(c, containerName(r.Sandbox, r.Metadata))
	s.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// eraseContainer frees what a container has in its shim, in the image store and
// on disk. Every step may be repeated and none minds that there is nothing.
func (s *Server) eraseContainer(ctx context.Context, c *container) error {
	client, err := c.sandbox.client()
	if err == nil {
		err = client.Delete(ctx, c.id)
		if errors.Is(err, shim.ErrState) {
			err = killed(ctx, client, c.id)
		}
		if err != nil && !errors.Is(err, shim.ErrNotFound) && !errors.Is(err, shim.ErrGone) {
			return fmt.Errorf("delete container: %w", err)
		}
	}
	for _, key := range append(c.record().Volumes, c.id) {
		if err := s.images.Unmount(ctx, key); err != nil {
			return err
		}
	}
	return os.RemoveAll(s.containerDir(c.id))
}

// killed deletes a container that runs though it has ended for us: its start had failed, and its kill too.
func killed(ctx context.Context, client *shim.Client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := client.Kill(ctx, id, syscall.SIGKILL, true); err != nil && !errors.Is(err, shim.ErrState) {
		return err
	}
	if _, err := client.Wait(ctx, id); err != nil {
		return err
	}
	return client.Delete(ctx, id)
}

// signalName turns CRI's enumeration ("SIGNAL_SIGRTMINPLUS3") into the usual
// name ("SIGRTMIN+3").
func signalName(sig runtimeapi.Signal) string {
	name := strings.TrimPrefix(sig.String(), "SIGNAL_")
	name = strings.Replace(name, "RTMINPLUS", "RTMIN+", 1)
	return strings.Replace(name, "RTMAXMINUS", "RTMAX-", 1)
}

// signalOf is signalName's opposite; unknown names are the default.
func signalOf(name string) runtimeapi.Signal {
	name = strings.Replace(name, "RTMIN+", "RTMINPLUS", 1)
	name = strings.Replace(name, "RTMAX-", "RTMAXMINUS", 1)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

// Real-time signals as C libraries count them.
const sigRTMin, sigRTMax = 34, 64

// parseSignal reads "SIGTERM", "TERM", "15", "SIGRTMIN+3".
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("signal %d", n)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	for _, rt := range []struct {
		prefix string
		base   int
	}{{"SIGRTMIN", sigRTMin}, {"SIGRTMAX", sigRTMax}} {
		if rest, ok := strings.CutPrefix(name, rt.prefix); ok {
			n := 0
			if rest != "" {
				var err error
				if n, err = strconv.Atoi(rest); err != nil {
					return 0, fmt.Errorf("signal %q", s)
				}
			}
			if n += rt.base; n < sigRTMin || n > sigRTMax {
				return 0, fmt.Errorf("signal %q", s)
			}
			return syscall.Signal(n), nil
		}
	}
	switch name { // second names
	case "SIGIOT":
		name = "SIGABRT"
	case "SIGCLD":
		name = "SIGCHLD"
	case "SIGPOLL":
		name = "SIGIO"
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q", s)
}
