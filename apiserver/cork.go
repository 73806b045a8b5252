package apiserver

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// corks lays a cork over each connection that l accepts.
type corks struct{ net.Listener }

func (l corks) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cork{Conn: c}, nil
}

// cork is a connection below TLS whose writes can be held back, to be sent together. TLS writes each of its records, of 16 KiB
// at most, by itself, and HTTP/1 makes three or more records of a chunk; each is a system call here and another where the
// client reads.
type cork struct {
	net.Conn

	mu   sync.Mutex
	held *[]byte // nil while nothing is held back
}

// heldBuffers are those of corks in use.
var heldBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Write holds back what is written under the cork, up to a chunk.
func (c *cork) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.Conn.Write(b)
	}
	if *c.held = append(*c.held, b...); len(*c.held) >= chunk {
		return len(b), c.send()
	}
	return len(b), nil
}

// send writes what is held back.
// Preconditions: mu is held, and something may be held back.
func (c *cork) send() error {
	if len(*c.held) == 0 {
		return nil
	}
	_, err := c.Conn.Write(*c.held)
	*c.held = (*c.held)[:0]
	return err
}

// press begins to hold back.
func (c *cork) press() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = heldBuffers.Get().(*[]byte)
	}
}

// pull sends what is held back and ends it.
func (c *cork) pull() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return nil
	}
	err := c.send()
	heldBuffers.Put(c.held)
	c.held = nil
	return err
}

// corkKey is the context key of the cork of a request's connection.
type corkKey struct{}

// withCork is for http.Server.ConnContext.
func withCork(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if k, ok := t.NetConn().(*cork); ok {
			return context.WithValue(ctx, corkKey{}, k)
		}
	}
	return ctx
}

// together calls write, whose writes to the connection are sent together where that is this request's alone: in HTTP/2, others
// share it.
func together(r *http.Request, write func() error) error {
	k, ok := r.Context().Value(corkKey{}).(*cork)
	if !ok || r.ProtoMajor != 1 {
		return write()
	}
	k.press()
	err := write()
	if sent := k.pull(); err == nil {
		err = sent
	}
	return err
}
