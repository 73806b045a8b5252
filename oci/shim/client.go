package shim

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
)

// Client is a connection to one shim.
type Client struct{}

// Start makes a sandbox: it starts a shim and connects to it. On error nothing
// is left. The shim outlives the caller; see [Client.Shutdown].
func Start(ctx context.Context, c Config) (*Client, error) { return nil, errors.ErrUnsupported }

// Connect attaches to the shim that an earlier process started in dir. It
// returns [ErrGone] when there is none alive; then call [Reap].
func Connect(ctx context.Context, dir string, init *oci.Init, log *slog.Logger) (*Client, error) {
	return nil, errors.ErrUnsupported
}

// Reap frees what a dead shim left behind in dir: it kills all processes in
// the cgroups of the sandbox's containers, removes the cgroups and mounts, and
// returns what is known about the containers: those without an exit record are
// Stopped with code 137. The state directory remains until [Remove].
// It may be repeated.
func Reap(ctx context.Context, dir string, log *slog.Logger) ([]Status, error) {
	return nil, errors.ErrUnsupported
}

// Remove deletes the state directory of a dead shim. A missing one is no error.
func Remove(dir string) error { return errors.ErrUnsupported }

// Pid returns the shim's process id.
func (c *Client) Pid() int { return 0 }

// Namespace returns the path through which others join the sandbox's
// namespace of that type, valid while the shim lives. PID is "" unless the
// sandbox has a shared one, User is "" unless it has one.
func (c *Client) Namespace(t specs.LinuxNamespaceType) string { return "" }

// Done is closed when the shim is dead or the client was closed.
func (c *Client) Done() <-chan struct{} { return nil }

// Events delivers exits from the moment of connecting on. It must be drained.
// It is closed when the shim dies or the client is closed. An exit that
// happened before is found in [Client.Containers].
func (c *Client) Events() <-chan Event { return nil }

// Close disconnects and leaves shim and containers running. Running sessions
// of this client end.
func (c *Client) Close() error { return nil }

// Shutdown kills what is left of the containers, deletes them, ends the shim
// and removes its cgroup and state directory.
func (c *Client) Shutdown(ctx context.Context) error { return errors.ErrUnsupported }

// Create makes a container and leaves it Created, its init waiting for Start.
// On error nothing is left of it. The pid is in the caller's PID namespace.
func (c *Client) Create(ctx context.Context, r CreateRequest) (pid int, err error) {
	return 0, errors.ErrUnsupported
}

// Start lets a Created container run its program and returns when the program
// has been exec'ed, or with the reason why it could not be (the container is
// then Stopped with code 127 or 126).
func (c *Client) Start(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Kill sends a signal to the container's first process, or to all processes
// in its cgroup. A stopped container is ErrState unless all is set.
func (c *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return errors.ErrUnsupported
}

// Delete frees a Created or Stopped container: a waiting init is killed, so is
// every process left in its cgroup; the cgroup and the state are removed. An
// unknown container is ErrNotFound.
func (c *Client) Delete(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Containers lists the sandbox's containers, in order of creation.
func (c *Client) Containers(ctx context.Context) ([]Status, error) {
	return nil, errors.ErrUnsupported
}

// Wait returns when the container has stopped.
func (c *Client) Wait(ctx context.Context, id string) (ExitStatus, error) {
	return ExitStatus{}, errors.ErrUnsupported
}

// Exec runs a process in a running container, copies its streams and returns
// when it has ended and its output was delivered. Cancelling ctx kills it.
// An error means that it could not be run or followed; a process that ran and
// returned non-zero is no error.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (ExitStatus, error) {
	return ExitStatus{}, errors.ErrUnsupported
}

// ExecSync is [Client.Exec] with collected output of at most limit bytes per
// stream (the rest is dropped), and a timeout (0: none) after which the
// process and its children in the same process group are killed and
// [ErrTimeout] is returned together with the output so far.
func (c *Client) ExecSync(ctx context.Context, id string, p *specs.Process, timeout time.Duration, limit int) (stdout, stderr bytes.Buffer, s ExitStatus, err error) {
	return stdout, stderr, s, errors.ErrUnsupported
}

// Attach connects streams to the container's own until the container ends,
// ctx is cancelled, or (without output streams) the input ends. Any number of
// sessions may be attached; each sees all output from then on; a session that
// does not read its output holds the container's output up.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	return errors.ErrUnsupported
}

// Resize sets the size of the container's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	return errors.ErrUnsupported
}

// CloseStdin closes the container's standard input for good.
func (c *Client) CloseStdin(ctx context.Context, id string) error { return errors.ErrUnsupported }

// ReopenLog opens the log path anew, after a rotation; not a byte is lost or
// repeated between the two files.
func (c *Client) ReopenLog(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Cgroup returns the container's cgroup: Stats, Update, Freeze, Thaw, Pids.
// These go straight to the kernel, not through the shim.
func (c *Client) Cgroup(id string) (*cgroup.Group, error) { return nil, errors.ErrUnsupported }
