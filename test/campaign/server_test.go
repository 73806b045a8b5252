package campaign_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/test/cluster/hoststate"
)

// patience is how long anything may take that is only waited for.
const patience = 20 * time.Second

// server is `yare runtime`, with folders that stay from one process to the next.
type server struct {
	testing.TB
	dir string

	command *exec.Cmd
	conn    *grpc.ClientConn
	client  cri.RuntimeServiceClient
}

func (s *server) data(p ...string) string {
	return filepath.Join(append([]string{s.dir, "data"}, p...)...)
}
func (s *server) path(p ...string) string {
	return filepath.Join(append([]string{s.dir, "run"}, p...)...)
}
func (s *server) logs(pod, c string) string { return filepath.Join(s.dir, "logs", pod, c+".log") }

// newServer starts a server, and checks in the end that nothing is left of it.
func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{TB: t, dir: filepath.Join(inside.dir, strings.ToLower(t.Name()))}
	must(t, os.MkdirAll(s.dir, 0o755))
	build := exec.Command(inside.yare, "image", "build-from", inside.image, "--data-dir", s.data(), "--tag", "work:1", "--entrypoint", "/work")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	s.start()
	must(t, s.once(t.Context(), -1))
	s.stop() // what a server leaves without any pod is no leak
	before := s.picture()
	s.start()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			lines := strings.Split(string(b), "\n")
			t.Logf("the server's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		s.removeAll()
		s.stop()
		var left []string
		s.eventually("everything is gone", func() bool {
			left = hoststate.Diff(before, s.picture())
			return len(left) == 0
		}, func() string { return strings.Join(left, "\n") })
	})
	return s
}

// picture is of all that there is in our namespaces, folders and cgroups. Mounts that were there before ours are left out:
// their owners end them in our namespace as well, by removing the folder.
func (s *server) picture() hoststate.State {
	s.Helper()
	all, err := hoststate.Take(s.dir)
	must(s, err)
	ours := hoststate.State{}
	for line := range all {
		kind, _, _ := strings.Cut(line, " ")
		switch {
		case kind == "sysctl" && !strings.Contains(line, " net/"): // the machine's
		case (kind == "file" || kind == "cgroup" || kind == "mount") && !strings.Contains(line, inside.cgroup): // of others
		case strings.HasPrefix(line, "file "+filepath.Join(s.dir, "log")): // meant to stay
		default:
			ours[line] = true
		}
	}
	return ours
}

// start starts the server and returns when it answers.
func (s *server) start() {
	s.Helper()
	s.launch()
	s.ready()
}

// launch starts the server's process.
func (s *server) launch() {
	s.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(s, err)
	defer log.Close()
	line := s.line()
	s.command = exec.Command(line[0], line[1:]...)
	s.command.Stdout, s.command.Stderr = log, log
	must(s, s.command.Start())
}

// line is the server's command line.
func (s *server) line() []string {
	return []string{inside.yare, "runtime", "--socket", s.path("cri.sock"), "--data-dir", s.data(), "--run-dir", s.path(),
		"--cgroup-parent", inside.cgroup, "--pod-cidr", "10.77.0.0/16", "--cni-conf-dir", s.dir + "/none", "--cni-bin-dir", s.dir + "/none"}
}

func (s *server) ready() {
	s.Helper()
	s.eventually("the server answers", s.dial, nil)
}

// dial makes a client of the server if it answers. That something listens is not enough: for a moment that can be a child that the
// killed server was about to execute.
func (s *server) dial() bool {
	s.Helper()
	conn, err := grpc.NewClient("unix://"+s.path("cri.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(s, err)
	s.client = cri.NewRuntimeServiceClient(conn)
	if _, err := s.client.Version(context.Background(), &cri.VersionRequest{}); err != nil {
		conn.Close()
		return false
	}
	s.conn = conn
	return true
}

// kill ends the server by signal 9.
func (s *server) kill() { s.end(syscall.SIGKILL) }

// stop ends the server as a service manager does.
func (s *server) stop() { s.end(syscall.SIGTERM) }

func (s *server) end(signal syscall.Signal) {
	s.Helper()
	must(s, s.command.Process.Signal(signal))
	var exit *exec.ExitError
	if err := s.command.Wait(); err != nil && !errors.As(err, &exit) {
		s.Fatal(err)
	}
	if w := s.command.ProcessState.Sys().(syscall.WaitStatus); w.Signaled() && w.Signal() != signal {
		s.Errorf("the server ended by itself: %v", s.command.ProcessState)
	}
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *server) removeAll() {
	s.Helper()
	list, err := s.client.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	must(s, err)
	for _, sb := range list.Items {
		p := &pod{s: s, name: sb.Labels["pod"], id: sb.Id}
		must(s, p.remove(context.Background()))
	}
}

// eventually waits for what the kernel or another process does in its own time.
func (s *server) eventually(what string, ok func() bool, but func() string) {
	s.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			if but != nil {
				what += ":\n" + but()
			}
			s.Fatalf("waited %v in vain until %s", patience, what)
		}
	}
}

// gone tells whether a call has no answer because the server was killed meanwhile, and our connection closed.
func gone(err error) bool {
	return status.Code(err) == codes.Unavailable || status.Code(err) == codes.Canceled
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// children are the names in a folder, sorted.
func children(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// processes are the processes in a cgroup, by whichever hierarchy has it.
func processes(group string) (pids []int) {
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		text, err := os.ReadFile(filepath.Join(root, group, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		break
	}
	slices.Sort(pids)
	return pids
}

// born is when a process was started, in ticks since the machine was; empty for one that is not there, or dead.
func born(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	if f := strings.Fields(after); err == nil && len(f) > 19 && f[0] != "Z" && f[0] != "X" {
		return f[19]
	}
	return ""
}
