package connect_test

import (
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
)

// dial opens a log over WebSocket.
func dial(t *testing.T, base, path string, protocols ...string) (*websocket.Conn, error) {
	t.Helper()
	c, err := websocket.NewConfig("ws"+strings.TrimPrefix(base, "http")+"/api/v1/namespaces/ns/"+path, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	c.Protocol = protocols
	c.Header.Set("X-User", "u")
	c.Header.Set("Authorization", "Bearer secret")
	return c.DialContext(t.Context())
}

// A log is sent as messages: an empty one first, then what there is, then the end.
func TestLogOverWebSocket(t *testing.T) {
	t.Parallel()
	base := cluster(t)
	const want = "GET /containerLogs/ns/p/c?tailLines=5"
	for _, tt := range []struct {
		name      string
		protocols []string
		want      string
	}{
		{"no protocol", nil, want},
		{"binary", []string{"binary.k8s.io"}, want},
		{"base64", []string{"unknown", "base64.binary.k8s.io"}, base64.StdEncoding.EncodeToString([]byte(want))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ws, err := dial(t, base, "pods/p/log?tailLines=5", tt.protocols...)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			var messages []string
			for {
				var m []byte
				if err := websocket.Message.Receive(ws, &m); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				messages = append(messages, string(m))
			}
			if len(messages) < 2 || messages[0] != "" || strings.Join(messages, "") != tt.want {
				t.Errorf("got %q, want an empty message and %q", messages, tt.want)
			}
		})
	}
}

func TestLogOverWebSocketRefused(t *testing.T) {
	t.Parallel()
	base := cluster(t)
	for name, tt := range map[string]struct {
		path      string
		protocols []string
	}{
		"unknown protocol":  {"pods/p/log", []string{"v9.k8s.io"}},
		"unknown container": {"pods/p/log?container=x", nil},
	} {
		if ws, err := dial(t, base, tt.path, tt.protocols...); err == nil {
			ws.Close()
			t.Errorf("%s: a session is opened", name)
		}
	}
}
