package shim_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// TestStartOfKilledClient has a shim that finds the requests of a client that is gone by the time when the next one comes.
// The latter is told that the container runs, whatever of it was to be done first.
func TestStartOfKilledClient(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pid := s.Pid()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unixpacket", filepath.Join(s.dir, "shim.sock"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		r := &protocol.Request{Serial: uint64(i + 1), Verb: protocol.List}
		if i == 8 {
			r.Verb, r.ID = protocol.Start, "c"
		}
		if _, err := conn.Write(wire.Marshal(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	connected := make(chan error, 1)
	go func() {
		var err error
		s.Client, err = shim.Connect(t.Context(), s.dir, s.init, s.log)
		connected <- err
	}()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-connected; err != nil {
		t.Fatal(err)
	}
	list, err := s.Containers(t.Context())
	if err != nil || len(list) != 1 || list[0].State != shim.Running || list[0].StartedAt.IsZero() {
		t.Errorf("got %+v, %v", list, err)
	}
}

// TestHalfBorn starts a shim that has no time to answer: it does not live on, where nobody would find it.
func TestHalfBorn(t *testing.T) {
	ocitest.Root(t)
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := shim.Config{Dir: filepath.Join(t.TempDir(), "s"), Init: ocitest.Init(t), Cgroup: ocitest.Cgroup(t) + "/shim", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if _, err := shim.Start(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
	group, err := cgroup.Open(c.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := group.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("alive are %v, %v", pids, err)
	}
	// A group that is somebody else's is not taken, and nobody in it harmed.
	if err := group.Create(nil); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Process.Kill(); err != nil {
			t.Errorf("the other: %v", err)
		}
		other.Wait()
		if err := group.Remove(); err != nil {
			t.Error(err)
		}
	}()
	for _, dir := range group.Dirs() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(other.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := shim.Start(t.Context(), c); !errors.Is(err, cgroup.ErrInUse) {
		t.Errorf("got %v", err)
	}
	if pids, err := group.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("alive are %v, %v", pids, err)
	}
}

// TestSweep frees what a client that was killed had begun to make, and nothing else.
func TestSweep(t *testing.T) {
	s := start(t, nil)
	s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
	half, err := cgroup.Open(s.cgroup + "/half")
	if err != nil {
		t.Fatal(err)
	}
	if err := half.Create(nil); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"half": `{"cgroup":"` + s.cgroup + `/half"}`, "early": ""} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(s.dir, name, "state.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != "c" {
			t.Errorf("%s is left", e.Name())
		}
	}
	if err := s.Start(t.Context(), "c"); err != nil { // the cgroup of half is looked for by the test's end
		t.Error(err)
	}
}

// TestDeleteOfHalfMade deletes a container that another client is making, and is told of its end, although it never was one.
func TestDeleteOfHalfMade(t *testing.T) {
	s := start(t, nil)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := s.spec("c", "sleep", "1000")
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "read x < " + fifo}}}}
	first := s.Client
	failed := make(chan error, 1)
	go func() {
		_, err := first.Create(t.Context(), shim.CreateRequest{ID: "c", Spec: spec})
		failed <- err
	}()
	hook, err := os.OpenFile(fifo, os.O_WRONLY, 0) // opens when the hook runs
	if err != nil {
		t.Fatal(err)
	}
	if s.Client, err = shim.Connect(t.Context(), s.dir, s.init, s.log); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Containers(t.Context()); err != nil || len(list) != 1 || list[0].State != shim.Creating {
		t.Errorf("got %+v, %v", list, err)
	}
	if err := s.Delete(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := hook.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("what was deleted was made")
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}
