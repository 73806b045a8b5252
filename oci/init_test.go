package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/plan"
)

// The init is an ordinary Go program where the linker is not told of its entry, as on architectures that have none.
func TestInitUnderTheGoRuntime(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	path := filepath.Join(t.TempDir(), "yare-init")
	if err := ocitest.Build(path, "-s -w"); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if h.Init, err = oci.NewInit(program); err != nil {
		t.Fatal(err)
	}
	defer h.Init.Close()
	code, out := h.run(func(s *specs.Spec) { s.Hostname = "there" }, "hostname")
	if code != 0 || out != "there\n" {
		t.Errorf("exit code %d, output %q", code, out)
	}
}

// A container that waits to be started is process 1 of its PID namespace, to which the kernel gives no signal without a handler.
func TestSignalBeforeStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT} {
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "true"), Files: []*os.File{null, null, null}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Kill(t.Context(), "c", sig, false); err != nil {
			t.Error(err)
		}
		if code := wait(t, pid); code != 128+int(sig) {
			t.Errorf("%v: exit code %d", sig, code)
		}
		if err := h.Delete(t.Context(), "c", false); err != nil {
			t.Error(err)
		}
	}
}

// A plan that is none is refused with a message; the init neither dies by a signal nor does anything.
func TestCorruptPlan(t *testing.T) {
	t.Parallel()
	init := ocitest.Init(t)
	null := devNull(t)
	for name, content := range map[string]string{
		"empty": "", "numbers": strings.Repeat("\x07", 1000), "a great length": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"text": strings.Repeat("plan ", 1000), "zeros and more": strings.Repeat("\x00", 5000),
	} {
		file, err := linux.SealedFile("plan", []byte(content), false)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(null.Fd())
		pid, pidfd, err := launch.Start(launch.Process{Exe: init.FD(), Name: "yare-init", Role: launch.Container,
			Files: []int{fd, fd, fd, file, pair[1], fd}, Cgroup: -1})
		if err != nil {
			t.Fatal(err)
		}
		linux.CloseAll(file, pair[1], pidfd)
		message := make([]byte, 4096)
		n, _, err := linux.ReceiveMessage(pair[0], message)
		if err != nil || n == 0 || message[0] != plan.MsgError || !strings.Contains(string(message[:n]), "corrupt message") {
			t.Errorf("%s: got %q, %v", name, message[:n], err)
		}
		if code := wait(t, pid); code != 1 {
			t.Errorf("%s: exit code %d", name, code)
		}
		linux.CloseAll(pair[0])
	}
}
