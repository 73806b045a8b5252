package oci_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/ocitest"
)

const shift = 100000 // of the ids in the tests' user namespaces

// mapped puts a container into a user namespace of its own.
func mapped(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: shift, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	for i, m := range s.Mounts { // the group of terminals is mapped; the host's cgroups are not the container's
		if m.Type == "cgroup" {
			s.Mounts = append(s.Mounts[:i:i], s.Mounts[i+1:]...)
			break
		}
	}
}

// own gives the root file system to root of the user namespace.
func (h *host) own() {
	h.Helper()
	err := filepath.WalkDir(h.root, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(p, shift, shift)
		}
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.own()
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	score := 700
	code, out := h.run(func(s *specs.Spec) {
		mapped(s)
		s.Process.OOMScoreAdj = &score
		s.Process.User = specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		s.Hostname = "inside"
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: volume, Options: []string{"rbind", "ro", "idmap"}})
	}, "sh", "-c", `id -u; id -g; id -G; grep -c '0 *100000 *65536' /proc/self/uid_map; cat /proc/self/oom_score_adj; hostname
		cat /proc/sys/net/ipv4/ip_forward; stat -c %u /vol/file /bin/sh; echo x > /dev/null && echo null; touch /vol/x 2>&1 | grep -c Read-only`)
	if want := "5\n6\n6 7\n1\n700\ninside\n1\n0\n0\nnull\n1\n"; code != 0 || out != want {
		t.Errorf("exit code %d, got %q, want %q", code, out, want)
	}
	t.Run("cannot reach the host", func(t *testing.T) {
		code, out := h.run(mapped, "sh", "-c", "mount -t tmpfs none /tmp && echo mounts; dd if=/dev/zero of=/proc/sysrq-trigger 2>&1 | grep -c dd: ; echo 1 > /proc/self/oom_score_adj && echo raised")
		if !strings.HasSuffix(out, "raised\n") || code != 0 { // no CAP_SYS_ADMIN in the bounding set
			t.Errorf("exit code %d, got %q", code, out)
		}
	})
}

// A further process is in the user namespace too, and so is a container that joins it.
func TestUserNamespaceJoined(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.own()
	null := devNull(t)
	pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: h.bundle(mapped, "sleep", "1000"), Files: []*os.File{null, null, null}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Delete(t.Context(), "c", true); err != nil {
			t.Error(err)
		}
		wait(t, pid)
	}()
	if err := h.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	process, err := h.Process("c")
	if err != nil {
		t.Fatal(err)
	}
	process.Args = []string{"sh", "-c", "id -u; readlink /proc/self/ns/user"}
	child, err := h.Exec(t.Context(), "c", oci.ExecOptions{Process: process, Files: []*os.File{null, w, w}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	wait(t, child)
	user, lerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if want := "0\n" + user + "\n"; err != nil || lerr != nil || string(out) != want {
		t.Errorf("exec: got %q, %v, %v, want %q", out, err, lerr, want)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/tmp", pid)); err != nil {
		t.Error(err)
	}
	other := *h
	other.cgroup = h.cgroup + "/other"
	other.Runtime = &oci.Runtime{Root: t.TempDir(), Init: h.Init, Log: h.Runtime.Log}
	code, joined := other.run(func(s *specs.Spec) {
		mapped(s)
		s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
		for i, n := range s.Linux.Namespaces {
			if n.Type == specs.UserNamespace || n.Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, map[specs.LinuxNamespaceType]string{specs.UserNamespace: "user", specs.NetworkNamespace: "net"}[n.Type])
			}
		}
	}, "sh", "-c", "readlink /proc/self/ns/user; hostname x && echo own")
	if code != 1 || joined != user+"\nhostname: sethostname: Operation not permitted\n" { // no CAP_SYS_ADMIN
		t.Errorf("joined: exit code %d, got %q", code, joined)
	}
	if g, err := cgroup.Open(other.cgroup); err != nil || g.Remove() != nil {
		t.Error(err)
	}
}

// The same where the host's mounts are shared, as systemd makes them, in a mount namespace that goes with the process.
func TestUserNamespaceSharedMounts(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	cmd := exec.Command("unshare", "--mount", "--propagation", "shared", os.Args[0], "-test.run=^TestUserNamespace(Joined)?$")
	cmd.Env = append(os.Environ(), ocitest.BuiltInit+"="+ocitest.Program(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func devNull(t testing.TB) *os.File {
	t.Helper()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	return null
}

// Nothing of a container that waits in others' PID namespace is in the host's network namespace, which they would see in /proc.
func TestPIDNamespaceJoined(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	null := devNull(t)
	path := ""
	for _, id := range []string{"holder", "joins"} {
		bundle := h.bundle(func(s *specs.Spec) {
			s.Linux.CgroupsPath = h.cgroup + "/" + id
			for i, n := range s.Linux.Namespaces {
				if n.Type == specs.PIDNamespace {
					s.Linux.Namespaces[i].Path = path
				}
			}
		}, "true")
		pid, err := h.Create(t.Context(), id, oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, null, null}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := h.Delete(t.Context(), id, true); err != nil {
				t.Error(err)
			}
			wait(t, pid)
		}()
		path = fmt.Sprintf("/proc/%d/ns/pid", pid)
		host, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("%d threads, %v", len(threads), err)
		}
		for _, thread := range threads {
			if in, err := os.Readlink(thread); id == "joins" && (err != nil || in == host) {
				t.Errorf("%s: in %s, %v", thread, in, err)
			}
		}
	}
}

func TestTimeNamespace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	_, out := h.run(func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1_000_000}, "monotonic": {Secs: 5, Nanosecs: 7}}
	}, "sh", "-c", "cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime")
	f := strings.Fields(out)
	if len(f) != 7 || f[1] != "5" || f[2] != "7" || f[4] != "1000000" {
		t.Fatalf("got %q", out)
	}
	// The host may be up for any time.
	if up, err := strconv.ParseInt(f[6], 10, 64); err != nil || up < now.Sec+1_000_000 || up > now.Sec+1_000_100 {
		t.Errorf("up for %s s, beside the host's %d s", f[6], now.Sec)
	}
}

// Containers in a mount namespace that is not their own: the host's, or a joined one. Nothing is left mounted.
func TestSharedMountNamespace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	keeper := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "1000")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = keeper.Process.Kill()
		_ = keeper.Wait()
	}()
	ns := fmt.Sprintf("/proc/%d/ns/mnt", keeper.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // until it is in a namespace of its own
		if got, err := os.Readlink(ns); err == nil && got != own {
			break
		}
		time.Sleep(time.Millisecond)
	}
	joined, err := os.Readlink(ns)
	if err != nil || joined == own {
		t.Fatal(joined, err)
	}
	for name, tt := range map[string]struct{ path, want string }{"host's": {"", own}, "joined": {ns, joined}} {
		t.Run(name, func(t *testing.T) {
			code, out := h.run(func(s *specs.Spec) {
				for i, n := range s.Linux.Namespaces {
					if n.Type == specs.MountNamespace {
						s.Linux.Namespaces = append(s.Linux.Namespaces[:i:i], s.Linux.Namespaces[i+1:]...)
						break
					}
				}
				if tt.path != "" {
					s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace, Path: tt.path})
				}
			}, "sh", "-c", "readlink /proc/self/ns/mnt; ls /; wc -c < /proc/timer_list")
			if want := tt.want + "\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n0\n"; code != 0 || out != want {
				t.Errorf("exit code %d, got %q, want %q", code, out, want)
			}
			for _, p := range []string{"/proc/self/mountinfo", fmt.Sprintf("/proc/%d/mountinfo", keeper.Process.Pid)} {
				if b, err := os.ReadFile(p); err != nil || strings.Contains(string(b), h.root) {
					t.Errorf("%s: mounts are left: %v", p, err)
				}
			}
		})
	}
}

// An agent answers for the kernel.
func TestSeccompAgent(t *testing.T) {
	t.Parallel()
	for _, privs := range []bool{true, false} {
		t.Run(fmt.Sprintf("noNewPrivileges %v", privs), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			told := make(chan specs.ContainerProcessState, 1)
			go agentOf(t, l, told)
			code, out := h.run(func(s *specs.Spec) {
				s.Process.NoNewPrivileges = privs
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: socket, ListenerMetadata: "meta",
					Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}}}
			}, "sh", "-c", "mkdir /tmp/x; ls /tmp | wc -l")
			if want := "mkdir: can't create directory '/tmp/x': No medium found\n0\n"; code != 0 || out != want {
				t.Errorf("exit code %d, got %q, want %q", code, out, want)
			}
			s := <-told
			if s.Version != specs.Version || s.Metadata != "meta" || s.Pid == 0 || s.State.Pid != s.Pid || s.State.ID != "c" ||
				s.State.Status != specs.StateCreating || len(s.Fds) != 1 || s.Fds[0] != specs.SeccompFdName {
				t.Errorf("told %+v", s)
			}
		})
	}
	t.Run("no agent", func(t *testing.T) {
		h := newHost(t)
		null := devNull(t)
		_, err := h.Create(t.Context(), "c", oci.CreateOptions{Files: []*os.File{null, null, null}, Bundle: h.bundle(func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/nobody/here",
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		}, "true")})
		if err == nil || !strings.Contains(err.Error(), "seccomp agent") {
			t.Errorf("got %v", err)
		}
	})
}

// agentOf takes one listener and answers its first question with ENOMEDIUM.
func agentOf(t *testing.T, l net.Listener, told chan<- specs.ContainerProcessState) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	text, oob := make([]byte, 65536), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(text, oob)
	if err != nil {
		t.Error(err)
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil || len(messages) != 1 {
		t.Error("no descriptor", err)
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Error("no descriptor", err)
		return
	}
	defer unix.Close(fds[0])
	var s specs.ContainerProcessState
	if err := json.Unmarshal(text[:n], &s); err != nil {
		t.Error(err)
	}
	told <- s
	answer(t, fds[0])
}
