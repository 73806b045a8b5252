package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// connection matches requests with replies, and hands exits on.
type connection struct {
	socket *net.UnixConn
	done   chan struct{}
	onExit func(*protocol.Reply) // called by the reader, in order
	refuse error                 // of every request, if not nil

	mu     sync.Mutex
	serial uint64
	calls  map[uint64]*call
}

// call is one request under way.
type call struct {
	replies chan reply
}

// reply is a message with its descriptors, which are its receiver's.
type reply struct {
	protocol.Reply
	fds []int
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("connect to %s: %w", path, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	return c.(*net.UnixConn), nil
}

func newConnection(socket *net.UnixConn, onExit func(*protocol.Reply)) *connection {
	return &connection{socket: socket, done: make(chan struct{}), onExit: onExit, calls: map[uint64]*call{}}
}

// hear calls news for every message, of which it understands nothing, until the socket ends.
func (c *connection) hear(news func()) {
	defer close(c.done)
	buf := make([]byte, protocol.MaxMessage)
	for {
		if n, err := c.socket.Read(buf); err != nil || n == 0 {
			return
		}
		news()
	}
}

// read delivers messages until the socket ends.
func (c *connection) read() {
	defer close(c.done)
	buf := make([]byte, protocol.MaxMessage)
	oob := make([]byte, unix.CmsgSpace(4*linux.MaxFDs))
	for {
		n, oobn, flags, _, err := c.socket.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		r := reply{fds: rights(oob[:oobn])}
		// The decoded strings are copies, the list's too.
		if flags&unix.MSG_TRUNC != 0 || wire.Unmarshal(buf[:n], &r.Reply) != nil {
			linux.CloseAll(r.fds...)
			return
		}
		if r.Serial == 0 {
			linux.CloseAll(r.fds...)
			c.onExit(&r.Reply)
			continue
		}
		c.mu.Lock()
		waiting := c.calls[r.Serial]
		c.mu.Unlock()
		if waiting == nil {
			linux.CloseAll(r.fds...) // its caller has given up
			continue
		}
		waiting.replies <- r // has room for all replies to one request
	}
}

func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			for _, fd := range got {
				unix.CloseOnExec(fd)
			}
			fds = append(fds, got...)
		}
	}
	return fds
}

// send sends a request with descriptors, which stay the caller's. The caller
// ends the call.
func (c *connection) send(r *protocol.Request, fds ...int) (*call, error) {
	if c.refuse != nil {
		return nil, c.refuse
	}
	k := &call{replies: make(chan reply, 2)}
	c.mu.Lock()
	c.serial++
	r.Serial = c.serial
	c.calls[r.Serial] = k
	c.mu.Unlock()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	b := wire.Marshal(r)
	if len(b) > protocol.MaxMessage {
		c.end(r)
		return nil, errors.New("send to shim: message too long")
	}
	if _, _, err := c.socket.WriteMsgUnix(b, oob, nil); err != nil {
		c.end(r)
		return nil, fmt.Errorf("send to shim: %w", errors.Join(ErrGone, err))
	}
	return k, nil
}

func (c *connection) end(r *protocol.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, r.Serial)
}

// wait returns the call's next reply; an error reply as an error.
func (c *connection) wait(ctx context.Context, k *call) (reply, error) {
	select {
	case r := <-k.replies:
		return r, replyError(&r.Reply)
	case <-ctx.Done():
		return reply{}, ctx.Err()
	case <-c.done:
		select {
		case r := <-k.replies: // came just before the end
			return r, replyError(&r.Reply)
		default:
			return reply{}, ErrGone
		}
	}
}

// request sends and waits for the one reply.
func (c *connection) request(ctx context.Context, r *protocol.Request, fds ...int) (reply, error) {
	k, err := c.send(r, fds...)
	if err != nil {
		return reply{}, err
	}
	defer c.end(r)
	return c.wait(ctx, k)
}

// remoteError is the shim's error, with its class as what it unwraps to.
type remoteError struct {
	text  string
	class error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.class }

func replyError(r *protocol.Reply) error {
	switch r.Code {
	case protocol.OK:
		return nil
	case protocol.NotFound:
		return &remoteError{r.Error, ErrNotFound}
	case protocol.Exists:
		return &remoteError{r.Error, ErrExists}
	case protocol.WrongState:
		return &remoteError{r.Error, ErrState}
	case protocol.NotExecutable:
		return &remoteError{r.Error, ErrNotExecutable}
	}
	return &remoteError{r.Error, nil}
}

func exitStatus(e protocol.Exit) ExitStatus {
	return ExitStatus{Code: int(e.Code), Signal: unix.Signal(e.Signal), OOM: e.OOM, At: time.Unix(0, e.At)}
}

// copyAll copies until the end; an ended reader or writer is no error.
func copyAll(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) }
