package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// Exec runs a process in a running container, copies its streams and returns
// when it has ended and its output was delivered. Cancelling ctx kills it.
// An error means that it could not be run or followed (it does not repeat the ID); a process that ran and
// returned non-zero is no error.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (ExitStatus, error) {
	state, err := c.state(r.ID)
	if err != nil {
		return ExitStatus{}, err
	}
	r.Process = c.scored(r.Process)
	var request *protocol.Request
	var fds []int
	log := ""
	if state.Runtime == nil {
		request, fds, err = c.execRequest(r, state)
		defer func() { linux.CloseAll(fds...) }()
	} else {
		request, log, err = c.foreignExec(&r, state.Runtime)
		defer os.RemoveAll(log)
	}
	if err != nil {
		return ExitStatus{}, err
	}
	pipes, err := openPipes(r.Streams, r.Process.Terminal)
	if err != nil {
		return ExitStatus{}, err
	}
	defer pipes.close()
	request.Streams = pipes.mask
	answer, err := c.launchExec(ctx, request, append(fds[:len(fds):len(fds)], pipes.theirFDs()...))
	pipes.closeTheirs()
	if err != nil {
		linux.CloseAll(answer.fds...)
		return ExitStatus{}, state.Runtime.explain(err, filepath.Join(log, logJSONName))
	}
	for _, w := range answer.Warnings {
		c.log.Warn("process set up with a restriction", "container", r.ID, "err", w)
	}
	if r.Process.Terminal {
		if len(answer.fds) != 1 {
			linux.CloseAll(answer.fds...)
			return ExitStatus{}, errors.New("no terminal was made")
		}
		if err := pipes.terminal(answer.fds[0]); err != nil {
			return ExitStatus{}, err
		}
	}
	return c.follow(ctx, answer.Session, r.Streams, pipes)
}

// execRequest makes the plan and opens the cgroup. The descriptors are the
// caller's, also with an error.
func (c *Client) execRequest(r ExecRequest, state *containerState) (*protocol.Request, []int, error) {
	p, err := compile.Process(r.Process, nil, oci.Host())
	if err != nil {
		return nil, nil, err
	}
	var score *int32
	if state.Users {
		score, p.OOMScoreAdj = p.OOMScoreAdj, nil
	}
	p.Seccomp, p.SeccompFlags, p.JoinMount = state.Seccomp, state.SeccompFlags, true
	group, err := cgroup.Open(state.Cgroup)
	if err != nil {
		return nil, nil, err
	}
	entry, err := group.Entry()
	if err != nil {
		return nil, nil, err
	}
	request := &protocol.Request{Verb: protocol.Exec, ID: r.ID,
		Launch: protocol.Launch{HasCgroup: entry.Dir >= 0, Tasks: len(entry.Tasks), OOMScoreAdj: score}}
	planFD, err := oci.SealPlan(p)
	fds := []int{planFD}
	if entry.Dir >= 0 {
		fds = append(fds, entry.Dir)
	}
	return request, append(fds, entry.Tasks...), err
}

// launchExec has the process started. When ctx ends before it is, it is killed; the answer is awaited all the same.
func (c *Client) launchExec(ctx context.Context, request *protocol.Request, fds []int) (reply, error) {
	call, err := c.conn.send(request, fds...)
	if err != nil {
		return reply{}, err
	}
	defer c.conn.end(request)
	answer, err := c.conn.wait(ctx, call)
	if err == nil || ctx.Err() == nil {
		return answer, err
	}
	clean := context.WithoutCancel(ctx)
	if _, err := c.conn.request(clean, &protocol.Request{Verb: protocol.KillExec, Call: request.Serial, Signal: int32(unix.SIGKILL)}); err != nil {
		return reply{}, err
	}
	answer, err = c.conn.wait(clean, call)
	if err != nil {
		err = ctx.Err()
	}
	return answer, err
}

// follow copies streams until the process has ended.
func (c *Client) follow(ctx context.Context, session uint64, s Streams, p *pipes) (ExitStatus, error) {
	exit := make(chan ExitStatus, 1)
	c.mu.Lock()
	if status, ok := c.early[session]; ok {
		delete(c.early, session)
		exit <- status
	} else {
		c.sessions[session] = exit
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.sessions, session)
		c.mu.Unlock()
	}()
	p.copy(s)
	defer p.wait()
	select {
	case status := <-exit:
		p.drain()
		if ctx.Err() != nil && status.Code == 128+int(unix.SIGKILL) { // by us, be it before we followed
			return ExitStatus{}, ctx.Err()
		}
		return status, nil
	case <-ctx.Done():
		clean := context.WithoutCancel(ctx)
		_, err := c.conn.request(clean, &protocol.Request{Verb: protocol.KillExec, Session: session, Signal: int32(unix.SIGKILL)})
		if err == nil {
			select {
			case <-exit:
			case <-c.Done():
			}
		}
		p.drain()
		return ExitStatus{}, ctx.Err()
	case <-c.Done():
		p.abort()
		return ExitStatus{}, ErrGone
	}
}

// ExecSync is [Client.Exec] with collected output of at most limit bytes of both
// streams together (the rest is dropped), and a timeout (0: none) after which the
// process and its children in the same process group are killed and
// [ErrTimeout] is returned together with the output so far.
func (c *Client) ExecSync(ctx context.Context, id string, p *specs.Process, timeout time.Duration, limit int) (stdout, stderr []byte, s ExitStatus, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, ErrTimeout)
		defer cancel()
	}
	left := &budget{left: limit}
	out, errs := &limited{budget: left}, &limited{budget: left}
	s, err = c.Exec(ctx, ExecRequest{ID: id, Process: p, Streams: Streams{Stdout: out, Stderr: errs}})
	if err != nil && errors.Is(context.Cause(ctx), ErrTimeout) {
		err = fmt.Errorf("%w after %s", ErrTimeout, timeout)
	}
	return out.kept.Bytes(), errs.kept.Bytes(), s, err
}

// budget is what may be kept yet, by whoever comes first.
type budget struct {
	mu   sync.Mutex
	left int
}

// take takes as much of n as there is.
func (b *budget) take(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, b.left)
	b.left -= n
	return n
}

// limited keeps what fits.
type limited struct {
	kept   bytes.Buffer
	budget *budget
}

func (l *limited) Write(b []byte) (int, error) {
	l.kept.Write(b[:l.budget.take(len(b))])
	return len(b), nil
}

// Attach connects streams to the container's own until the container ends,
// ctx is cancelled, or (without output streams) the input ends. Any number of
// sessions may be attached; each sees all output from then on; a session that
// does not read its output holds the container's output up.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	p, err := openPipes(s, false)
	if err != nil {
		return err
	}
	defer p.close()
	_, err = c.conn.request(ctx, &protocol.Request{Verb: protocol.Attach, ID: id, Streams: p.mask}, p.theirFDs()...)
	p.closeTheirs()
	if err != nil {
		return err
	}
	p.resize = func(size Size) { _ = c.Resize(ctx, id, size) } // a container without a terminal has no size
	p.copy(s)
	defer p.wait()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		p.abort()
		return ctx.Err()
	}
}
