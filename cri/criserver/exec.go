package criserver

import (
	"context"
	"errors"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/shim"
)

// maxExecOutput is what ExecSync keeps of both streams together, in bytes; the
// rest is dropped (CVE-2022-1708). Upstream's kubelet takes no larger message
// than 16 MiB, in which the answer's other fields must fit.
const maxExecOutput = 16<<20 - 64

// ExecSync runs a command in a container and returns its output. A command that
// outlives the timeout (seconds, 0: none) is killed; the error is
// DeadlineExceeded.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	process, err := s.execProcess(c, r.GetCmd(), false)
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(r.GetTimeout()) * time.Second
	client, err := c.sandbox.client()
	if err != nil {
		return nil, shimError(err)
	}
	stdout, stderr, exit, err := client.ExecSync(ctx, c.id, process, timeout, maxExecOutput)
	if errors.Is(err, shim.ErrTimeout) {
		return nil, status.Errorf(codes.DeadlineExceeded, "timeout %v exceeded", timeout)
	}
	if err != nil {
		return nil, shimError(err)
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(exit.Code)}, nil
}

// execProcess is a further process like the container's first, as the same user.
func (s *Server) execProcess(c *container, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, status.Error(codes.InvalidArgument, "exec: a command is required")
	}
	if _, err := s.pidOf(c); err != nil {
		return nil, err
	}
	p := *c.record().Process
	p.Args, p.Terminal, p.ConsoleSize = cmd, tty, nil
	if tty {
		env := newEnv(p.Env...)
		if _, ok := env.index["TERM"]; !ok {
			env.set("TERM=xterm")
		}
		p.Env = env.list
	}
	return &p, nil
}

// Exec prepares a session; the answer is the URL to connect to.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := s.pidOf(c); err != nil {
		return nil, err
	}
	return s.streams.server.GetExec(r)
}

// Attach prepares a session with the container's own streams.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := s.pidOf(c); err != nil {
		return nil, err
	}
	return s.streams.server.GetAttach(r)
}

// PortForward prepares a session to ports of a sandbox.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if rec := sb.record(); rec.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Error(codes.FailedPrecondition, "the sandbox is not ready")
	}
	return s.streams.server.GetPortForward(r)
}
