package streamtest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	forward "k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// Target is where sessions are asked for.
type Target struct {
	Config *rest.Config
	// Command returns the URL of exec, of attach when there is no command.
	Command func(cmd []string, in, errs, tty bool) *url.URL
	// Forward returns the URL of a port-forward; tunnels name no ports.
	Forward func(ports ...string) *url.URL
}

// Suite is what kubectl, old clients and browsers expect of a target behind which New serves.
func (g Target) Suite(t *testing.T) {
	for _, over := range []struct {
		name string
		open func(u *url.URL) (remotecommand.Executor, error)
	}{
		{"SPDY", func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(g.Config, http.MethodPost, u)
		}},
		{"WebSocket", func(u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(g.Config, http.MethodGet, u.String())
		}},
	} {
		t.Run("commands over "+over.name, func(t *testing.T) { g.commands(t, over.open) })
	}
	t.Run("exec over v4", g.oldExec)
	t.Run("ports over SPDY", func(t *testing.T) {
		rt, upgrader, err := clientspdy.RoundTripperFor(g.Config)
		if err != nil {
			t.Fatal(err)
		}
		u := g.Forward()
		ports(t, clientspdy.NewDialerForStreaming(upgrader, &http.Client{Transport: rt}, http.MethodPost, u))
	})
	t.Run("ports over a tunnel", func(t *testing.T) {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(g.Forward(), g.Config)
		if err != nil {
			t.Fatal(err)
		}
		ports(t, d)
	})
	t.Run("ports over v4", func(t *testing.T) { g.oldPorts(t, "v4.channel.k8s.io") })
	t.Run("ports over v4 in base64", func(t *testing.T) { g.oldPorts(t, "v4.base64.channel.k8s.io") })
	t.Run("v4 needs ports", func(t *testing.T) {
		if ws, err := g.dial(g.Forward(), "v4.channel.k8s.io"); err == nil {
			ws.Close()
			t.Error("a session for no port is opened")
		}
	})
}

func big() []byte { return bytes.Repeat([]byte("0123456789abcdef"), 1<<16) }

func (g Target) commands(t *testing.T, open func(*url.URL) (remotecommand.Executor, error)) {
	for _, c := range []struct {
		name     string
		cmd      []string
		errs     bool
		terminal bool
		code     int
	}{
		{"exec", []string{"x"}, true, false, 0},
		{"exec that fails", []string{"x", "1", "2"}, true, false, 2},
		{"exec with a terminal", []string{"x"}, false, true, 0},
		{"attach", nil, true, false, 0},
		{"attach to a terminal", nil, false, true, 0},
	} {
		e, err := open(g.Command(c.cmd, true, c.errs, c.terminal))
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: bytes.NewReader(big()), Stdout: &out, Tty: c.terminal}
		want, wantErrs := string(big()), ""
		if c.errs {
			o.Stderr, wantErrs = &errs, "the end"
		}
		if c.terminal {
			o.TerminalSizeQueue, want = &once{&remotecommand.TerminalSize{Width: 80, Height: 25}}, "80x25\n"+want
		}
		err = e.StreamWithContext(t.Context(), o)
		var code utilexec.ExitError
		switch {
		case c.code == 0 && err != nil, c.code != 0 && (!errors.As(err, &code) || code.ExitStatus() != c.code):
			t.Errorf("%s: ended with %v, want code %d", c.name, err, c.code)
		case out.String() != want || errs.String() != wantErrs:
			t.Errorf("%s: %d bytes came back and %q", c.name, out.Len(), errs.String())
		}
	}
	e, err := open(g.Command([]string{missing}, false, true, false))
	if err != nil {
		t.Fatal(err)
	}
	err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
	if want := "Internal error occurred: error executing command in container: no such program"; err == nil || err.Error() != want {
		t.Errorf("a command that cannot be run: %v, want %q", err, want)
	}
}

type once struct{ size *remotecommand.TerminalSize }

func (o *once) Next() *remotecommand.TerminalSize {
	s := o.size
	o.size = nil
	return s
}

func (g Target) dial(u *url.URL, protocol string) (*websocket.Conn, error) {
	c, err := websocket.NewConfig("ws"+strings.TrimPrefix(u.String(), "http"), "http://localhost")
	if err != nil {
		return nil, err
	}
	if c.TlsConfig, err = rest.TLSConfigFor(g.Config); err != nil {
		return nil, err
	}
	c.Protocol = []string{protocol}
	return websocket.DialConfig(c)
}

// channels reads messages until the end and returns the text of each channel.
func channels(ws *websocket.Conn, decode func(byte, string) (int, string)) map[int]string {
	all := map[int]string{}
	for {
		var m []byte
		if websocket.Message.Receive(ws, &m) != nil {
			return all
		}
		if len(m) > 0 {
			n, text := decode(m[0], string(m[1:]))
			all[n] += text
		}
	}
}

func plain(n byte, text string) (int, string) { return int(n), text }

func (g Target) oldExec(t *testing.T) {
	ws, err := g.dial(g.Command([]string{"x", "1"}, false, true, false), "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if got := channels(ws, plain); got[2] != "the end" || !strings.Contains(got[3], `"message":"1"`) {
		t.Errorf("got %v", got)
	}
}

// ports forwards two ports with two connections each at the same time, and one at which nobody listens.
func ports(t *testing.T, d httpstream.Dialer) {
	conn, protocol, err := d.Dial("portforward.k8s.io")
	if err != nil || protocol != "portforward.k8s.io" {
		t.Fatal(protocol, err)
	}
	defer conn.Close()
	var all sync.WaitGroup
	for i, port := range []int{80, 81, 80, 81, RefusedPort} {
		all.Go(func() {
			got, refused, err := connection(conn, strconv.Itoa(i), strconv.Itoa(port))
			switch {
			case err != nil:
				t.Error(err)
			case port == RefusedPort && !strings.Contains(refused, "connection refused"):
				t.Errorf("the error of a refused port: %q", refused)
			case port != RefusedPort && (got != string(big())+fmt.Sprintf("port %d, %d", port, len(big())) || refused != ""):
				t.Errorf("port %d: %d bytes came back, error %q", port, len(got), refused)
			}
		})
	}
	all.Wait()
}

// connection opens one, sends, closes its side and reads what is answered afterwards.
func connection(conn httpstream.Connection, id, port string) (data, refused string, err error) {
	h := http.Header{}
	h.Set(forward.PortForwardRequestIDHeader, id)
	h.Set(forward.PortHeader, port)
	h.Set(forward.StreamType, forward.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		return "", "", err
	}
	defer conn.RemoveStreams(errs)
	if err := errs.Close(); err != nil { // nothing is sent
		return "", "", err
	}
	// A stream that nobody reads holds up others of its connection, so that this one is read from its beginning: a refusal
	// may come before the answer to the creation of the data's stream, which then waits behind it.
	var text []byte
	var textErr error
	var busy sync.WaitGroup
	busy.Go(func() { text, textErr = io.ReadAll(errs) })
	h.Set(forward.StreamType, forward.StreamTypeData)
	both, err := conn.CreateStream(h)
	if err != nil {
		_ = errs.Reset() // which ends the reading
		busy.Wait()
		return "", "", err
	}
	defer conn.RemoveStreams(both)
	busy.Go(func() {
		_, _ = both.Write(big()) // refused ports take nothing
		_ = both.Close()
	})
	got, err := io.ReadAll(both)
	busy.Wait()
	if err == nil {
		err = textErr
	}
	return string(got), string(text), err
}

// oldPorts forwards over channels: an even one for a port's data, the odd one after it for its error. Each begins with
// its port.
func (g Target) oldPorts(t *testing.T, protocol string) {
	ws, err := g.dial(g.Forward("80", "81,"+strconv.Itoa(RefusedPort)), protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	text := strings.Contains(protocol, "base64")
	send := func(channel byte, data string) error {
		if text {
			return websocket.Message.Send(ws, string('0'+rune(channel))+base64.StdEncoding.EncodeToString([]byte(data)))
		}
		return websocket.Message.Send(ws, append([]byte{channel}, data...))
	}
	var mu sync.Mutex
	got, whole := map[int]string{}, make(chan struct{})
	complete := sync.OnceFunc(func() { close(whole) })
	var reading sync.WaitGroup
	reading.Go(func() {
		channels(ws, func(n byte, data string) (int, string) {
			if text {
				n -= '0'
				b, err := base64.StdEncoding.DecodeString(data)
				if err != nil {
					t.Error(err)
				}
				data = string(b)
			}
			mu.Lock()
			defer mu.Unlock()
			got[int(n)] += data
			if len(got[0]) == 2+len("one") && len(got[2]) == 2+len("another") && strings.Contains(got[5], "refused") {
				complete()
			}
			return int(n), data
		})
	})
	if err := errors.Join(send(0, "one"), send(2, "another")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-whole:
	case <-t.Context().Done():
	}
	ws.Close()
	reading.Wait()
	for n, want := range map[int]string{0: le(80) + "one", 1: le(80), 2: le(81) + "another", 3: le(81), 4: le(RefusedPort)} {
		if got[n] != want {
			t.Errorf("channel %d: %q, want %q", n, got[n], want)
		}
	}
}

func le(port uint16) string { return string(binary.LittleEndian.AppendUint16(nil, port)) }
