package criserver

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// What cannot be forwarded is not refused before the client is told that its stream is there: a stream that is reset
// earlier is one whose creation failed, for reasons unknown.
func TestPortForwardRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		refused := make(chan struct{})
		var err error
		server, serverErr := spdy.NewServerConnection(far, func(stream httpstream.Stream, _ <-chan struct{}) error {
			go func() {
				defer close(refused)
				err = (&streams{s: &Server{}}).PortForward(t.Context(), "none", 80, stream)
			}()
			synctest.Wait()
			select {
			case <-refused:
				t.Error("refused before the client knows of its stream")
			default:
			}
			return nil
		})
		client, clientErr := spdy.NewClientConnection(near)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		defer server.Close()
		defer client.Close()
		if _, err := client.CreateStream(http.Header{}); err != nil {
			t.Fatal(err)
		}
		<-refused
		if status.Code(err) != codes.NotFound {
			t.Errorf("refused with %v", err)
		}
	})
}

// halfPipe is a connection in memory, whose other side is not told that ours sends no more.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// hearer is a client that has said all it has to say, and hears.
type hearer struct {
	io.Reader
	got int
}

func (a *hearer) Write(b []byte) (int, error) {
	a.got += len(b)
	return len(b), nil
}

// An answer may take longer than a connection may be silent, after which it ends.
func TestPortForwardLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		client := &hearer{Reader: strings.NewReader("")}
		ended := make(chan error, 1)
		go func() { ended <- relay(client, halfPipe{near}) }()
		for range 10 {
			time.Sleep(linger - time.Second) // on a clock of the test's own
			if _, err := far.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || client.got != 10 {
			t.Errorf("%d bytes, %v", client.got, err)
		}
	})
}
