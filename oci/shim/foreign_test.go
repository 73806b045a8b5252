package shim_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
)

// foreignRuntimes are those that the tests find on the host.
var foreignRuntimes = []string{"runc", "crun"}

// runtimeOf is the runtime that the tests below TestForeign are run with.
func runtimeOf(t *testing.T) *shim.Runtime {
	t.Helper()
	parts := strings.Split(t.Name(), "/")
	if parts[0] != "TestForeign" {
		return nil
	}
	path, err := exec.LookPath(parts[1])
	if err != nil {
		t.Skipf("%v: see scripts/setup", err)
	}
	return &shim.Runtime{Path: path}
}

// TestForeign holds containers of other runtimes to what ours are held to.
func TestForeign(t *testing.T) {
	for _, runtime := range foreignRuntimes {
		t.Run(runtime, func(t *testing.T) {
			if runtimeOf(t); runtime == "crun" && !ocitest.OneHierarchy(t) {
				return
			}
			for name, test := range map[string]func(*testing.T){
				"Lifecycle": TestLifecycle, "Exits": TestExits, "Kill": TestKill, "Exec": TestExec, "ExecGivenUp": TestExecGivenUp, "ShutdownDuringStart": TestShutdownDuringStart,
				"Adopt": TestAdopt, "ShimKilled": TestShimKilled, "Attach": TestAttach, "AttachSlowReader": TestAttachSlowReader,
				"Terminal": TestTerminal, "LogPartialAndReopen": TestLogPartialAndReopen, "Resources": TestResources,
				"OutOfMemory": TestOutOfMemory, "SharedPID": TestSharedPID, "Memory": TestMemory, "Orphans": testOrphans, "NotMade": testNotMade,
				"CreateGivenUp": testCreateGivenUp, "OneNamespace": testOneNamespace, "Broken": testBroken, "BrokenLater": testBrokenLater, "NoTerminal": testNoTerminal,
				"ExecDuringStart": testExecDuringStart,
			} {
				t.Run(name, test)
			}
		})
	}
}

// testOrphans has a container without a PID namespace of its own leave processes to the shim, which nobody there waits for.
func testOrphans(t *testing.T) {
	s := start(t, nil)
	spec := s.spec("c", "sh", "-c", "for i in 1 2 3; do (sleep 0.01 &); done; echo left; exec sleep 1000")
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	pid := s.create(shim.CreateRequest{ID: "c", Spec: spec})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.logText("c") != "" })
	eventually(t, func() bool { return slices.Equal(children(t, s.Pid()), []int{pid}) })
	if status, _, err := s.end("c"); err != nil || status.Code != 137 {
		t.Errorf("got %+v, %v", status, err)
	}
}

// children are a process's, ended ones too.
func children(t *testing.T, parent int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), fmt.Sprintf("\nPPid:\t%d\n", parent)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// end kills a container.
func (s *sandbox) end(id string) (status shim.ExitStatus, log string, err error) {
	s.Helper()
	if err = s.Kill(s.Context(), id, unix.SIGKILL, true); err == nil {
		status, log = s.finish(id)
	}
	return status, log, err
}

// testNotMade has the runtime find fault with a container: its own words are told, and nothing is left.
func testNotMade(t *testing.T) {
	s := start(t, nil)
	for range 2 {
		_, err := s.Create(t.Context(), shim.CreateRequest{ID: "c", Spec: s.spec("c", "/bin/nothing"), Runtime: s.runtime})
		if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
			t.Errorf("got %v", err)
		}
	}
	if list, err := s.Containers(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left behind: %+v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("state left behind: %v", err)
	}
}

// testExecDuringStart asks for a process while the runtime starts the container, which runs as far as anybody is told: as a server does that
// takes over from one that was killed meanwhile. It waits for the start.
func testExecDuringStart(t *testing.T) {
	s := start(t, nil)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s.wrap("[ $verb = start ] && read x < " + fifo)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	started, ran := make(chan error, 1), make(chan error, 1)
	go func() { started <- s.Start(t.Context(), "c") }()
	hold, err := os.OpenFile(fifo, os.O_WRONLY, 0) // opens when the runtime's start waits
	if err != nil {
		t.Fatal(err)
	}
	process := *s.spec("c", "true").Process
	go func() {
		_, _, _, err := s.ExecSync(t.Context(), "c", &process, 0, 1000)
		ran <- err
	}()
	for range 100 { // long enough for a refusal
		if list, err := s.Containers(t.Context()); err != nil || len(list) != 1 || list[0].State != shim.Running {
			t.Fatalf("got %+v, %v", list, err)
		}
	}
	if len(ran) > 0 {
		t.Errorf("it did not wait: %v", <-ran)
		ran <- nil
	}
	if err := errors.Join(hold.Close(), <-started, <-ran); err != nil {
		t.Error(err)
	}
	if status, _, err := s.end("c"); err != nil || status.Code != 137 {
		t.Errorf("got %+v, %v", status, err)
	}
}

// testCreateGivenUp cancels a Create while the runtime waits for a hook. What the runtime had made by then goes.
func testCreateGivenUp(t *testing.T) {
	s := start(t, nil)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := s.spec("c", "sleep", "1000")
	spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "read x < " + fifo}}}}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := s.Create(ctx, shim.CreateRequest{ID: "c", Spec: spec, Runtime: s.runtime})
		failed <- err
	}()
	hook, err := os.OpenFile(fifo, os.O_WRONLY, 0) // opens when the hook runs
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := hook.Close(); err != nil {
		t.Error(err)
	}
	if list, err := s.Containers(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left behind: %+v, %v", list, err)
	}
	eventually(t, func() bool { return len(children(t, s.Pid())) == 0 })
}

// testOneNamespace has all commands of the runtime see the sandbox's namespaces: some leave a socket there for the next.
func testOneNamespace(t *testing.T) {
	s := start(t, nil)
	told := filepath.Join(s.root, "told")
	program := filepath.Join(t.TempDir(), "wrapped")
	script := fmt.Sprintf("#!/bin/sh\nreadlink /proc/self/ns/ipc >>%s\nexec %s \"$@\"\n", told, s.runtime.Path)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.runtime = &shim.Runtime{Path: program}
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	process := *s.spec("c", "true").Process
	limit := int64(64 << 20)
	_, err := s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: &process})
	err = errors.Join(err, s.Update(t.Context(), "c", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}),
		s.Kill(t.Context(), "c", unix.SIGKILL, false))
	if err != nil {
		t.Error(err)
	}
	s.finish("c")
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", s.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(told)
	if err != nil || string(b) != strings.Repeat(want+"\n", 6) {
		t.Errorf("create, start, exec, update, kill and delete in %q, want %s: %v", b, want, err)
	}
}
