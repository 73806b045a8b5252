package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
)

// TestMountOptions looks at mounts from inside.
func TestMountOptions(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	source := t.TempDir()
	below := filepath.Join(source, "below")
	for _, dir := range []string{source, below} { // shared, so that there is somebody to be a slave of
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"), unix.Mount("", dir, "", unix.MS_SHARED, "")); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}()
	}
	for _, tt := range []struct {
		options      string // of a bind mount
		mount, under string // options that the mounts must have; with ! in front must not
		optional     string
	}{
		{"rbind,ro", "ro", "!ro", ""},
		{"rbind,rro", "ro", "ro", ""},
		{"rbind,rnosuid,rnodev,rnoexec", "nosuid,nodev,noexec", "nosuid,nodev,noexec", ""},
		{"rbind,nosuid,nodev,noexec,noatime,nodiratime", "nosuid,nodev,noexec,noatime,nodiratime", "!nosuid,!noexec", ""},
		{"rbind,rnosymfollow,rnoatime", "nosymfollow,noatime", "nosymfollow,noatime", ""},
		{"rbind,ro,rw,nosuid,suid", "!ro,!nosuid", "!ro", ""},
		{"bind,strictatime", "!relatime,!noatime", "", ""},
		{"rbind,shared", "", "", "shared:"},
		{"rbind,rslave", "", "", "master:"},
		{"rbind,private", "", "", "!shared:"},
		{"rbind,rprivate", "", "", "!master:"},
		{"bind,unbindable", "", "", "unbindable"},
		{"bind,sync,iversion,silent,mode=755", "", "", ""}, // the file system's: without effect on a bind mount
	} {
		t.Run(tt.options, func(t *testing.T) {
			_, out := h.run(func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: source, Options: strings.Split(tt.options, ",")})
			}, "sh", "-c", "grep ' /m' /proc/self/mountinfo")
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if strings.Contains(tt.options, "rbind") != (len(lines) == 2) {
				t.Fatalf("got %q", out)
			}
			for i, want := range []string{tt.mount, tt.under} {
				if want == "" {
					continue
				}
				have := "," + strings.Fields(lines[i])[5] + ","
				for option := range strings.SplitSeq(want, ",") {
					name, not := strings.CutPrefix(option, "!")
					if strings.Contains(have, ","+name+",") == not {
						t.Errorf("mount %d has %s, want %s", i, have, option)
					}
				}
			}
			name, not := strings.CutPrefix(tt.optional, "!")
			if head, _, _ := strings.Cut(lines[0], " - "); name != "" && strings.Contains(head, name) == not {
				t.Errorf("got %q, want %s", lines[0], tt.optional)
			}
		})
	}
	t.Run("remount and file system options", func(t *testing.T) {
		_, out := h.run(func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=8k", "sync", "dirsync", "lazytime", "loud", "noiversion"}},
				specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"remount", "size=16k", "nosuid"}},
				specs.Mount{Destination: "/b", Type: "bind", Source: "/etc", Options: []string{"bind"}},
				specs.Mount{Destination: "/b", Options: []string{"bind", "remount", "ro"}})
		}, "sh", "-c", "grep -E ' /(t|b) ' /proc/self/mountinfo; touch /b/x 2>&1 | grep -c Read-only")
		for _, want := range []string{"size=16k", "nosuid", "sync", "dirsync", "lazytime", "\n1\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in %q", want, out)
			}
		}
	})
	t.Run("id-mapped for a container without user namespace", func(t *testing.T) {
		if !since(t, 6, 3) {
			t.Skip("tmpfs, which may be here, can be mapped since Linux 6.3")
		}
		maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 4242, Size: 1}}
		_, out := h.run(func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: source, Options: []string{"rbind"}, UIDMappings: maps, GIDMappings: maps})
		}, "stat", "-c", "%u:%g", "/m")
		if out != "4242:4242\n" {
			t.Errorf("got %q", out)
		}
	})
}

// TestAttributes looks at attributes of processes from inside.
func TestAttributes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for name, tt := range map[string]struct {
		change func(*specs.Spec)
		script string
		want   string
	}{
		"scheduler": {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7} },
			"cut -d' ' -f19,41 /proc/self/stat", "7 3\n"},
		"memory policy": {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"} },
			"grep -c bind:0 /proc/self/numa_maps | head -c 1 | grep -c '[1-9]'", "1\n"},
		"personality": {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} },
			"cat /proc/self/personality", "00000008\n"},
		"affinity is for exec": {func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"} },
			"grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t" + allowed(t) + "\n"},
		"seccomp kills": {func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActKillProcess}}}
		}, "mkdir /tmp/x; echo $?", "Bad system call\n159\n"},
		"seccomp before the working directory": {func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getcwd"}, Action: specs.ActErrno}}}
		}, "echo up", "up\n"},
		"unknown capability": {func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_OF_LATER")
			s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"} // not inheritable
		}, "echo up", "up\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, out := h.run(tt.change, "sh", "-c", tt.script); out != tt.want {
				t.Errorf("got %q, want %q", out, tt.want)
			}
		})
	}
}

// allowed is where this test may run.
func allowed(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "Cpus_allowed_list:\t")
	list, _, _ := strings.Cut(rest, "\n")
	return list
}

func TestExecAffinity(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	pid, err := h.Run(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "sleep", "1000"), Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Delete(t.Context(), "c", true); err != nil {
			t.Error(err)
		}
		wait(t, pid)
	}()
	initial := "1"
	if !since(t, 6, 2) { // who joins a cpuset has all its processors then
		initial = allowed(t)
	}
	for name, tt := range map[string]struct{ initial, final, want string }{
		"initial": {"1", "", initial}, "final": {"", "0", "0"}, "both": {"1", "0", "0"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.Process("c")
		if err != nil {
			t.Fatal(err)
		}
		p.Args = []string{"grep", "Cpus_allowed_list", "/proc/self/status"}
		p.ExecCPUAffinity = &specs.CPUAffinity{Initial: tt.initial, Final: tt.final}
		child, err := h.Exec(t.Context(), "c", oci.ExecOptions{Process: p, Files: []*os.File{null, w, w}})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		r.Close()
		wait(t, child)
		if err != nil || string(out) != "Cpus_allowed_list:\t"+tt.want+"\n" {
			t.Errorf("%s: got %q, %v", name, out, err)
		}
	}
}

// Hooks at every point: where they run, what they are told, and what their failure does.
func TestHooks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	null := devNull(t)
	// Outside a shell of the host, inside busybox.
	say := func(point string, inside bool) []specs.Hook {
		path := "/bin/sh"
		to := filepath.Join(dir, point)
		if inside {
			to = "/tmp/" + point
		}
		return []specs.Hook{{Path: path, Args: []string{"sh", "-c", "cat > " + to}}}
	}
	all := func(s *specs.Spec) {
		s.Annotations = map[string]string{"k": "v"}
		s.Hooks = &specs.Hooks{Prestart: say("prestart", false), CreateRuntime: say("createRuntime", false), CreateContainer: say("createContainer", false),
			StartContainer: say("startContainer", true), Poststart: say("poststart", false), Poststop: say("poststop", false)}
	}
	bundle := h.bundle(all, "sleep", "1000")
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.root, "tmp/startContainer")); err == nil {
		t.Error("startContainer ran at create")
	}
	if err := h.Start(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := h.Delete(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
	wait(t, pid)
	for point, want := range map[string]struct {
		status specs.ContainerState
		pid    int
	}{"prestart": {specs.StateCreating, pid}, "createRuntime": {specs.StateCreating, pid}, "createContainer": {specs.StateCreating, 1},
		"startContainer": {specs.StateCreated, 1}, "poststart": {specs.StateRunning, pid}, "poststop": {specs.StateStopped, 0}} {
		path := filepath.Join(dir, point)
		if point == "startContainer" {
			path = filepath.Join(h.root, "tmp", point)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		var s specs.State
		if err := json.Unmarshal(b, &s); err != nil || s.ID != "c" || s.Status != want.status || s.Pid != want.pid || s.Bundle != bundle || s.Annotations["k"] != "v" || s.Version != specs.Version {
			t.Errorf("%s: got %s, %v", point, b, err)
		}
	}
}

func TestHooksThatFail(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	files := []*os.File{null, null, null}
	later := filepath.Join(t.TempDir(), "later")
	second := 1
	bad := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo broken >&2; exit 3"}}, {Path: "/bin/sh", Args: []string{"sh", "-c", "touch " + later}}}
	slow := []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}}
	for name, tt := range map[string]struct {
		hooks  specs.Hooks
		create bool // fails
		start  bool
	}{
		"prestart":             {specs.Hooks{Prestart: bad}, true, false},
		"createRuntime":        {specs.Hooks{CreateRuntime: bad}, true, false},
		"createContainer":      {specs.Hooks{CreateContainer: bad}, true, false},
		"startContainer":       {specs.Hooks{StartContainer: bad}, false, true},
		"poststart":            {specs.Hooks{Poststart: bad}, false, true},
		"createRuntime slow":   {specs.Hooks{CreateRuntime: slow}, true, false},
		"createContainer slow": {specs.Hooks{CreateContainer: slow}, true, false},
		"startContainer slow":  {specs.Hooks{StartContainer: slow}, false, true},
		"missing":              {specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such"}}}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(func(s *specs.Spec) { s.Hooks = &tt.hooks }, "sleep", "1000"), Files: files})
			if (err != nil) != tt.create {
				t.Fatalf("create: %v", err)
			}
			if tt.create {
				if _, err := h.State("c"); err == nil {
					t.Error("the container is left")
				}
				return
			}
			if err := h.Start(t.Context(), "c"); (err != nil) != tt.start {
				t.Errorf("start: %v", err)
			}
			wait(t, pid) // it has been stopped
			if err := h.Delete(t.Context(), "c", false); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(later); err == nil {
				t.Error("the hooks went on")
			}
		})
	}
	t.Run("poststop", func(t *testing.T) {
		if code, _ := h.run(func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: bad} }, "true"); code != 0 {
			t.Error(code)
		}
		if _, err := os.Stat(later); err != nil {
			t.Error("the hooks did not go on:", err)
		}
	})
}

// A program that cannot be executed is told of by start where it was not at create.
func TestStartTellsWhy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	script := filepath.Join(h.root, "bin/broken")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "broken"), Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "exec /bin/broken") {
		t.Errorf("got %v", err)
	}
	if code := wait(t, pid); code != 127 {
		t.Error(code)
	}
	if err := h.Delete(t.Context(), "c", false); err != nil {
		t.Error(err)
	}
	if _, err := h.Run(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "broken"), Files: []*os.File{null, null, null}}); err == nil ||
		!strings.Contains(err.Error(), "exec /bin/broken") {
		t.Errorf("run: got %v", err)
	}
}

// since says that the kernel is of this release or a later one.
func since(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var has [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &has[0], &has[1]); err != nil {
		t.Fatal(err)
	}
	return has[0] > major || has[0] == major && has[1] >= minor
}
