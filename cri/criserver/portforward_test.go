package criserver

import (
	"net"
	"net/http"
	"testing"
	"testing/synctest"

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
