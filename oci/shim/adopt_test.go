package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/shim"
)

// TestAdopt closes the connection without a word, as a killed server does, and
// connects again.
func TestAdopt(t *testing.T) {
	s := start(t, nil)
	pid := s.create(shim.CreateRequest{ID: "lives", Spec: s.spec("lives", "sleep", "1000")})
	s.create(shim.CreateRequest{ID: "ends", Spec: s.spec("ends", "sh", "-c", "read x < /tmp/fifo; exit 9")})
	if err := unix.Mkfifo(filepath.Join(s.root, "tmp/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"lives", "ends"} {
		if err := s.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The exit happens while nobody is connected; its record tells when.
	if err := os.WriteFile(filepath.Join(s.root, "tmp/fifo"), []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	exit := filepath.Join(s.dir, "ends", "exit")
	eventually(t, func() bool { _, err := os.Stat(exit); return err == nil })
	var err error
	if s.Client, err = shim.Connect(t.Context(), s.dir, s.init, s.log); err != nil {
		t.Fatal(err)
	}
	list, err := s.Containers(t.Context())
	if err != nil || len(list) != 2 || list[0].Pid != pid || list[0].State != shim.Running ||
		list[1].State != shim.Stopped || list[1].Exit.Code != 9 {
		t.Errorf("got %+v, %v", list, err)
	}
	if status, err := s.Wait(t.Context(), "ends"); err != nil || status.Code != 9 {
		t.Errorf("wait: got %+v, %v", status, err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen")
		}
	}
}

func TestShimKilled(t *testing.T) {
	s := start(t, nil)
	pid := s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(2 * time.Second):
		t.Fatal("the death was not noticed")
	}
	if _, err := s.Containers(t.Context()); !errors.Is(err, shim.ErrGone) {
		t.Errorf("request: got %v, want ErrGone", err)
	}
	if _, err := shim.Connect(t.Context(), s.dir, s.init, s.log); !errors.Is(err, shim.ErrGone) {
		t.Errorf("connect: got %v, want ErrGone", err)
	}
	for range 2 { // it may be repeated
		list, err := shim.Reap(t.Context(), s.dir, s.log)
		if err != nil || len(list) != 1 || list[0].Exit.Code != 137 || list[0].State != shim.Stopped {
			t.Errorf("reap: got %+v, %v", list, err)
		}
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		// Reparented to a process that may not have reaped it yet: a zombie.
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if !bytes.Contains(b, []byte(") Z ")) {
			t.Errorf("container survived: %s", b)
		}
	}
	if err := shim.Remove(s.dir); err != nil {
		t.Error(err)
	}
}

func TestAttach(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "cat"), Stdin: true, StdinOnce: true})
	var out bytes.Buffer
	done := make(chan error, 1)
	in, input := pipe(t)
	go func() { done <- s.Attach(t.Context(), "c", shim.Streams{Stdin: in, Stdout: &out}) }()
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcde\n", 10000)
	if _, err := input.WriteString(text); err != nil {
		t.Fatal(err)
	}
	input.Close() // stdin once: the container sees the end of its input
	if err := <-done; err != nil {
		t.Error(err)
	}
	if out.String() != text {
		t.Errorf("got %d bytes, want %d", out.Len(), len(text))
	}
	status, log := s.finish("c")
	if status.Code != 0 || strings.Count(log, "\n") != 10000 {
		t.Errorf("got %+v and %d lines", status, strings.Count(log, "\n"))
	}
}

func TestAttachSlowReader(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sh", "-c", "read x; head -c 3000000 /dev/zero; echo end"), Stdin: true})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	slow := &slowWriter{}
	done := make(chan error, 1)
	go func() {
		done <- s.Attach(t.Context(), "c", shim.Streams{Stdin: strings.NewReader("go\n"), Stdout: slow})
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if slow.n != 3000004 {
		t.Errorf("got %d bytes, want 3000004", slow.n)
	}
	if status, _ := s.finish("c"); status.Code != 0 {
		t.Errorf("got %+v", status)
	}
}

type slowWriter struct{ n int }

func (s *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(100 * time.Microsecond)
	s.n += len(b)
	return len(b), nil
}

func TestTerminal(t *testing.T) {
	s := start(t, nil)
	spec := s.spec("c", "sh", "-c", "tty; read x; stty size; echo got $x; ls -l /dev/console | head -c 1")
	spec.Process.Terminal = true
	s.create(shim.CreateRequest{ID: "c", Spec: spec, Stdin: true})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Resize(t.Context(), "c", shim.Size{Width: 91, Height: 17}); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	if err := s.Attach(t.Context(), "c", shim.Streams{Stdin: strings.NewReader("hi\n"), Stdout: &out}); err != nil {
		t.Error(err)
	}
	status, log := s.finish("c")
	log = strings.ReplaceAll(log, "\r", "")
	if status.Code != 0 || !strings.Contains(log, "17 91\n") || !strings.Contains(log, "got hi\n") || !strings.HasSuffix(log, "P c\n") {
		t.Errorf("got %+v, %q", status, log)
	}
}

func TestLogPartialAndReopen(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Stdin: true,
		Spec: s.spec("c", "sh", "-c", "head -c 40000 /dev/zero; echo; echo -n half; read x; echo other; echo -n tail")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, "c.log")
	eventually(t, func() bool { b, _ := os.ReadFile(path); return len(b) > 40000 })
	first := s.logText("c")
	var tags string
	for line := range strings.Lines(first) {
		tags += line[len("stdout "):len("stdout P")]
	}
	if tags != "PPF" {
		t.Errorf("tags: got %q, want PPF", tags)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := s.ReopenLog(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(t.Context(), "c", shim.Streams{Stdin: strings.NewReader("\n")}); err != nil {
		t.Error(err)
	}
	if _, log := s.finish("c"); log != "stdout F halfother\nstdout P tail\n" {
		t.Errorf("after rotation: got %q", log)
	}
}

func TestResources(t *testing.T) {
	s := start(t, nil)
	limit, pids, quota, period := int64(32<<20), int64(64), int64(50000), uint64(100000)
	spec := s.spec("c", "sleep", "1000")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	s.create(shim.CreateRequest{ID: "c", Spec: spec})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	group, err := s.Cgroup("c")
	if err != nil {
		t.Fatal(err)
	}
	stats, err := group.Stats()
	if s.runtime != nil { // whose start does not wait for the program to be there
		eventually(t, func() bool {
			stats, err = group.Stats()
			return err != nil || stats.Pids.Current == 1
		})
	}
	if err != nil || stats.Memory.Limit != uint64(limit) || stats.Pids.Current != 1 || stats.Pids.Limit != 64 || stats.CPU.Usage == 0 || stats.Memory.Usage == 0 {
		t.Errorf("stats: got %+v, %v", stats, err)
	}
	limit *= 2
	if err := group.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Error(err)
	}
	if stats, err := group.Stats(); err != nil || stats.Memory.Limit != uint64(limit) || stats.Pids.Limit != 64 {
		t.Errorf("after update: got %+v, %v", stats, err)
	}
	if err := group.Freeze(); err != nil {
		t.Error(err)
	}
	if frozen, err := group.Frozen(); err != nil || !frozen {
		t.Errorf("frozen: got %v, %v", frozen, err)
	}
	if err := group.Kill(context.Background()); err != nil { // also when frozen
		t.Error(err)
	}
	if status, _ := s.finish("c"); status.Code != 137 {
		t.Errorf("got %+v", status)
	}
}

func TestOutOfMemory(t *testing.T) {
	s := start(t, nil)
	limit := int64(16 << 20)
	spec := s.spec("c", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	status, _ := s.run(spec, "c")
	if !status.OOM || status.Code != 137 {
		t.Errorf("got %+v, want an OOM kill", status)
	}
}

func TestSharedPID(t *testing.T) {
	s := start(t, func(c *shim.Config) { c.Namespaces.PID = true })
	spec := s.spec("a", "sh", "-c", "(sleep 0.1 &) ; sleep 1000")
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	pid := s.create(shim.CreateRequest{ID: "a", Spec: spec})
	if err := s.Start(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && string(args) == "sleep\x001000\x00"
	})
	other := s.spec("b", "ps")
	other.Linux.Namespaces = spec.Linux.Namespaces
	status, log := s.run(other, "b")
	if status.Code != 0 || !strings.Contains(log, "yare-init") || !strings.Contains(log, "sleep 1000") {
		t.Errorf("got %+v, %q", status, log)
	}
	if path := s.Namespace(specs.PIDNamespace); path == "" {
		t.Error("no path of the shared PID namespace")
	} else if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	// Without process 1's privilege over it, the group is what ends them.
	if err := s.Kill(t.Context(), "a", unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if status, _ := s.finish("a"); status.Code != 137 {
		t.Errorf("got %+v", status)
	}
}

func TestGroupOfHostIsRefused(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/", "/.."} {
		if _, err := cgroup.Open(path); err == nil {
			t.Errorf("open %q: no error", path)
		}
	}
}
