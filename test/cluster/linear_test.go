package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

var linearKills = flag.Int("linear-kills", 3, "how often TestLinear kills the server")

const (
	linearClients = 8
	linearKeys    = 3
	linearAcks    = 150 // acknowledged operations before a kill
	linearMaps    = "/api/v1/namespaces/default/configmaps"
)

// TestLinear has clients create, update, delete, get and list the same objects at once, by plain HTTP, and kills the server
// meanwhile. Each round between two kills must be linearizable: there is an order of its operations, each within the time
// that it took, in which every answer, resourceVersions included, is the only right one. What a kill left without an answer
// may have happened or not. The next round begins with what the round before was seen to end with.
func TestLinear(t *testing.T) {
	s := startServer(t)
	for round := range *linearKills + 1 {
		h := s.round(t, round < *linearKills)
		model := linearModel(h.before)
		switch result := porcupine.CheckOperationsTimeout(model, h.ops, 2*time.Minute); result {
		case porcupine.Illegal:
			t.Fatalf("round %d is not linearizable:\n%s", round, h.text(model))
		case porcupine.Unknown:
			t.Fatalf("round %d: %d operations could not be checked in time", round, len(h.ops))
		}
		t.Logf("round %d: %d operations in an order that explains them", round, len(h.ops))
	}
}

// alone is `yare apiserver` with an etcd member on disk.
type alone struct {
	dir, port string
	cmd       *exec.Cmd
	config    *rest.Config
}

func startServer(t *testing.T) *alone {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	s := &alone{dir: t.TempDir(), port: port}
	s.start(t)
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	return s
}

// start returns when the server is ready.
func (s *alone) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(bin.yare, "apiserver", "--data-dir", filepath.Join(s.dir, "data"), "--secure-port", s.port)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s.config, err = clientcmd.BuildConfigFromFlags("", filepath.Join(s.dir, "data", "admin.kubeconfig")); err == nil {
			c := s.client(t)
			if _, err = c.call("GET", "/readyz", nil); err == nil {
				if _, err = c.call("GET", "/api/v1/namespaces/default", nil); err == nil {
					return
				}
			}
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Fatalf("not ready: %v\n%s", err, tail(text, 40))
		}
	}
}

// asker sends requests on connections of its own.
type asker struct {
	host string
	http *http.Client
}

func (s *alone) client(t *testing.T) *asker {
	t.Helper()
	hc, err := rest.HTTPClientFor(rest.CopyConfig(s.config))
	if err != nil {
		t.Fatal(err)
	}
	hc.Timeout = 10 * time.Second
	return &asker{s.config.Host, hc}
}

// refused is an answer that says that nothing was changed.
type refused int

func (r refused) Error() string { return "status " + strconv.Itoa(int(r)) }

func (a *asker) call(method, path string, body any) ([]byte, error) {
	var in io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, a.host+path, in)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode >= 500:
		return nil, fmt.Errorf("status %d: %s", resp.StatusCode, b)
	case resp.StatusCode >= 400:
		return nil, refused(resp.StatusCode)
	}
	return b, nil
}

// register is one object: its value, and its resourceVersion, which is 0 where there is none and -1 where it was not seen.
type register struct {
	value string
	rev   int64
}

// world is the state of all objects, and the highest resourceVersion that was seen.
type world struct {
	keys [linearKeys]register
	last int64
}

// ask is an operation.
type ask struct {
	verb  string
	key   int
	value string
	rev   int64 // of an update or deletion that names one
}

// told is its outcome: code 0 where there was none.
type told struct {
	code int
	rev  int64
	seen [linearKeys]register // a list; of a get the key's alone
}

// linearModel says what the API promises.
func linearModel(begin world) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init:  func() []any { return []any{begin} },
		Step:  func(state, input, output any) []any { return step(state.(world), input.(ask), output.(told)) },
		Equal: func(a, b any) bool { return a == b },
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%+v -> %+v", input, output)
		},
	}
	return m.ToModel()
}

// step returns the states that may follow w by an operation with this outcome; none where it is wrong.
func step(w world, in ask, out told) []any {
	old := w.keys[in.key]
	// current says whether a write that names a revision names this one; a revision that nobody saw may be it.
	current := in.rev == 0 || old.rev == -1 || in.rev == old.rev
	surely := in.rev == 0 || in.rev == old.rev
	write := func(next register) []any {
		if next.rev > 0 {
			if next.rev <= w.last {
				return nil // revisions go forward
			}
			w.last = next.rev
		}
		w.keys[in.key] = next
		return []any{w}
	}
	is := func(ok bool) []any {
		if ok {
			return []any{w}
		}
		return nil
	}
	switch in.verb {
	case "get":
		return w.read(in.key, in.key+1, out)
	case "list":
		return w.read(0, linearKeys, out)
	case "create":
		switch out.code {
		case 0:
			if old.rev != 0 {
				return []any{w}
			}
			return append([]any{w}, write(register{in.value, -1})...)
		case 201:
			if old.rev != 0 {
				return nil
			}
			return write(register{in.value, out.rev})
		}
		return is(out.code == 409 && old.rev != 0)
	}
	next := register{}
	if in.verb == "update" {
		next = register{in.value, out.rev}
	}
	switch out.code {
	case 0:
		if old.rev == 0 || !current {
			return []any{w}
		}
		if in.verb == "update" {
			next.rev = -1
		}
		return append([]any{w}, write(next)...)
	case 200:
		if old.rev == 0 || !current {
			return nil
		}
		return write(next)
	case 404:
		return is(old.rev == 0)
	}
	return is(out.code == 409 && (in.rev == 0 || old.rev != 0 && !surely))
}

// read checks what was seen of the keys, and learns revisions that were not known.
func (w world) read(from, to int, out told) []any {
	if out.code == 0 {
		return []any{w}
	}
	for k := from; k < to; k++ {
		have, seen := w.keys[k], out.seen[k]
		switch {
		case have.value != seen.value || (have.rev == 0) != (seen.rev == 0):
			return nil
		case have.rev == -1:
			w.keys[k].rev = seen.rev
			w.last = max(w.last, seen.rev)
		case have.rev != seen.rev:
			return nil
		}
	}
	return []any{w}
}

// history is one round.
type history struct {
	before world
	begin  time.Time

	mu  sync.Mutex
	ops []porcupine.Operation
}

// round lets the clients work, kills the server in the midst and starts it again, and ends with a list.
func (s *alone) round(t *testing.T, kill bool) *history {
	t.Helper()
	h := &history{begin: time.Now()}
	first, err := s.client(t).list()
	if err != nil {
		t.Fatal(err)
	}
	h.before = world{first.seen, first.rev}
	var acked atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for id := range linearClients {
		c := s.client(t)
		clients.Go(func() {
			known := first.seen
			for ctx.Err() == nil {
				if !h.one(c, id, &known) {
					return // the server is gone
				}
				acked.Add(1)
			}
		})
	}
	aim := linearAcks + rand.Int64N(50)
	for end := time.Now().Add(time.Minute); acked.Load() < aim; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no progress")
		}
	}
	if kill {
		if err := s.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = s.cmd.Wait()
		clients.Wait()
		s.start(t)
	}
	stop()
	clients.Wait()
	h.run(s.client(t), linearClients, ask{verb: "list"})
	return h
}

// one does a random operation and remembers in known what it saw; false where there was no answer.
func (h *history) one(c *asker, id int, known *[linearKeys]register) bool {
	k := rand.IntN(linearKeys)
	in := ask{key: k, value: strconv.FormatInt(rand.Int64(), 36)}
	if rand.IntN(2) == 0 {
		in.rev = max(known[k].rev, 0)
	}
	switch n := rand.IntN(10); {
	case n < 2:
		in.verb, in.rev = "create", 0
	case n < 5:
		in.verb = "update"
	case n < 6:
		in.verb = "delete"
	case n < 8:
		in.verb, in.rev, in.value = "get", 0, ""
	default:
		in.verb, in.rev, in.value, in.key = "list", 0, "", 0
	}
	out := h.run(c, id, in)
	switch {
	case out.code == 0:
		return false
	case in.verb == "list":
		*known = out.seen
	case in.verb == "get":
		known[k] = out.seen[k]
	case out.code < 300:
		known[k] = register{in.value, out.rev}
	}
	return true
}

// run does one operation and notes it. One without an outcome may take effect until the end of the round.
func (h *history) run(c *asker, id int, in ask) told {
	op := porcupine.Operation{ClientId: id, Input: in, Call: time.Since(h.begin).Nanoseconds()}
	out, err := c.do(in)
	op.Return = time.Since(h.begin).Nanoseconds()
	var no refused
	switch {
	case errors.As(err, &no) && no != http.StatusTooManyRequests:
		out.code = int(no)
	case err != nil:
		out.code = 0
		op.Return = math.MaxInt64
		// What was never sent, or would have changed nothing, says nothing.
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" || in.verb == "get" || in.verb == "list" {
			return out
		}
	}
	op.Output = out
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	return out
}

func linearName(k int) string { return "linear-" + strconv.Itoa(k) }

func (a *asker) list() (told, error) {
	b, err := a.call("GET", linearMaps, nil)
	if err != nil {
		return told{}, err
	}
	var l corev1.ConfigMapList
	if err := json.Unmarshal(b, &l); err != nil {
		return told{}, err
	}
	out := told{code: http.StatusOK}
	if out.rev, err = strconv.ParseInt(l.ResourceVersion, 10, 64); err != nil {
		return told{}, err
	}
	for _, cm := range l.Items {
		if k, err := strconv.Atoi(strings.TrimPrefix(cm.Name, "linear-")); err == nil {
			rev, err := strconv.ParseInt(cm.ResourceVersion, 10, 64)
			if err != nil {
				return told{}, err
			}
			out.seen[k] = register{cm.Data["value"], rev}
		}
	}
	return out, nil
}

func (a *asker) do(in ask) (told, error) {
	if in.verb == "list" {
		out, err := a.list()
		out.rev = 0 // of the whole
		return out, err
	}
	path := linearMaps + "/" + linearName(in.key)
	cm := &corev1.ConfigMap{Data: map[string]string{"value": in.value}}
	cm.Name = linearName(in.key)
	if in.rev != 0 {
		cm.ResourceVersion = strconv.FormatInt(in.rev, 10)
	}
	out := told{code: http.StatusOK}
	var b []byte
	var err error
	switch in.verb {
	case "create":
		out.code = http.StatusCreated
		b, err = a.call("POST", linearMaps, cm)
	case "update":
		b, err = a.call("PUT", path, cm)
	case "delete":
		var options any
		if in.rev != 0 {
			options = map[string]any{"preconditions": map[string]any{"resourceVersion": cm.ResourceVersion}}
		}
		_, err = a.call("DELETE", path, options)
		return out, err
	case "get":
		b, err = a.call("GET", path, nil)
		if errors.Is(err, refused(http.StatusNotFound)) {
			return told{code: http.StatusOK}, nil
		}
	}
	if err != nil {
		return told{}, err
	}
	var got corev1.ConfigMap
	if err := json.Unmarshal(b, &got); err != nil {
		return told{}, err
	}
	if out.rev, err = strconv.ParseInt(got.ResourceVersion, 10, 64); err != nil {
		return told{}, err
	}
	if in.verb == "get" {
		out.seen[in.key], out.rev = register{got.Data["value"], out.rev}, 0
	}
	return out, nil
}

// text is the history for a person to read.
func (h *history) text(m porcupine.Model) string {
	var b strings.Builder
	fmt.Fprintf(&b, "begins with %+v\n", h.before)
	for _, op := range h.ops {
		fmt.Fprintf(&b, "client %d, %d to %d us: %s\n", op.ClientId, op.Call/1000, op.Return/1000, m.DescribeOperation(op.Input, op.Output))
	}
	return b.String()
}

// The model itself: what it takes and what it refuses.
func TestLinearModel(t *testing.T) {
	one := func(value string, rev int64) (seen [linearKeys]register) {
		seen[0] = register{value, rev}
		return seen
	}
	op := func(call, ret int64, in ask, out told) porcupine.Operation {
		return porcupine.Operation{ClientId: int(call), Input: in, Call: call, Output: out, Return: ret}
	}
	for _, tt := range []struct {
		name string
		ops  []porcupine.Operation
		ok   bool
	}{
		{"a write is read", []porcupine.Operation{op(0, 1, ask{verb: "create", value: "a"}, told{code: 201, rev: 5}), op(2, 3, ask{verb: "get"}, told{code: 200, seen: one("a", 5)})}, true},
		{"a stale read", []porcupine.Operation{op(0, 1, ask{verb: "create", value: "a"}, told{code: 201, rev: 5}), op(2, 3, ask{verb: "get"}, told{code: 200})}, false},
		{"a lost write", []porcupine.Operation{op(0, 1, ask{verb: "create", value: "a"}, told{code: 201, rev: 5}), op(2, 3, ask{verb: "create", value: "b"}, told{code: 201, rev: 6})}, false},
		{"no answer, done", []porcupine.Operation{op(0, math.MaxInt64, ask{verb: "create", value: "a"}, told{}), op(2, 3, ask{verb: "list"}, told{code: 200, seen: one("a", 7)})}, true},
		{"no answer, not done", []porcupine.Operation{op(0, math.MaxInt64, ask{verb: "create", value: "a"}, told{}), op(2, 3, ask{verb: "list"}, told{code: 200})}, true},
		{"undone", []porcupine.Operation{op(0, math.MaxInt64, ask{verb: "create", value: "a"}, told{}), op(2, 3, ask{verb: "list"}, told{code: 200, seen: one("a", 7)}), op(4, 5, ask{verb: "get"}, told{code: 200})}, false},
		{"a revision that goes back", []porcupine.Operation{op(0, 1, ask{verb: "create", value: "a"}, told{code: 201, rev: 5}), op(2, 3, ask{verb: "update", value: "b"}, told{code: 200, rev: 4})}, false},
		{"an update over another", []porcupine.Operation{op(0, 1, ask{verb: "create", value: "a"}, told{code: 201, rev: 5}), op(2, 3, ask{verb: "update", value: "b", rev: 4}, told{code: 200, rev: 6})}, false},
	} {
		if got := porcupine.CheckOperations(linearModel(world{}), tt.ops); got != tt.ok {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
