package apiserver

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// counting counts the writes to the connections that it accepts.
type counting struct {
	net.Listener
	writes *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return counted{c, l.writes}, err
}

type counted struct {
	net.Conn
	writes *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// What a handler writes and flushes under a cork is one write to the connection, whatever HTTP and TLS make of it; a large
// answer is sent in chunks of the size of its writes. In HTTP/2, which many requests share, nothing is held back.
func TestCork(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		size  int
		http2 bool
		most  int64
	}{
		{"events", 40 << 10, false, 1},
		{"list", 3 * chunk, false, 4},
		{"http2", 40 << 10, true, 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := bytes.Repeat([]byte("x"), tt.size)
			var writes, used atomic.Int64
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				flush := http.NewResponseController(w)
				w.WriteHeader(http.StatusOK)
				if err := flush.Flush(); err != nil {
					t.Error(err)
				}
				before := writes.Load()
				err := together(r, func() error {
					if _, err := w.Write(body); err != nil {
						return err
					}
					return flush.Flush()
				})
				if err != nil {
					t.Error(err)
				}
				used.Store(writes.Load() - before)
			}))
			s.EnableHTTP2 = tt.http2
			s.Config.ConnContext = withCork
			s.Listener = corks{counting{s.Listener, &writes}}
			s.StartTLS()
			defer s.Close()
			resp, err := s.Client().Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d bytes of %d: %v", len(got), len(body), err)
			}
			if n := used.Load(); n > tt.most {
				t.Errorf("%d writes, want %d at most", n, tt.most)
			}
			if want := map[bool]int{false: 1, true: 2}[tt.http2]; resp.ProtoMajor != want {
				t.Errorf("HTTP/%d", resp.ProtoMajor)
			}
		})
	}
}

// What a client that went away is not sent is an error, as it is without a cork.
func TestCorkBroken(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	there.Close()
	k := &cork{Conn: here}
	k.press()
	if n, err := k.Write([]byte("x")); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if k.pull() == nil {
		t.Error("no error")
	}
	if _, err := k.Write([]byte("x")); err == nil {
		t.Error("no error afterwards")
	}
}
