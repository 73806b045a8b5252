package criserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/yare-dev/yare/linux/netns"
)

// linger is how long a port-forward connection may be silent after the client
// has closed its side.
const linger = 30 * time.Second

// PortForward connects a session's stream to a port of localhost in a sandbox.
func (st *streams) PortForward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
	err := st.forward(ctx, sandbox, port, stream)
	if err != nil {
		// Our caller resets the stream now. It hands it over before it has told
		// the client that the stream is there, and a client whose stream is
		// reset before it is there does not learn why. A write, even of
		// nothing, waits until it is told.
		_, _ = stream.Write(nil)
	}
	return err
}

func (st *streams) forward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
	sb, err := st.s.findSandbox(sandbox)
	if err != nil {
		return err
	}
	conn, err := dialSandbox(ctx, sb.record().NetNS, port)
	if err != nil {
		return fmt.Errorf("forward to port %d of sandbox %s: %w", port, sb.id, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := relay(stream, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("forward to port %d of sandbox %s: %w", port, sb.id, err)
	}
	return nil
}

// halfCloser is a connection whose sending side can be closed alone.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// relay passes both directions on until conn ends.
func relay(stream io.ReadWriter, conn halfCloser) error {
	from := &lingering{conn: conn}
	go func() {
		// Ends with stream, which our caller's caller closes after we return.
		_, err := io.Copy(conn, stream)
		if err != nil {
			conn.Close()
			return
		}
		_ = conn.CloseWrite()
		from.closed.Store(true)
		_ = conn.SetReadDeadline(time.Now().Add(linger)) // of a read that is under way
	}()
	_, err := io.Copy(stream, from)
	return err
}

// lingering reads from a connection that may not be silent for long once the client has closed its side. An answer may take as long as it likes.
type lingering struct {
	conn   net.Conn
	closed atomic.Bool
}

func (l *lingering) Read(b []byte) (int, error) {
	if l.closed.Load() {
		if err := l.conn.SetReadDeadline(time.Now().Add(linger)); err != nil {
			return 0, err
		}
	}
	return l.conn.Read(b)
}

// dialSandbox connects to localhost, IPv4 first, from inside the namespace;
// the connection stays there. An empty netNS is the host's.
func dialSandbox(ctx context.Context, netNS string, port int32) (*net.TCPConn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	var conn net.Conn
	dial := func() error {
		var failed error
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			failed = errors.Join(failed, err)
		}
		return failed
	}
	var err error
	if netNS == "" {
		err = dial()
	} else {
		err = netns.Do(netNS, dial)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
