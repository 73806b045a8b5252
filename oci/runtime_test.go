package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/seccomp"
)

// host is a runtime under test.
type host struct {
	testing.TB
	*oci.Runtime
	cgroup, root string
}

func newHost(t testing.TB) *host {
	t.Helper()
	ocitest.Root(t)
	return &host{TB: t, cgroup: ocitest.Cgroup(t), root: ocitest.Rootfs(t), Runtime: &oci.Runtime{Root: t.TempDir(),
		Init: ocitest.Init(t), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
}

// bundle writes a bundle with the usual spec, changed.
func (h *host) bundle(change func(*specs.Spec), args ...string) string {
	h.Helper()
	s := ocitest.Spec(h.root, h.cgroup+"/c", args...)
	if change != nil {
		change(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		h.Fatal(err)
	}
	dir := h.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		h.Fatal(err)
	}
	return dir
}

// run runs a container to its end and returns its exit code and output.
func (h *host) run(change func(*specs.Spec), args ...string) (int, string) {
	h.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		h.Fatal(err)
	}
	defer null.Close()
	pid, err := h.Create(h.Context(), "c", oci.CreateOptions{Bundle: h.bundle(change, args...), Files: []*os.File{null, w, w}})
	w.Close()
	if err != nil {
		h.Fatal(err)
	}
	if err := h.Start(h.Context(), "c"); err != nil {
		h.Error(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		h.Error(err)
	}
	code := wait(h.TB, pid)
	if err := h.Delete(h.Context(), "c", false); err != nil {
		h.Error(err)
	}
	return code, string(out)
}

func wait(t testing.TB, pid int) int {
	t.Helper()
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func TestVerbs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	files := []*os.File{null, null, null}
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "sleep", "1000"), Files: files})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want specs.ContainerState) {
		t.Helper()
		if s, err := h.State("c"); err != nil || s.Status != want {
			t.Errorf("got %+v, %v, want %s", s, err, want)
		}
	}
	expect(specs.StateCreated)
	// Whoever removes the group that we are in, or ends what is in it, does not meet the container there.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/cgroup", pid))
	if err != nil || len(threads) != 1 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	leader, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(leader), h.cgroup) {
		t.Errorf("it is in %s, %v", leader, err)
	}
	for _, thread := range threads {
		if groups, err := os.ReadFile(thread); err != nil || string(groups) != string(leader) {
			t.Errorf("%s: %s, %v; the leader's: %s", thread, groups, err, leader)
		}
	}
	if _, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "true"), Files: files}); !errors.Is(err, oci.ErrExist) {
		t.Errorf("second create: got %v", err)
	}
	if err := h.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	expect(specs.StateRunning)
	if err := h.Start(t.Context(), "c"); !errors.Is(err, oci.ErrState) {
		t.Errorf("second start: got %v", err)
	}
	if err := h.Pause("c"); err != nil {
		t.Error(err)
	}
	expect("paused")
	if err := h.Resume("c"); err != nil {
		t.Error(err)
	}
	process, err := h.Process("c")
	if err != nil {
		t.Fatal(err)
	}
	process.Args = []string{"sh", "-c", "exit 6"}
	child, err := h.Exec(t.Context(), "c", oci.ExecOptions{Process: process, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	if code := wait(t, child); code != 6 {
		t.Errorf("exec: got code %d", code)
	}
	if e, err := h.Stats("c"); err != nil || e.Type != "stats" {
		t.Errorf("stats: %+v, %v", e, err)
	}
	if list, err := h.List(); err != nil || len(list) != 1 || list[0].Pid != pid {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := h.Delete(t.Context(), "c", false); !errors.Is(err, oci.ErrState) {
		t.Errorf("delete of a running one: got %v", err)
	}
	if err := h.Kill(t.Context(), "c", unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	if code := wait(t, pid); code != 137 {
		t.Errorf("got code %d", code)
	}
	expect(specs.StateStopped)
	if err := h.Delete(t.Context(), "c", false); err != nil {
		t.Error(err)
	}
	if _, err := h.State("c"); !errors.Is(err, oci.ErrNotExist) {
		t.Errorf("after delete: got %v", err)
	}
}

// The cgroup is limited while the init starts: of limits that the kernel refuses nothing is left, the init neither.
func TestLimitsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	read, write, err := os.Pipe() // its end is that of all who had it
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	bundle := h.bundle(func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}
	}, "true")
	_, err = h.Create(t.Context(), "c", oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, null, write}})
	if err == nil || !strings.Contains(err.Error(), "cpuset.cpus") || strings.Contains(err.Error(), "init died") {
		t.Errorf("got %v", err)
	}
	write.Close()
	if left, err := io.ReadAll(read); err != nil || len(left) > 0 {
		t.Errorf("the init said %q, %v", left, err)
	}
	if list, err := h.List(); err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

// A create that was killed before it had written its record down leaves a directory that forbids the name, until it is deleted.
func TestDeleteOfHalfMade(t *testing.T) {
	t.Parallel()
	r := &oci.Runtime{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	for name, files := range map[string][]string{"nothing": nil, "empty": {"state"}} {
		dir := filepath.Join(r.Root, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Delete(t.Context(), name, false); !errors.Is(err, oci.ErrNotExist) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := r.Delete(t.Context(), name, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left: %v", name, err)
		}
	}
}

// A limit under which nothing starts is named.
func TestTooLittleMemory(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	limit := int64(4096)
	bundle := h.bundle(func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	}, "true")
	_, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, null, null}})
	if err == nil || !strings.Contains(err.Error(), "memory.limit") {
		t.Errorf("got %v", err)
	}
}

// In a frozen cgroup an init would stand still for good, and whoever waits for it.
func TestFrozenCgroup(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	group, err := cgroup.Open(h.cgroup + "/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := group.Create(nil); err != nil {
		t.Fatal(err)
	}
	if err := group.Freeze(); err != nil {
		t.Fatal(err)
	}
	null := devNull(t)
	_, err = h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "true"), Files: []*os.File{null, null, null}})
	if !errors.Is(err, cgroup.ErrFrozen) {
		t.Errorf("got %v", err)
	}
	if list, err := h.List(); err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

// TestInside looks from inside at what the spec asked for.
func TestInside(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for name, tc := range map[string]struct {
		change func(*specs.Spec)
		script string
		want   string
	}{
		"user": {func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}}
		}, "id -u; id -g; id -G", "1000\n1001\n1001 7 8\n"},
		"capabilities": {nil, "grep CapBnd /proc/self/status", "CapBnd:\t00000000a80425fb\n"},
		"no new privs": {nil, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
		"seccomp":      {func(s *specs.Spec) { s.Linux.Seccomp = seccomp.Default(nil) }, "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		"seccomp before no new privs": {func(s *specs.Spec) { s.Linux.Seccomp = seccomp.Default(nil); s.Process.NoNewPrivileges = false },
			"grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		"masked":      {nil, "wc -c < /proc/timer_list; ls /sys/firmware | wc -l", "0\n0\n"},
		"read-only":   {nil, "echo x > /proc/sys/kernel/domainname", "sh: can't create /proc/sys/kernel/domainname: Read-only file system\n"},
		"devices":     {nil, "ls /dev; dd if=/dev/zero of=/dev/null bs=1 count=1 2>/dev/null && echo ok", "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nok\n"},
		"descriptors": {nil, "ls /proc/self/fd | wc -l", "4\n"}, // three streams and ls's own
		"rlimit": {func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}}
		}, "ulimit -n; ulimit -Hn", "77\n99\n"},
		"hostname": {func(s *specs.Spec) { s.Hostname = "named" }, "hostname", "named\n"},
		"sysctl": {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} },
			"cat /proc/sys/net/ipv4/ip_forward", "1\n"},
		"read-only root":    {func(s *specs.Spec) { s.Root.Readonly = true }, "touch /x 2>&1 | grep -c Read-only", "1\n"},
		"working directory": {func(s *specs.Spec) { s.Process.Cwd = "/made/here" }, "pwd", "/made/here\n"},
		"umask":             {func(s *specs.Spec) { u := uint32(0o27); s.Process.User.Umask = &u }, "umask", "0027\n"},
		"cgroup":            {nil, "ls /sys/fs/cgroup | grep pids | head -c 4; touch /sys/fs/cgroup/x 2>&1 | grep -c Read-only", "pids1\n"},
		"stdout of a user": {func(s *specs.Spec) { s.Process.User.UID = 1000 },
			"echo through > /dev/stdout", "through\n"},
		"tmpcopyup": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/bin", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}})
		}, "touch /bin/new && ls /bin/sh", "/bin/sh\n"},
		"hooks": {func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/busybox", Args: []string{"touch", "touch", s.Root.Path + "/tmp/runtime"}}},
				StartContainer: []specs.Hook{{Path: "/bin/touch", Args: []string{"touch", "/tmp/start"}}}}
		}, "ls /tmp/runtime /tmp/start", "/tmp/runtime\n/tmp/start\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "hooks" {
				tc.change = hooksWithShell(tc.change)
			}
			if _, out := h.run(tc.change, "sh", "-c", tc.script); out != tc.want {
				t.Errorf("got %q, want %q", out, tc.want)
			}
		})
	}
}

// hooksWithShell calls busybox of the host by the applet's name.
func hooksWithShell(change func(*specs.Spec)) func(*specs.Spec) {
	return func(s *specs.Spec) {
		change(s)
		h := &s.Hooks.CreateRuntime[0]
		h.Args = append([]string{"busybox"}, h.Args[1:]...)
	}
}

func BenchmarkRunDelete(b *testing.B) {
	h := newHost(b)
	bundle := h.bundle(nil, "true")
	null := devNull(b)
	var create, run, remove time.Duration
	for b.Loop() {
		began := time.Now()
		pid, err := h.Create(b.Context(), "c", oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, null, null}})
		if err != nil {
			b.Fatal(err)
		}
		create += time.Since(began)
		began = time.Now()
		if err := h.Start(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
		wait(b, pid)
		run += time.Since(began)
		began = time.Now()
		if err := h.Delete(b.Context(), "c", false); err != nil {
			b.Fatal(err)
		}
		remove += time.Since(began)
	}
	for name, d := range map[string]time.Duration{"create": create, "run": run, "delete": remove} {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), name+"-µs")
	}
}

// What else is kept in the state directory, the init among it, is no container.
func TestListOfNone(t *testing.T) {
	t.Parallel()
	r := &oci.Runtime{Root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(r.Root, "@init-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if list, err := r.List(); err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

// The program that the command line keeps replaces those of other versions, and nothing else.
func TestInitOfOtherVersions(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	dir := t.TempDir()
	for _, name := range []string{"@init-old/program", "container"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds it kept
		i, err := oci.OpenInitIn(dir)
		if errors.Is(err, oci.ErrNoInit) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() == "@init-old" || entries[1].Name() != "container" {
		t.Errorf("kept: %v, %v", entries, err)
	}
}

// Where a copy cannot be kept, because overlayfs would misread the path, it is made in memory.
func TestInitNotKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "with:colon")
	i, err := oci.OpenInitIn(dir)
	if errors.Is(err, oci.ErrNoInit) || errors.Is(err, linux.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is in %s: %v", dir, err)
	}
}
