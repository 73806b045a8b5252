package oci_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
)

func number[T any](n T) *T { return &n }

// deny is a filter that is loaded as early as can be, and answers some calls with an errno.
func deny(s *specs.Spec, errno uint, calls ...string) {
	s.Process.NoNewPrivileges = false
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: calls, Action: specs.ActErrno, ErrnoRet: &errno}}}
}

// What the plan confines the program to is no obstacle to the init's last steps, which are confined too.
func TestConfinedInit(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(s *specs.Spec){
		"clone3 as profiles of other runtimes deny it": func(s *specs.Spec) {
			deny(s, uint(unix.ENOSYS), "clone3")
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/true", Args: []string{"true"}}}}
		},
		"openat":     func(s *specs.Spec) { deny(s, uint(unix.EACCES), "openat") },
		"faccessat2": func(s *specs.Spec) { deny(s, uint(unix.ENOSYS), "faccessat2") },
		"faccessat*": func(s *specs.Spec) { deny(s, uint(unix.EPERM), "faccessat", "faccessat2") },
		"open files": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 3, Hard: 3}}
			s.Process.OOMScoreAdj = number(100)
		},
		"memory": func(s *specs.Spec) {
			for _, name := range []string{"RLIMIT_DATA", "RLIMIT_STACK"} {
				s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: name, Soft: 1 << 20, Hard: 1 << 20})
			}
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/true", Args: []string{"true"}}}}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if code, out := newHost(t).run(change, "echo", "here"); code != 0 || out != "here\n" {
				t.Errorf("exit code %d, output %q", code, out)
			}
		})
	}
}

// Numbers that have no name are told as numbers.
func TestNamelessNumbers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	for want, change := range map[string]func(s *specs.Spec){
		"errno 1000": func(s *specs.Spec) { deny(s, 1000, "faccessat2", "faccessat", "newfstatat", "openat") },
		"errno 524":  func(s *specs.Spec) { deny(s, 524, "faccessat2", "faccessat", "newfstatat", "openat") },
		"killed by signal 40": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -40 $$"}}}}
		},
	} {
		_, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(change, "/bin/true"), Files: []*os.File{null, null, null}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		_ = h.Delete(t.Context(), "c", true)
	}
}

// Memory for one mount or place in $PATH is free for the next.
func TestLargePlan(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	name := strings.Repeat("n", 200)
	if err := os.WriteFile(filepath.Join(h.root, "bin", name), []byte("#!/bin/sh\necho here\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(s *specs.Spec){
		"places": func(s *specs.Spec) { s.Process.Env = []string{"PATH=" + strings.Repeat(":", 120000) + "/bin"} },
		"mounts": func(s *specs.Spec) {
			for i := range 3 {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: fmt.Sprintf("/tmp/%d%s", i, strings.Repeat("/d", 1990)), Type: "tmpfs", Source: "tmpfs"})
			}
		},
	} {
		if code, out := h.run(change, name); code != 0 || out != "here\n" {
			t.Errorf("%s: exit code %d, output %q", what, code, out)
		}
	}
}

// A path ends where the specification says, not at a zero byte.
func TestZeroBytes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	for what, change := range map[string]func(s *specs.Spec){
		"target": func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp\x00x", Type: "tmpfs"}) },
		"source": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Source: "/tmp\x00x", Options: []string{"bind"}})
		},
		"option": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Options: []string{"size=1m\x00x"}})
		},
		"directory": func(s *specs.Spec) { s.Process.Cwd = "/tmp\x00x" },
		"masked":    func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/tmp\x00x"} },
		"read-only": func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/tmp\x00x"} },
		"hook":      func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true\x00x"}}} },
		"argument": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true", Args: []string{"true", "\x00x"}}}}
		},
	} {
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(change, "true"), Files: []*os.File{null, null, null}})
		if err == nil {
			t.Errorf("%s: was cut short and taken", what)
		} else {
			t.Log(what, err)
		}
		_ = h.Delete(t.Context(), "c", true)
		if pid > 0 {
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
}

// The init that waits has small pages: it is to be forgotten soon.
func TestSmallPages(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip(err)
	}
	h := newHost(t)
	null := devNull(t)
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(nil, "true"), Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "smaps"))
	if err != nil {
		t.Error(err)
	}
	size := 0
	for line := range strings.Lines(string(smaps)) {
		if _, err := fmt.Sscanf(line, "Size: %d kB", &size); err == nil {
			continue
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && size >= 2048 && strings.Contains(flags, " wr ") && !strings.Contains(flags, " nh ") {
			t.Errorf("%d kB may have huge pages: %s", size, flags)
		}
	}
	if err := h.Delete(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
	wait(t, pid)
	runtime.KeepAlive(null)
}
