package devicetest

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Sockets are sockets in memory, by path.
type Sockets struct {
	mu  sync.Mutex
	all map[string]*listener
}

// Listen listens at the path until the listener is closed.
func (s *Sockets) Listen(path string) net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]*listener{}
	}
	l := &listener{of: s, path: path, conns: make(chan net.Conn), closed: make(chan struct{})}
	s.all[path] = l
	return l
}

// Dial connects to who listens at the path.
func (s *Sockets) Dial(ctx context.Context, path string) (net.Conn, error) {
	s.mu.Lock()
	l := s.all[path]
	s.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("connect to %s: nobody listens", path)
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, fmt.Errorf("connect to %s: %w", path, net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type listener struct {
	of     *Sockets
	path   string
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.of.mu.Lock()
		defer l.of.mu.Unlock()
		if l.of.all[l.path] == l {
			delete(l.of.all, l.path)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }
