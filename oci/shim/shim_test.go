package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
)

// sandbox is a shim under test.
type sandbox struct {
	*testing.T
	*shim.Client
	init   *oci.Init
	dir    string
	cgroup string
	root   string
	log    *slog.Logger
	// runtime makes the containers; nil: ours.
	runtime *shim.Runtime
}

func start(t *testing.T, change func(*shim.Config)) *sandbox {
	t.Helper()
	ocitest.Root(t)
	t.Parallel()
	dir, err := os.MkdirTemp("", "yare-shim-")
	if err != nil {
		t.Fatal(err)
	}
	s := &sandbox{T: t, init: ocitest.Init(t), dir: filepath.Join(dir, "s"), cgroup: ocitest.Cgroup(t), root: ocitest.Rootfs(t),
		runtime: runtimeOf(t), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := shim.Config{Dir: s.dir, Init: s.init, Cgroup: s.cgroup + "/shim", Log: s.log,
		Namespaces: shim.Namespaces{IPC: true, UTS: true, Hostname: "pod"}}
	c.Foreign = s.runtime != nil
	if change != nil {
		change(&c)
	}
	if s.Client, err = shim.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.Pid())); err != nil || string(name) != "yare-shim\n" {
		t.Errorf("the shim is called %q, %v", name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(s.dir, "shim.log"))
			t.Logf("shim log: %s", b)
		}
		if err := s.Client.Shutdown(context.Background()); err != nil && !errors.Is(err, shim.ErrGone) {
			t.Error(err)
		}
		s.Client.Close()
	})
	go func(events <-chan shim.Event) {
		for range events {
		}
	}(s.Client.Events())
	return s
}

// spec is a container's that lives in the sandbox's namespaces.
func (s *sandbox) spec(id string, args ...string) *specs.Spec {
	spec := ocitest.Spec(s.root, s.cgroup+"/"+id, args...)
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	return spec
}

func (s *sandbox) create(r shim.CreateRequest) int {
	s.Helper()
	if r.LogPath == "" {
		r.LogPath = filepath.Join(s.dir, r.ID+".log")
	}
	r.Runtime = s.runtime
	pid, err := s.Create(s.Context(), r)
	if err != nil {
		s.Fatal(err)
	}
	return pid
}

// run runs a container to its end and returns its status and log.
func (s *sandbox) run(spec *specs.Spec, id string) (shim.ExitStatus, string) {
	s.Helper()
	s.create(shim.CreateRequest{ID: id, Bundle: s.dir, Spec: spec})
	if err := s.Start(s.Context(), id); err != nil {
		s.Fatal(err)
	}
	return s.finish(id)
}

func (s *sandbox) finish(id string) (shim.ExitStatus, string) {
	s.Helper()
	status, err := s.Wait(s.Context(), id)
	if err != nil {
		s.Fatal(err)
	}
	log := s.logText(id)
	if err := s.Delete(s.Context(), id); err != nil {
		s.Fatal(err)
	}
	return status, log
}

// logText is the log without its time stamps.
func (s *sandbox) logText(id string) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, id+".log"))
	if err != nil {
		s.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		stamp, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			s.Errorf("log line %q: %v", line, err)
		}
		out.WriteString(rest)
	}
	return out.String()
}

func TestLifecycle(t *testing.T) {
	s := start(t, nil)
	pid := s.create(shim.CreateRequest{ID: "c", Bundle: s.dir, Spec: s.spec("c", "sh", "-c", "echo out; echo err >&2; hostname; exit 7")})
	list, err := s.Containers(t.Context())
	if err != nil || len(list) != 1 || list[0].State != shim.Created || list[0].Pid != pid || list[0].Cgroup != s.cgroup+"/c" {
		t.Fatalf("after create: %+v, %v", list, err)
	}
	if _, err := s.Create(t.Context(), shim.CreateRequest{ID: "c", Spec: s.spec("c", "true")}); !errors.Is(err, shim.ErrExists) {
		t.Errorf("second create: got %v, want ErrExists", err)
	}
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	status, err := s.Wait(t.Context(), "c")
	if err != nil || status.Code != 7 || status.Signal != 0 || status.OOM || time.Since(status.At) > time.Minute {
		t.Errorf("exit: got %+v, %v", status, err)
	}
	if err := s.Start(t.Context(), "c"); !errors.Is(err, shim.ErrState) {
		t.Errorf("start of a stopped one: got %v, want ErrState", err)
	}
	if err := s.Kill(t.Context(), "c", unix.SIGTERM, false); !errors.Is(err, shim.ErrState) {
		t.Errorf("kill of a stopped one: got %v, want ErrState", err)
	}
	// The caller knows which container it has named.
	if err := s.Attach(t.Context(), "c", shim.Streams{Stdin: strings.NewReader("")}); !errors.Is(err, shim.ErrState) || err.Error() != "the container is stopped" {
		t.Errorf("attach to a stopped one: got %v", err)
	}
	if _, err := s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: s.spec("c", "true").Process}); !errors.Is(err, shim.ErrState) || err.Error() != "the container is stopped" {
		t.Errorf("exec in a stopped one: got %v", err)
	}
	lines := strings.Split(strings.TrimSpace(s.logText("c")), "\n")
	for _, want := range []string{"stdout F out", "stderr F err", "stdout F pod"} {
		if !strings.Contains("\n"+strings.Join(lines, "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("log %q lacks %q", lines, want)
		}
	}
	if err := s.Delete(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "c"); !errors.Is(err, shim.ErrNotFound) {
		t.Errorf("second delete: got %v, want ErrNotFound", err)
	}
}

// TestScore has shims that the kernel kills last, where the host lets us, and containers without a score of their own that are not protected with them.
func TestScore(t *testing.T) {
	s := start(t, func(c *shim.Config) { c.Namespaces.PID = true })
	score := func(pid int) string {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(b))
	}
	ours := score(os.Getpid())
	protected := score(s.Pid())
	if protected != "-999" && protected != ours {
		t.Errorf("the shim has %s, we have %s", protected, ours)
	}
	want := ours
	if strings.HasPrefix(protected, "-") {
		want = "0"
	}
	spec := s.spec("c", "sleep", "1000")
	pid := s.create(shim.CreateRequest{ID: "c", Spec: spec})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if got := score(pid); got != want {
		t.Errorf("the container has %s, want %s", got, want)
	}
	process := *spec.Process
	process.Args = []string{"cat", "/proc/self/oom_score_adj"}
	out, _, _, err := s.ExecSync(t.Context(), "c", &process, 0, 100)
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("a further process has %s, %v, want %s", got, err, want)
	}
}

func TestExits(t *testing.T) {
	s := start(t, nil)
	for name, tc := range map[string]struct {
		args   []string
		code   int
		signal unix.Signal
	}{
		"zero":   {[]string{"true"}, 0, 0},
		"code":   {[]string{"sh", "-c", "exit 42"}, 42, 0},
		"abort":  {[]string{"sh", "-c", "kill -ABRT $$; exit 3"}, 3, 0}, // process 1 is immune to itself
		"signal": {[]string{"sh", "-c", "sh -c 'kill -TERM $$'; exit $?"}, 143, 0},
	} {
		t.Run(name, func(t *testing.T) {
			status, _ := s.run(s.spec(name, tc.args...), name)
			if status.Code != tc.code || status.Signal != tc.signal {
				t.Errorf("got %+v, want code %d, signal %v", status, tc.code, tc.signal)
			}
		})
	}
}

func TestKill(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "c"); !errors.Is(err, shim.ErrState) {
		t.Errorf("delete of a running one: got %v, want ErrState", err)
	}
	if err := s.Kill(t.Context(), "c", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	status, _ := s.finish("c")
	if status.Code != 137 || status.Signal != unix.SIGKILL || status.OOM {
		t.Errorf("got %+v", status)
	}
}

// What a server asked for before it was killed may happen while the next one removes the sandbox: a container that begins to
// run meanwhile goes like any other.
func TestShutdownDuringStart(t *testing.T) {
	ocitest.Root(t)
	for i := range 8 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			s := start(t, nil)
			s.create(shim.CreateRequest{ID: "c", Bundle: s.dir, Spec: s.spec("c", "sleep", "60")})
			var started sync.WaitGroup
			started.Go(func() { _ = s.Start(t.Context(), "c") }) // whether it still starts is a matter of luck
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			started.Wait()
		})
	}
}

func TestNotExecutable(t *testing.T) {
	s := start(t, nil)
	if err := os.WriteFile(filepath.Join(s.root, "bin/text"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"missing": {"nothing"}, "path": {"/bin/nothing"}, "directory": {"/bin"}} {
		_, err := s.Create(t.Context(), shim.CreateRequest{ID: name, Spec: s.spec(name, args...)})
		if !errors.Is(err, shim.ErrNotExecutable) || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%s: got %v, want ErrNotExecutable", name, err)
		}
	}
	// What only execve notices.
	s.create(shim.CreateRequest{ID: "text", Spec: s.spec("text", "/bin/text")})
	if err := s.Start(t.Context(), "text"); !errors.Is(err, shim.ErrNotExecutable) {
		t.Errorf("text: got %v, want ErrNotExecutable", err)
	}
	if status, _ := s.finish("text"); status.Code != 126 {
		t.Errorf("text: got %+v, want code 126", status)
	}
	if list, err := s.Containers(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left behind: %+v, %v", list, err)
	}
}

func TestExec(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	process := func(args ...string) *specs.Process {
		p := *s.spec("c").Process
		p.Args = args
		return &p
	}
	out, errs, status, err := s.ExecSync(t.Context(), "c", process("sh", "-c", "echo $$; hostname; echo e >&2; exit 5"), 0, 1<<20)
	if err != nil || status.Code != 5 || !strings.HasSuffix(string(out), "\npod\n") || string(errs) != "e\n" {
		t.Errorf("got %q, %q, %+v, %v", out, errs, status, err)
	}
	t.Run("stdin", func(t *testing.T) {
		var got bytes.Buffer
		status, err := s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: process("cat"),
			Streams: shim.Streams{Stdin: strings.NewReader(strings.Repeat("x", 1<<20)), Stdout: &got}})
		if err != nil || status.Code != 0 || got.Len() != 1<<20 {
			t.Errorf("got %d bytes, %+v, %v", got.Len(), status, err)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		var out []byte
		for timeout := 200 * time.Millisecond; len(out) == 0 && timeout < time.Minute; timeout *= 4 { // a slow machine does not come so far
			var err error
			out, _, _, err = s.ExecSync(t.Context(), "c", process("sh", "-c", "echo begun; sleep 1000"), timeout, 100)
			if !errors.Is(err, shim.ErrTimeout) {
				t.Fatalf("got %q, %v", out, err)
			}
		}
		if string(out) != "begun\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("limit", func(t *testing.T) {
		out, _, _, err := s.ExecSync(t.Context(), "c", process("echo", "0123456789"), 0, 4)
		if err != nil || string(out) != "0123" {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if _, _, _, err := s.ExecSync(t.Context(), "c", process("nothing"), 0, 4); !errors.Is(err, shim.ErrNotExecutable) &&
			!(s.runtime != nil && err != nil && strings.Contains(err.Error(), "nothing")) { // others tell it in words alone
			t.Errorf("got %v, want ErrNotExecutable", err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		p := process("sh", "-c", "tty; stty size; read x; stty size; echo got $x")
		p.Terminal, p.ConsoleSize = true, &specs.Box{Width: 80, Height: 24}
		resize := make(chan shim.Size, 1)
		in, input := pipe(t)
		resize <- shim.Size{Width: 100, Height: 30}
		got := &answering{after: 2, answer: func() { _, _ = input.WriteString("hello\n") }}
		status, err := s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: p, Streams: shim.Streams{Stdin: in, Stdout: got, Resize: resize}})
		text := strings.ReplaceAll(got.text.String(), "\r", "")
		if err != nil || status.Code != 0 || !strings.HasPrefix(text, "/dev/pts/0\n") || !strings.Contains(text, "30 100\n") || !strings.Contains(text, "got hello\n") {
			t.Errorf("got %q, %+v, %v", text, status, err)
		}
	})
	if err := s.Kill(t.Context(), "c", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	s.finish("c")
	if _, err := s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: process("true")}); !errors.Is(err, shim.ErrNotFound) {
		t.Errorf("exec in a deleted one: got %v, want ErrNotFound", err)
	}
}

// TestExecGivenUp gives execs up before they have begun: none of them goes on in the container.
func TestExecGivenUp(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	process := *s.spec("c", "sleep", "1000").Process
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if _, err := s.Exec(ctx, shim.ExecRequest{ID: "c", Process: &process}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := s.Containers(t.Context()); err != nil { // which is answered after them
		t.Error(err)
	}
	group, err := s.Cgroup("c")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { pids, err := group.Pids(); return err == nil && len(pids) == 1 })
}

// answering calls answer once a number of lines has been written.
type answering struct {
	text   bytes.Buffer
	after  int
	answer func()
}

func (a *answering) Write(b []byte) (int, error) {
	n, err := a.text.Write(b)
	if a.answer != nil && bytes.Count(a.text.Bytes(), []byte("\n")) >= a.after {
		a.answer()
		a.answer = nil
	}
	return n, err
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
