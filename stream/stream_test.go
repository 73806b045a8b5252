package stream_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/stream"
	"github.com/yare-dev/yare/stream/streamtest"
)

// front serves sessions of another end's, as an API server and a kubelet do.
type front struct {
	*testing.T
	open  func(r *http.Request) (string, error)
	under sync.WaitGroup
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.under.Add(1)
	defer f.under.Done()
	at, err := f.open(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	to, err := url.Parse(at)
	if err != nil {
		f.Error(err)
		return
	}
	t := &http.Transport{}
	defer t.CloseIdleConnections()
	q := r.URL.Query()
	switch {
	case stream.Translated(r):
		err = stream.Translate(w, r, to, t, stream.Streams{In: q.Has("in"), Out: true, Err: q.Has("err"), TTY: q.Has("tty")})
	case stream.Tunnelled(r):
		err = stream.Tunnel(w, r, to, t)
	default:
		(&httputil.ReverseProxy{Transport: t, Rewrite: func(p *httputil.ProxyRequest) { p.Out.URL = to }}).ServeHTTP(w, r)
	}
	if err != nil {
		f.Error(err)
	}
}

func TestSessions(t *testing.T) {
	end := streamtest.New(t)
	f := &front{T: t, open: func(r *http.Request) (string, error) {
		q := r.URL.Query()
		switch r.URL.Path {
		case "/exec":
			got, err := end.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: q["cmd"], Stdin: q.Has("in"), Stdout: true, Stderr: q.Has("err"), Tty: q.Has("tty")})
			return got.GetUrl(), err
		case "/attach":
			got, err := end.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: q.Has("in"), Stdout: true, Stderr: q.Has("err"), Tty: q.Has("tty")})
			return got.GetUrl(), err
		}
		var ports []int32
		if q.Has("port") { // the suite's for the old protocol
			ports = []int32{80, 81, streamtest.RefusedPort}
		} else if r.Header.Get("Sec-WebSocket-Protocol") == "v4.channel.k8s.io" {
			return "", http.ErrNotSupported
		}
		got, err := end.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: ports})
		return got.GetUrl(), err
	}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	streamtest.Target{
		Config: &rest.Config{Host: server.URL},
		Command: func(cmd []string, in, errs, tty bool) *url.URL {
			q := url.Values{"cmd": cmd}
			for name, is := range map[string]bool{"in": in, "err": errs, "tty": tty} {
				if is {
					q.Set(name, "1")
				}
			}
			path := "/exec"
			if cmd == nil {
				path = "/attach"
			}
			return at(t, server.URL+path+"?"+q.Encode())
		},
		Forward: func(ports ...string) *url.URL {
			return at(t, server.URL+"/forward?"+url.Values{"port": ports}.Encode())
		},
	}.Suite(t)
	f.under.Wait()
	stacks := make([]byte, 1<<20)
	if text := string(stacks[:runtime.Stack(stacks, true)]); strings.Contains(text, "stream.join") || strings.Contains(text, "stream.Translate") {
		t.Errorf("goroutines are left:\n%s", text)
	}
}

func at(t *testing.T, raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// What the other end refuses is refused with its words, and a session that it ends, or the server, is over for the client.
func TestEnds(t *testing.T) {
	quit := make(chan struct{})
	end := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refuses":
			http.Error(w, "no such pod", http.StatusNotFound)
		case "/ends", "/stays":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: p.k8s.io\r\n\r\nhello"))
			if r.URL.Path == "/stays" {
				<-quit
			}
		}
	}))
	defer end.Close()
	over := make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		over <- stream.Tunnel(w, r, at(t, end.URL+r.URL.Path), &http.Transport{})
	}))
	server.Start()
	defer server.Close()
	defer close(quit)
	open := func(path, protocol string) (*websocket.Conn, error) {
		c, err := websocket.NewConfig("ws"+strings.TrimPrefix(server.URL, "http")+path, "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		c.Protocol = []string{protocol}
		return c.DialContext(t.Context())
	}
	for _, path := range []string{"/refuses", "/nothing"} {
		if ws, err := open(path, "SPDY/3.1+p.k8s.io"); err == nil {
			ws.Close()
			t.Errorf("%s: a session is opened", path)
		}
		if err := <-over; (err != nil) != (path == "/nothing") { // an answer that is neither session nor refusal
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := open("/ends", "v9.k8s.io"); err == nil {
		t.Error("an unknown protocol is taken")
	}
	<-over
	ws, err := open("/ends", "SPDY/3.1+p.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if got := messages(ws); got != "hello" {
		t.Errorf("got %q", got)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if ws, err = open("/stays", "SPDY/3.1+p.k8s.io"); err != nil {
		t.Fatal(err)
	}
	ws.Close() // as clients that go away
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func messages(ws *websocket.Conn) (all string) {
	for {
		var m []byte
		if websocket.Message.Receive(ws, &m) != nil {
			return all
		}
		all += string(m)
	}
}
