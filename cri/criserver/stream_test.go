package criserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func spdyTo(t *testing.T, at string) remotecommand.Executor {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExecSession(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.run(h.runPod("p"), "c", "sleep", "1000")
	r, err := h.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	err = spdyTo(t, r.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
		Stdin: strings.NewReader("hello"), Stdout: &stdout, Stderr: &stderr,
	})
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 5 || stdout.String() != "hello" || stderr.String() != "err\n" {
		t.Errorf("%q, %q, %v", stdout.String(), stderr.String(), err)
	}
	err = spdyTo(t, r.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
	if err == nil || errors.As(err, &exit) {
		t.Errorf("a session's URL works twice: %v", err)
	}
}

// TestExecOverWebSocket speaks version 4 of the channel protocol, which is what
// servers of CRI sessions know; the API server translates to it.
func TestExecOverWebSocket(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.run(h.runPod("p"), "c", "sleep", "1000")
	r, err := h.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig(strings.Replace(r.Url, "http", "ws", 1), r.Url)
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var channels [4]string
	for {
		var frame []byte
		if err := websocket.Message.Receive(conn, &frame); err != nil {
			break
		}
		if len(frame) > 0 && int(frame[0]) < len(channels) {
			channels[frame[0]] += string(frame[1:])
		}
	}
	if channels[1] != "out\n" || channels[2] != "err\n" || !strings.Contains(channels[3], `"message":"5"`) {
		t.Errorf("channels %q", channels)
	}
}

// once is a terminal of one size.
type once struct{ size *remotecommand.TerminalSize }

func (o *once) Next() *remotecommand.TerminalSize {
	s := o.size
	o.size = nil
	return s
}

func TestTerminalSession(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.run(h.runPod("p"), "c", "sleep", "1000")
	r, err := h.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "while [ \"$(stty size)\" != '33 99' ]; do sleep 0.01; done; tty; echo $TERM"}, Tty: true, Stdin: true, Stdout: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	stdin, hold := io.Pipe()
	defer hold.Close()
	err = spdyTo(t, r.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
		Stdin: stdin, Stdout: &stdout, Tty: true, TerminalSizeQueue: &once{&remotecommand.TerminalSize{Width: 99, Height: 33}},
	})
	if err != nil || !strings.Contains(stdout.String(), "/dev/pts/") || !strings.HasSuffix(stdout.String(), "xterm\r\n") {
		t.Errorf("%q, %v", stdout.String(), err)
	}
}

func TestAttachSession(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	config := h.containerConfig("c", "sh", "-c", "while read line; do echo got $line; done; echo end")
	config.Stdin, config.StdinOnce = true, true
	id := h.create(pod, config)
	h.startContainer(id)
	r, err := h.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	err = spdyTo(t, r.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
		Stdin: strings.NewReader("a\nb\n"), Stdout: &stdout, Stderr: io.Discard,
	})
	if err != nil || stdout.String() != "got a\ngot b\nend\n" {
		t.Errorf("attached: %q, %v", stdout.String(), err)
	}
	if s := h.exited(id); s.ExitCode != 0 || s.Reason != "Completed" {
		t.Errorf("after its input ended: %v", s)
	}
}

func TestPortForwardSession(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sh", "-c", "printf 'from the pod' >/index.html; exec httpd -f -p 127.0.0.1:8080 -h /")
	h.exec(id, "sh", "-c", "until grep -q ':1F90 00000000:0000 0A' /proc/net/tcp; do sleep 0.01; done")
	r, err := h.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	<-ready
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "from the pod" {
		t.Errorf("through the forward: %q, %v", body, err)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReopenLog(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.run(h.runPod("p"), "c", "sh", "-c", "echo one; while ! test -e /go; do sleep 0.01; done; echo two")
	log := filepath.Join(h.dir, "logs/p/c.log")
	for {
		if b, _ := os.ReadFile(log); strings.Contains(string(b), "one") {
			break
		}
	}
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	h.exec(id, "touch", "/go")
	h.exited(id)
	b, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(b), "two") || strings.Contains(string(b), "one") {
		t.Errorf("new log %q, %v", b, err)
	}
}
