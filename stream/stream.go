// Package stream carries sessions of exec, attach and port-forward from clients that speak WebSocket to an end that speaks
// SPDY: a container runtime, or a kubelet that does not know these protocols itself. It replaces
// k8s.io/apiserver/pkg/util/proxy.
//
//	v5.channel.k8s.io              exec, attach    Translate: channels of the WebSocket are streams of SPDY
//	SPDY/3.1+portforward.k8s.io    port-forward    Tunnel: the bytes of SPDY in the messages of the WebSocket
//
// The older channel protocols are no business of this package: ends that speak SPDY speak these themselves.
//
// Invariant: when a function returns, both connections are closed and no goroutine is left.
package stream

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// NodeFeature is what a node declares in its status whose kubelet serves both protocols itself.
const NodeFeature = "ExtendWebSocketsToKubelet"

// Translated says whether r asks for a protocol that Translate serves.
func Translated(r *http.Request) bool { return wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) }

// Tunnelled says whether r asks for a protocol that Tunnel serves.
func Tunnelled(r *http.Request) bool { return wsstream.IsWebSocketRequestWithTunnelingProtocol(r) }

// Hijacked hands over the connection below wrapped writers, which the WebSocket package does not look for.
type Hijacked struct{ http.ResponseWriter }

// Hijack implements http.Hijacker.
func (h Hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

// parting is how long a client that reads no more may hold its connection up.
const parting = time.Second

// join copies between the client and the other end until one of them ends, or ctx.
func join(ctx context.Context, client *websocket.Conn, end io.ReadWriteCloser) {
	over := sync.OnceFunc(func() {
		_ = end.Close()
		// Closing says farewell, behind what is being written.
		_ = client.SetWriteDeadline(time.Now().Add(parting))
		_ = client.Close()
	})
	defer context.AfterFunc(ctx, over)()
	var out sync.WaitGroup
	out.Go(func() {
		_, _ = io.Copy(client, end)
		over()
	})
	_, _ = io.Copy(end, client)
	over()
	out.Wait()
}
