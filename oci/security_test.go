package oci_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
)

// The classes of escape that a runtime's set-up can allow, one test each. test/mutants shows each test to fail on a runtime
// that is vulnerable.

// CVE-2019-5736: whoever gets hold of the init's binary writes to it. Root of the host may try as it likes here.
func TestInitCannotBeWritten(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	kept, err := oci.OpenInitIn(t.TempDir())
	if errors.Is(err, oci.ErrNoInit) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	inMemory, err := oci.OpenInit()
	if err != nil {
		t.Fatal(err)
	}
	defer inMemory.Close()
	for name, i := range map[string]*oci.Init{"in memory": inMemory, "kept": kept} {
		path := fmt.Sprintf("/proc/self/fd/%d", i.FD())
		// Where it is a mount, it can be made writable by who may: it is to be no use.
		_ = unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		if fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
			if _, err := unix.Pwrite(fd, []byte("#!"), 0); err == nil {
				t.Errorf("%s: written through a new descriptor", name)
			}
			unix.Close(fd)
		}
		if _, err := unix.Pwrite(i.FD(), []byte("#!"), 0); err == nil {
			t.Errorf("%s: written", name)
		}
		if err := unix.Ftruncate(i.FD(), 1); err == nil {
			t.Errorf("%s: truncated", name)
		}
		if err := unix.Chmod(path, 0o777); err == nil && name == "kept" {
			t.Errorf("%s: mode changed", name)
		}
	}
	// A container whose program is the init itself.
	if code, out := h.run(nil, "/proc/self/exe"); code == 0 || strings.Contains(out, "panic") {
		t.Errorf("got code %d, %q", code, out)
	}
}

// leak leaves a descriptor of the host's root open across exec, as careless callers do, and returns its number.
func leak(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	const number = 77
	if err := unix.Dup3(fd, number, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(number) })
	return number
}

// CVE-2024-21626: descriptors of the host in the container, and a working directory through one.
func TestNoDescriptorsOfTheHost(t *testing.T) {
	h := newHost(t)
	number := leak(t)
	if _, out := h.run(nil, "sh", "-c", "ls /proc/self/fd | wc -l; ls /proc/self/fd/77/ 2>/dev/null"); out != "4\n" { // three streams and ls's own
		t.Errorf("got %q", out)
	}
	for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", number), fmt.Sprintf("/proc/self/fd/%d/etc", number), "/proc/1/cwd/.."} {
		null := devNull(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(func(s *specs.Spec) { s.Process.Cwd = cwd }, "ls"), Files: []*os.File{null, w, w}})
		w.Close()
		r.Close()
		if err == nil && cwd != "/proc/1/cwd/.." { // which is the container's own by then
			t.Errorf("%s: entered a descriptor of the host", cwd)
		}
		if err == nil {
			if err := h.Delete(t.Context(), "c", true); err != nil {
				t.Error(err)
			}
			wait(t, pid)
		}
	}
}

// CVE-2019-19921, CVE-2023-27561, CVE-2025-52881: what is written under /proc must reach the kernel, not what an image or volume
// has there.
func TestWritesReachTheKernel(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	fake := t.TempDir()
	for _, f := range []string{"sys/net/ipv4/ip_forward", "self/oom_score_adj", "thread-self/attr/exec", "self/attr/exec"} {
		if err := os.MkdirAll(filepath.Join(fake, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(fake, f), []byte("fake"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	score := 700
	change := func(s *specs.Spec) {
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		s.Process.OOMScoreAdj = &score
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		for i, m := range s.Mounts {
			if m.Destination == "/proc" {
				s.Mounts[i] = specs.Mount{Destination: "/proc", Type: "bind", Source: fake, Options: []string{"rbind"}}
			}
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/real", Type: "proc", Source: "proc"})
	}
	_, out := h.run(change, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/self/oom_score_adj", "/real/sys/net/ipv4/ip_forward", "/real/self/oom_score_adj")
	if want := "fakefake1\n700\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

// CVE-2019-19921 again: nothing is mounted inside /proc.
func TestNothingMountedInsideProc(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := os.Symlink("/proc/self", filepath.Join(h.root, "way")); err != nil {
		t.Fatal(err)
	}
	null := devNull(t)
	for _, target := range []string{"/proc/self/attr", "/proc/1", "/way/attr"} {
		change := func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs"})
		}
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(change, "true"), Files: []*os.File{null, null, null}})
		if err == nil || !strings.Contains(err.Error(), "prohibited") {
			t.Errorf("%s: got %v", target, err)
		}
		if err == nil {
			_ = h.Delete(t.Context(), "c", true)
			wait(t, pid)
		}
	}
}

// CVE-2025-31133: masked paths are covered by the null device, whatever the image calls /dev/null.
func TestMaskedByTheRealDevice(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := os.Symlink("/etc/secret", filepath.Join(h.root, "dev/null")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.root, "etc/secret"), []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, out := h.run(func(s *specs.Spec) {
		var kept []specs.Mount
		for _, m := range s.Mounts {
			if m.Destination == "/proc" {
				kept = append(kept, m)
			}
		}
		kept = append(kept, specs.Mount{Destination: "/dev", Type: "bind", Source: filepath.Join(h.root, "dev"), Options: []string{"bind"}})
		s.Mounts = kept
		s.Linux.MaskedPaths = []string{"/proc/timer_list"}
	}, "stat", "-c", "%t:%T", "/proc/timer_list")
	if out != "1:3\n" {
		t.Errorf("got %q", out)
	}
}

// CVE-2026-41579 and the family of symbolic links in images: nothing is made or mounted outside of the root.
func TestNothingMadeOutside(t *testing.T) {
	t.Parallel()
	null := devNull(t)
	for name, tt := range map[string]struct {
		link   string // in the image, to a folder of the host
		change func(*specs.Spec)
	}{
		"dev": {"dev", nil},
		"absolute": {"mnt", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/made", Type: "tmpfs", Source: "tmpfs"})
		}},
		"working folder": {"work", func(s *specs.Spec) { s.Process.Cwd = "/work/made" }},
		"device": {"node", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/node/made", Type: "c", Major: 1, Minor: 3}}
		}},
		"file of a volume": {"vol", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol/made", Type: "bind", Source: "/etc/hostname", Options: []string{"bind"}})
		}},
	} {
		for _, prefix := range []string{"", "../../../../../../../../../.."} {
			t.Run(name+" "+prefix, func(t *testing.T) {
				h := newHost(t)
				outside := t.TempDir()
				_ = os.Remove(filepath.Join(h.root, tt.link))
				if err := os.Symlink(prefix+outside, filepath.Join(h.root, tt.link)); err != nil {
					t.Fatal(err)
				}
				pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(tt.change, "true"), Files: []*os.File{null, null, null}})
				if err == nil {
					if err := h.Delete(t.Context(), "c", true); err != nil {
						t.Error(err)
					}
					wait(t, pid)
				}
				if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
					t.Errorf("made outside of the root: %v, %v", entries, err)
				}
			})
		}
	}
}

// Nobody in the container, root of its user namespace included, may look into a process that is still the runtime's: it has
// the host's descriptors.
func TestInitIsNotDumpable(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.own()
	null := devNull(t)
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(mapped, "true"), Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/fd", pid), &st); err != nil || st.Uid != 0 {
		t.Errorf("its descriptors are of user %d, %v", st.Uid, err)
	}
	if err := h.Delete(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
	wait(t, pid)
}

// What may not be read or changed by a container stays so: the paths that are hidden or read-only, the rights that are dropped.
func TestConfined(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, out := h.run(nil, "sh", "-c", `head -c1 /proc/timer_list | wc -c; echo 1 2>/dev/null > /proc/sys/kernel/panic || echo ro
		grep -E '^(CapEff|CapAmb|NoNewPrivs)' /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null || echo no mount`)
	if want := "0\nro\nCapEff:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nno mount\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
