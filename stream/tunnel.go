package stream

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// maxRefusal bounds what is passed on of an answer that opens no session.
const maxRefusal = 64 << 10

// Tunnel serves a WebSocket whose messages are the bytes of a SPDY session with the other end. It returns an error only
// while nothing was answered; a refusal of the other end's is passed on.
func Tunnel(w http.ResponseWriter, r *http.Request, to *url.URL, t http.RoundTripper) error {
	offered := spdyProtocols(r)
	if len(offered) == 0 {
		http.Error(w, "unable to upgrade: no tunneling spdy protocols provided", http.StatusBadRequest)
		return nil
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, to.String(), http.NoBody)
	if err != nil {
		return fmt.Errorf("ask for a session: %w", err)
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	req.Header[http.CanonicalHeaderKey(httpstream.HeaderProtocolVersion)] = offered
	resp, err := t.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask for a session: %w", err)
	}
	defer resp.Body.Close()
	end, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		return passRefusal(w, resp)
	}
	if got := resp.Header.Get(httpstream.HeaderUpgrade); !strings.EqualFold(got, spdy.HeaderSpdy31) {
		return fmt.Errorf("ask for a session: the other end speaks %q", got)
	}
	var agreed []string
	if p := strings.TrimSpace(resp.Header.Get(httpstream.HeaderProtocolVersion)); p != "" {
		agreed = []string{portforward.WebsocketsSPDYTunnelingPrefix + p}
	}
	s := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Protocol = agreed
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			join(r.Context(), ws, end)
		},
	}
	s.ServeHTTP(Hijacked{w}, r)
	return nil
}

// spdyProtocols returns what the client offers to speak inside the tunnel.
func spdyProtocols(r *http.Request) (all []string) {
	for _, line := range r.Header.Values(wsstream.WebSocketProtocolHeader) {
		for p := range strings.SplitSeq(line, ",") {
			inner, ok := strings.CutPrefix(strings.TrimSpace(p), portforward.WebsocketsSPDYTunnelingPrefix)
			if ok && strings.HasSuffix(inner, portforward.KubernetesSuffix) {
				all = append(all, inner)
			}
		}
	}
	return all
}

func passRefusal(w http.ResponseWriter, resp *http.Response) error {
	if resp.StatusCode < http.StatusBadRequest {
		return fmt.Errorf("ask for a session: answered %s", resp.Status)
	}
	if t := resp.Header.Get("Content-Type"); t != "" {
		w.Header().Set("Content-Type", t)
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(resp.Body, maxRefusal)) // the client may be gone
	return nil
}
