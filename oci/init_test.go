package oci_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/wire"
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

// What is in the launcher's session keyring is not the container's.
func TestSessionKeyring(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	runtime.LockOSThread() // a keyring is a thread's, from which it is inherited; never unlocked, as the keyring stays
	if _, err := unix.KeyctlJoinSessionKeyring("yare-test"); errors.Is(err, unix.ENOSYS) {
		t.Skip("no keyrings in this kernel")
	} else if err != nil {
		t.Fatal(err)
	}
	key, err := unix.AddKey("user", "yare-test-key", []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
	if err == nil {
		err = unix.KeyctlSetperm(key, 0x3f000000) // who has the keyring may do everything, others do not see it
	}
	if err != nil {
		t.Fatal(err)
	}
	null := devNull(t)
	for inherits, code := range map[bool]int{false: 1, true: 0} {
		bundle := h.bundle(func(s *specs.Spec) { s.Linux.MaskedPaths = nil }, "grep", "-q", "yare-test-key", "/proc/keys")
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: bundle, NoNewKeyring: inherits, Files: []*os.File{null, null, null}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Start(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if got := wait(t, pid); got != code {
			t.Errorf("with the launcher's keyring %v: grep exits with %d, want %d", inherits, got, code)
		}
		if err := h.Delete(t.Context(), "c", false); err != nil {
			t.Error(err)
		}
	}
}

// shellInit starts an init by a shell that does something before, with the plan. It returns our end of its socket.
func shellInit(t *testing.T, before string, p wire.Message) (*exec.Cmd, int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "yare-init")
	if err := ocitest.Build(path, ocitest.Entry); err != nil {
		t.Fatal(err)
	}
	sealed, err := linux.SealedFile("plan", wire.Marshal(p), false)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]) })
	cmd := exec.Command("/bin/sh", "-c", before+`; exec "$0"`, path)
	cmd.Env = []string{launch.RoleVariable + "=" + string(launch.Container), launch.FDVariable + "=3"}
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(sealed), "plan"), os.NewFile(uintptr(pair[1]), "sync")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	return cmd, pair[0]
}

// An init for which there is not even the memory to begin says so.
func TestNoMemory(t *testing.T) {
	t.Parallel()
	cmd, sync := shellInit(t, "ulimit -v 10000", &plan.Container{})
	message := make([]byte, 4096)
	n, _, err := linux.ReceiveMessage(sync, message)
	if want := "ereserve memory: cannot allocate memory"; err != nil || string(message[:n]) != want {
		t.Errorf("got %q, %v; want %q", message[:n], err, want)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Error(err)
	}
}

// What nohup(1) has a program ignore, its containers' programs do.
func TestIgnoredSignals(t *testing.T) {
	t.Parallel()
	cmd, sync := shellInit(t, "trap '' HUP", &plan.Container{Late: true})
	// A group that tells when it is entered, and one that is not entered before it is closed.
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	hold, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	size, err := unix.FcntlInt(held.Fd(), unix.F_GETPIPE_SZ, 0)
	if err == nil {
		_, err = held.Write(make([]byte, size))
	}
	if err == nil {
		err = linux.SendMessage(sync, []byte{plan.MsgEnter}, int(tell.Fd()), int(held.Fd()))
	}
	tell.Close()
	held.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(told, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Error(err)
	}
	const hangUp = 1 << (unix.SIGHUP - 1)
	for _, line := range strings.Split(string(status), "\n") {
		var ignored uint64
		if n, _ := fmt.Sscanf(line, "SigIgn: %x", &ignored); n == 1 && ignored&hangUp == 0 {
			t.Error(line)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
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
