package apiserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/apiserver"
)

// pipes is a listener within the process, so that it can be used in a bubble.
type pipes struct {
	net.Listener
	calls chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{calls: make(chan net.Conn), done: make(chan struct{})} }

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.calls:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { close(l.done); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (l *pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	l.calls <- there
	return here, nil
}

// deaf is a connection whose client reads nothing after so many bytes.
type deaf struct {
	net.Conn
	left int
	done chan struct{}
}

func (c *deaf) Read(b []byte) (int, error) {
	if c.left <= 0 {
		<-c.done
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

func (c *deaf) Close() error {
	close(c.done)
	return c.Conn.Close()
}

// A client that asks for a big list and does not read it, or nothing of its connection at all, holds the only place no longer than
// it may: others are served then.
func TestUnread(t *testing.T) {
	t.Parallel()
	keys := httptest.NewTLSServer(nil)
	defer keys.Close()
	roots := keys.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, tt := range []struct {
		name  string
		http2 bool
		deaf  int // after so many bytes
		until time.Duration
	}{
		{"http1", false, 0, 6 * time.Second},
		{"http2", true, 0, 6 * time.Second},
		{"http2 deaf", true, 64 << 10, 67 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := serve(t, func(c *apiserver.Config, _ *apiserver.Deps) {
					c.Listeners, c.ReadsInFlight = []net.Listener{l}, 1
					c.TLS = &tls.Config{Certificates: keys.TLS.Certificates}
				})
				body := `{"metadata":{"name":"big"},"data":{"x":"` + strings.Repeat("x", 900<<10) + `"}}`
				if w := do(t, s, "POST", "/api/v1/namespaces/default/configmaps", body); w.Code != http.StatusCreated {
					t.Fatal(w.Code, w.Body)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx, func() {}) }()
				client := func(deafAfter int) *http.Transport {
					tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, ForceAttemptHTTP2: tt.http2, DisableCompression: true}
					tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
						c, err := l.dial(ctx, network, addr)
						if deafAfter > 0 {
							c = &deaf{c, deafAfter, make(chan struct{})}
						}
						return c, err
					}
					tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
					if deafAfter > 0 {
						tr.HTTP2.MaxReceiveBufferPerStream = 4 << 20
					}
					return tr
				}
				get := func(tr *http.Transport, path string) (*http.Response, error) {
					r, err := http.NewRequestWithContext(ctx, "GET", "https://server"+path, nil)
					if err != nil {
						return nil, err
					}
					return tr.RoundTrip(r)
				}
				lazy, other := client(tt.deaf), client(0)
				resp, err := get(lazy, "/api/v1/configmaps?timeout=1s")
				if err != nil {
					t.Fatal(err)
				}
				code := func() int {
					synctest.Wait()
					resp, err := get(other, "/api/v1/namespaces/default")
					if err != nil {
						t.Fatal(err)
					}
					_, err = io.Copy(io.Discard, resp.Body)
					if err := fmt.Sprint(err, resp.Body.Close()); err != "<nil> <nil>" {
						t.Error(err)
					}
					return resp.StatusCode
				}
				if got := code(); got != http.StatusTooManyRequests {
					t.Errorf("while the place is taken: %d", got)
				}
				time.Sleep(tt.until)
				if got := code(); got != http.StatusNotFound {
					t.Errorf("after %v: %d", tt.until, got)
				}
				time.Sleep(time.Minute) // on a connection that is kept, the deadline is of the request before
				if got := code(); got != http.StatusNotFound {
					t.Errorf("on the same connection: %d", got)
				}
				if err := resp.Body.Close(); err != nil && !tt.http2 {
					t.Error(err)
				}
				lazy.CloseIdleConnections()
				other.CloseIdleConnections()
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
