package connect

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"

	"golang.org/x/net/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/stream"
)

// The protocols over which a log is sent: bytes as they are, or in base64 for clients that read text only.
const (
	binaryProtocol = "binary.k8s.io"
	base64Protocol = "base64.binary.k8s.io"
)

// overWebSocket serves the plain answer of a kubelet to a client that asked for it as messages of a WebSocket.
func (b *bridge) overWebSocket(ctx context.Context, from *url.URL, w http.ResponseWriter, r *http.Request) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := b.kubelet.RoundTrip(req)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return explain(resp)
	}
	s := websocket.Server{Handshake: chooseProtocol, Handler: func(ws *websocket.Conn) { sendAll(ws, resp.Body) }}
	s.ServeHTTP(stream.Hijacked{ResponseWriter: w}, r)
	return nil
}

// chooseProtocol takes the first protocol of the client's that is known; a client that names none gets bytes.
func chooseProtocol(c *websocket.Config, _ *http.Request) error {
	if len(c.Protocol) == 0 {
		return nil
	}
	i := slices.IndexFunc(c.Protocol, func(p string) bool { return p == binaryProtocol || p == base64Protocol })
	if i < 0 {
		return fmt.Errorf("protocols %q: use %s or %s", c.Protocol, binaryProtocol, base64Protocol)
	}
	c.Protocol = c.Protocol[i : i+1]
	return nil
}

// sendAll sends what from has, in messages, after a first empty one, until from or the client ends. It closes both.
func sendAll(ws *websocket.Conn, from io.ReadCloser) {
	send := func(b []byte) error { return websocket.Message.Send(ws, b) }
	if slices.Equal(ws.Config().Protocol, []string{base64Protocol}) {
		send = func(b []byte) error { return websocket.Message.Send(ws, base64.StdEncoding.EncodeToString(b)) }
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		// Nothing is expected of the client but its end, which a log that is being followed must not wait for.
		_, _ = io.Copy(io.Discard, ws)
		_ = from.Close()
	})
	defer reading.Wait()
	defer ws.Close()
	if send(nil) != nil {
		return
	}
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}
