package critest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func execCases() []Case {
	return []Case{
		{"SPDY: input, output, errors and the code", 0, spdyExec},
		{"SPDY: success", 0, spdySuccess},
		{"SPDY: much in and much out", 0, spdyMuch},
		{"SPDY: a terminal has the size it is told", 0, spdyTerminal},
		{"SPDY: a terminal's size changes", 0, spdyResize},
		{"SPDY: the end of the input is seen", 0, spdyEnd},
		{"SPDY: a program that is not there is an error", 0, spdyNoProgram},
		{"WebSocket: output, errors and the code", 0, socketExec},
		{"WebSocket: input", 0, socketInput},
		{"WebSocket: a terminal has the size it is told", 0, socketTerminal},
		{"an address is good for one session", 0, execOnce},
		{"an address that was not given is refused", 0, execForged},
		{"no stream at all is refused", 0, execNoStream},
		{"errors beside a terminal are refused", 0, execTerminalErrors},
		{"a container that is not there is not found", 0, execSessionUnknown},
		{"an exited container is refused", 0, execSessionExited},
	}
}

// session is what a client of a session sees.
type session struct {
	out, errs string
	err       error
	code      int
}

// execURL asks for a session.
func (t *T) execURL(r *runtimeapi.ExecRequest) string {
	t.Helper()
	a, err := t.Runtime.Exec(t.Context(), r)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return a.Url
}

// spdy runs a session as kubectl's older versions do.
func (t *T) spdy(address string, options remotecommand.StreamOptions) session {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	options.Stdout = &out
	if !options.Tty {
		options.Stderr = &errs
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := session{err: e.StreamWithContext(ctx, options)}
	s.out, s.errs = out.String(), errs.String()
	var code utilexec.CodeExitError
	if errors.As(s.err, &code) {
		s.code, s.err = code.Code, nil
	}
	return s
}

func (t *T) spdyRun(options remotecommand.StreamOptions, cmd ...string) session {
	t.Helper()
	return t.spdy(t.execURL(&runtimeapi.ExecRequest{
		ContainerId: t.sleeper(t.any()), Cmd: cmd, Stdin: options.Stdin != nil, Stdout: true, Stderr: !options.Tty, Tty: options.Tty,
	}), options)
}

func spdyExec(t *T) {
	s := t.spdyRun(remotecommand.StreamOptions{Stdin: strings.NewReader("hello")}, "sh", "-c", "cat; echo err >&2; exit 5")
	if s.err != nil || s.code != 5 || s.out != "hello" || s.errs != "err\n" {
		t.Errorf("%+v", s)
	}
}

func spdySuccess(t *T) {
	if s := t.spdyRun(remotecommand.StreamOptions{}, "echo", "hi"); s.err != nil || s.code != 0 || s.out != "hi\n" {
		t.Errorf("%+v", s)
	}
}

func spdyMuch(t *T) {
	in := strings.Repeat("0123456789abcdef", 1<<16)
	if s := t.spdyRun(remotecommand.StreamOptions{Stdin: strings.NewReader(in)}, "cat"); s.err != nil || s.out != in {
		t.Errorf("%d bytes of %d, %v", len(s.out), len(in), s.err)
	}
}

// again is how long until a size is told again: one that comes before the program may be lost.
const again = 100 * time.Millisecond

// sizes is a terminal that changes its size, and tells the last again and again until ctx ends.
type sizes struct {
	ctx   context.Context
	left  []remotecommand.TerminalSize
	tells bool
}

// Next is asked in a goroutine of the session's, until nil.
func (s *sizes) Next() *remotecommand.TerminalSize {
	if s.tells {
		select {
		case <-time.After(again):
		case <-s.ctx.Done():
			return nil
		}
	}
	s.tells = true
	size := s.left[0]
	if len(s.left) > 1 {
		s.left = s.left[1:]
	}
	return &size
}

// terminal runs a session with a terminal that has the sizes, one after the other.
func (t *T) terminal(script string, all ...remotecommand.TerminalSize) session {
	t.Helper()
	stdin, hold := io.Pipe()
	defer hold.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	return t.spdyRun(remotecommand.StreamOptions{Stdin: stdin, Tty: true, TerminalSizeQueue: &sizes{ctx: ctx, left: all}}, "sh", "-c", script)
}

func untilSize(size string) string {
	return fmt.Sprintf(`while [ "$(stty size 2>/dev/null)" != '%s' ]; do sleep 0.01; done`, size)
}

func spdyTerminal(t *T) {
	s := t.terminal(untilSize("33 99")+"; tty; echo $TERM", remotecommand.TerminalSize{Width: 99, Height: 33})
	if s.err != nil || s.code != 0 || !strings.Contains(s.out, "/dev/pts/") || !strings.HasSuffix(s.out, "xterm\r\n") {
		t.Errorf("%+v", s)
	}
}

func spdyResize(t *T) {
	s := t.terminal(untilSize("40 120")+"; exit 3", remotecommand.TerminalSize{Width: 99, Height: 33}, remotecommand.TerminalSize{Width: 120, Height: 40})
	if s.err != nil || s.code != 3 {
		t.Errorf("%+v", s)
	}
}

func spdyEnd(t *T) {
	s := t.spdyRun(remotecommand.StreamOptions{Stdin: strings.NewReader("")}, "sh", "-c", "cat; echo end")
	if s.err != nil || s.out != "end\n" {
		t.Errorf("%+v", s)
	}
}

func spdyNoProgram(t *T) {
	if s := t.spdyRun(remotecommand.StreamOptions{}, "/no/such/program"); s.err == nil && s.code == 0 {
		t.Errorf("%+v", s)
	}
}

// Channels of version 4 of the protocol, which servers of CRI's sessions know; an API server translates to it.
const (
	channelIn = iota
	channelOut
	channelErr
	channelStatus
	channelSize
)

// socket is a session over WebSocket.
type socket struct {
	*websocket.Conn
	mu sync.Mutex
}

func (t *T) dial(address string) *socket {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), address)
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatalf("dial %s: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &socket{Conn: conn}
}

// size tells the terminal's size again and again until the session ends.
func (s *socket) size(text string) {
	go func() {
		for s.send(channelSize, text) == nil {
			time.Sleep(again)
		}
	}()
}

func (s *socket) send(channel byte, data string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return websocket.Message.Send(s.Conn, append([]byte{channel}, data...))
}

// receive reads to the end; channels are what came on each.
func (s *socket) receive() (channels [5]string) {
	for {
		var frame []byte
		if err := websocket.Message.Receive(s.Conn, &frame); err != nil {
			return channels
		}
		if len(frame) > 0 && int(frame[0]) < len(channels) {
			channels[frame[0]] += string(frame[1:])
		}
	}
}

func socketExec(t *T) {
	s := t.dial(t.execURL(&runtimeapi.ExecRequest{
		ContainerId: t.sleeper(t.any()), Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}, Stdout: true, Stderr: true,
	}))
	c := s.receive()
	if c[channelOut] != "out\n" || c[channelErr] != "err\n" || !strings.Contains(c[channelStatus], `"message":"5"`) {
		t.Errorf("%q", c)
	}
}

func socketInput(t *T) {
	s := t.dial(t.execURL(&runtimeapi.ExecRequest{
		ContainerId: t.sleeper(t.any()), Cmd: []string{"sh", "-c", "read line; echo got $line"}, Stdin: true, Stdout: true, Stderr: true,
	}))
	if err := s.send(channelIn, "a line\n"); err != nil {
		t.Fatal(err)
	}
	if c := s.receive(); c[channelOut] != "got a line\n" || !strings.Contains(c[channelStatus], `"status":"Success"`) {
		t.Errorf("%q", c)
	}
}

func socketTerminal(t *T) {
	s := t.dial(t.execURL(&runtimeapi.ExecRequest{
		ContainerId: t.sleeper(t.any()), Cmd: []string{"sh", "-c", untilSize("33 99") + "; tty"}, Stdin: true, Stdout: true, Tty: true,
	}))
	s.size(`{"Width":99,"Height":33}`)
	if c := s.receive(); !strings.HasPrefix(c[channelOut], "/dev/pts/") {
		t.Errorf("%q", c)
	}
	s.Close()
}

// trueURL asks for a session of a program that ends at once.
func (t *T) trueURL() string {
	t.Helper()
	return t.execURL(&runtimeapi.ExecRequest{ContainerId: t.sleeper(t.any()), Cmd: []string{"true"}, Stdout: true, Stderr: true})
}

func execOnce(t *T) {
	address := t.trueURL()
	if s := t.spdy(address, remotecommand.StreamOptions{}); s.err != nil {
		t.Errorf("%+v", s)
	}
	if s := t.spdy(address, remotecommand.StreamOptions{}); s.err == nil {
		t.Errorf("the second session: %+v", s)
	}
}

func execForged(t *T) {
	address := t.trueURL()
	forged := address[:strings.LastIndex(address, "/")] + "/forged"
	if s := t.spdy(forged, remotecommand.StreamOptions{}); s.err == nil {
		t.Errorf("%+v", s)
	}
}

// noSession asks for a session that is to be refused.
func noSession[Q, A any](t *T, ask func(context.Context, Q, ...grpc.CallOption) (A, error), q Q, allowed ...codes.Code) {
	t.Helper()
	_, err := ask(t.Context(), q)
	t.refused("the session", err, allowed...)
}

func execNoStream(t *T) {
	noSession(t, t.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: t.sleeper(t.any()), Cmd: []string{"true"}}, codes.InvalidArgument)
}

func execTerminalErrors(t *T) {
	noSession(t, t.Runtime.Exec, &runtimeapi.ExecRequest{
		ContainerId: t.sleeper(t.any()), Cmd: []string{"true"}, Stdout: true, Stderr: true, Tty: true,
	}, codes.InvalidArgument)
}

func execSessionUnknown(t *T) {
	noSession(t, t.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: "0123456789abcdef", Cmd: []string{"true"}, Stdout: true}, codes.NotFound)
}

func execSessionExited(t *T) {
	id := t.run(t.any(), t.config("true"))
	t.exited(id)
	noSession(t, t.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
}

func attachCases() []Case {
	return []Case{
		{"WebSocket: output from now on", 0, attachOutput},
		{"SPDY: input once, and its end", 0, attachOnce},
		{"WebSocket: input again and again", 0, attachAgain},
		{"WebSocket: a terminal with a size", 0, attachTerminal},
		{"WebSocket: input and output", 0, attachSocket},
		{"what is attached goes to the log too", 0, attachLog},
		{"no stream at all is refused", 0, attachNoStream},
		{"a container that is not there is not found", 0, attachUnknown},
		{"an exited container is refused", 0, attachExited},
	}
}

func (t *T) attachURL(r *runtimeapi.AttachRequest) string {
	t.Helper()
	a, err := t.Runtime.Attach(t.Context(), r)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return a.Url
}

// reader is a container that answers lines.
func (t *T) reader(once bool) *containerConfig {
	c := t.script("while read line; do echo got $line; done; echo end")
	c.Stdin, c.StdinOnce = true, once
	return c
}

// hears reads until the output has had want in it.
func (t *T) hears(s *socket, want string) {
	t.Helper()
	for got := ""; !strings.Contains(got, want); {
		var frame []byte
		if err := websocket.Message.Receive(s.Conn, &frame); err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		if len(frame) > 0 && frame[0] == channelOut {
			got += string(frame[1:])
		}
	}
}

func attachOutput(t *T) {
	id := t.run(t.any(), t.script("until test -e /tmp/go; do echo tick; sleep 0.05; done", "echo out; echo err >&2"))
	s := t.dial(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdout: true, Stderr: true}))
	for frame := []byte(nil); len(frame) < 2; { // it is attached once something has come; an empty frame opens a channel
		if err := websocket.Message.Receive(s.Conn, &frame); err != nil {
			t.Fatal(err)
		}
	}
	t.exec(id, "touch", "/tmp/go")
	if c := s.receive(); !strings.HasSuffix(c[channelOut], "out\n") || c[channelErr] != "err\n" {
		t.Errorf("%q", c)
	}
}

func attachOnce(t *T) {
	id := t.run(t.any(), t.reader(true))
	s := t.spdy(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}),
		remotecommand.StreamOptions{Stdin: strings.NewReader("a\nb\n")})
	if s.err != nil || s.out != "got a\ngot b\nend\n" {
		t.Errorf("%+v", s)
	}
	t.wantCode(id, 0)
}

func attachAgain(t *T) {
	id := t.run(t.any(), t.reader(false))
	for _, line := range []string{"a", "b"} {
		s := t.dial(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}))
		if err := s.send(channelIn, line+"\n"); err != nil {
			t.Fatal(err)
		}
		t.hears(s, "got "+line+"\n")
		s.Close()
	}
	if s := t.status(id); s.State != running {
		t.Errorf("%v", s)
	}
}

func attachTerminal(t *T) {
	c := t.script(untilSize("33 99"), "echo seen")
	c.Tty, c.Stdin = true, true
	id := t.run(t.any(), c)
	s := t.dial(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Tty: true}))
	s.size(`{"Width":99,"Height":33}`)
	got := s.receive()
	s.Close()
	if got[channelOut] != "seen\r\n" {
		t.Errorf("%q", got)
	}
}

func attachSocket(t *T) {
	id := t.run(t.any(), t.reader(true))
	s := t.dial(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}))
	if err := s.send(channelIn, "a\n"); err != nil {
		t.Fatal(err)
	}
	t.hears(s, "got a\n")
	s.Close()
	t.wantCode(id, 0) // its input is gone with the session
}

func attachLog(t *T) {
	pod, c := t.any(), t.reader(true)
	id := t.run(pod, c)
	t.spdy(t.attachURL(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true}),
		remotecommand.StreamOptions{Stdin: strings.NewReader("a\n")})
	t.wantCode(id, 0)
	if got := said(t.readLog(logPath(pod, c)), "stdout"); got != "got a\nend\n" {
		t.Errorf("%q", got)
	}
}

func attachNoStream(t *T) {
	noSession(t, t.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: t.sleeper(t.any())}, codes.InvalidArgument)
}

func attachUnknown(t *T) {
	noSession(t, t.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: "0123456789abcdef", Stdout: true}, codes.NotFound)
}

func attachExited(t *T) {
	id := t.run(t.any(), t.config("true"))
	t.exited(id)
	noSession(t, t.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
}
