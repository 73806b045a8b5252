package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/ocitest"
)

// asProgram makes the test binary the program under test: its value is the container init's path.
const asProgram = "YARE_OCI_TEST_INIT"

func TestMain(m *testing.M) {
	if init := os.Getenv(asProgram); init != "" {
		os.Unsetenv(asProgram)
		os.Exit(program(init))
	}
	os.Exit(m.Run())
}

// program is what cmd does with the command.
func program(init string) int {
	c := newCommand("oci", "test", func(string) (*oci.Init, error) {
		b, err := os.ReadFile(init)
		if err != nil {
			return nil, err
		}
		return oci.NewInit(b)
	})
	return c.main(context.Background(), os.Args[1:])
}

// box is a state directory with a bundle.
type box struct {
	testing.TB
	init, root, bundle, cgroup string
}

func newBox(t testing.TB, change func(*specs.Spec), args ...string) *box {
	t.Helper()
	ocitest.Root(t)
	b := &box{TB: t, init: ocitest.Program(t), root: filepath.Join(t.TempDir(), "state"), bundle: t.TempDir(), cgroup: ocitest.Cgroup(t)}
	b.write(change, args...)
	t.Cleanup(func() {
		left, err := os.ReadDir(b.root)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range left {
			if !t.Failed() {
				t.Errorf("container %s is left", e.Name())
			}
			b.command("delete", "--force", e.Name()).Run()
		}
	})
	return b
}

// write makes the bundle anew.
func (b *box) write(change func(*specs.Spec), args ...string) {
	b.Helper()
	s := ocitest.Spec(ocitest.Rootfs(b), b.cgroup+"/c", args...)
	if change != nil {
		change(s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), text, 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *box) command(args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", append([]string{"--root", b.root}, args...)...)
	c.Env = append(os.Environ(), asProgram+"="+b.init)
	return c
}

// try runs a verb. Its streams are files, which a container may keep.
func (b *box) try(args ...string) (out, stderr string, code int) {
	b.Helper()
	return b.feed("", args...)
}

func (b *box) feed(in string, args ...string) (out, stderr string, code int) {
	b.Helper()
	dir := b.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	stdin, stdout, errout := open("in"), open("out"), open("err")
	defer closeAll(stdin, stdout, errout)
	if _, err := stdin.WriteString(in); err != nil {
		b.Fatal(err)
	}
	if _, err := stdin.Seek(0, io.SeekStart); err != nil {
		b.Fatal(err)
	}
	c := b.command(args...)
	c.Stdin, c.Stdout, c.Stderr = stdin, stdout, errout
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.Fatal(err)
	}
	return read(b, stdout.Name()), read(b, errout.Name()), c.ProcessState.ExitCode()
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// do runs a verb that must succeed and returns what it prints.
func (b *box) do(args ...string) string {
	b.Helper()
	out, stderr, code := b.try(args...)
	if code != 0 {
		b.Fatalf("%s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return out
}

// status is what the verb state says.
func (b *box) status(id string) specs.ContainerState {
	b.Helper()
	return b.state(id).Status
}

func (b *box) state(id string) *oci.State {
	b.Helper()
	s := new(oci.State)
	if err := json.Unmarshal([]byte(b.do("state", id)), s); err != nil {
		b.Fatal(err)
	}
	return s
}

// ends waits until the process of a container has ended.
func (b *box) ends(pid int) {
	b.Helper()
	fd, err := linux.OpenPid(pid)
	if err != nil {
		return // gone and reaped already
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 {
		b.Fatalf("process %d goes on: %v", pid, err)
	}
}

// pidOf reads a pid file.
func (b *box) pidOf(path string) int {
	b.Helper()
	pid, err := strconv.Atoi(read(b, path))
	if err != nil {
		b.Fatal(err)
	}
	return pid
}

// received is the descriptor that comes with the first connection.
func received(t *testing.T, l *net.UnixListener) int {
	t.Helper()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 64), oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return fds[0]
}

// A container's life by single verbs, and its state between them.
func TestLife(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} }, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.01; done")
	pidFile, socket := filepath.Join(b.TempDir(), "pid"), filepath.Join(b.TempDir(), "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if out := b.do("create", "--bundle", b.bundle, "--pid-file", pidFile, "--pidfd-socket", socket, "c"); out != "" {
		t.Errorf("create prints %q", out)
	}
	pid := b.pidOf(pidFile)
	if got, err := linux.PidOf(received(t, listener)); err != nil || got != pid {
		t.Errorf("a descriptor of process %d, %v; want %d", got, err, pid)
	}
	s := b.state("c")
	if s.Status != specs.StateCreated || s.Pid != pid || s.ID != "c" || s.Bundle != b.bundle || s.Version != specs.Version ||
		s.Annotations["a"] != "b" || time.Since(s.Created) > time.Minute || !strings.HasSuffix(s.Rootfs, "rootfs") {
		t.Errorf("created: %+v", s)
	}
	b.do("start", "c")
	if s := b.state("c"); s.Status != specs.StateRunning || s.Pid != pid {
		t.Errorf("started: %+v", s)
	}
	var list []oci.State
	if err := json.Unmarshal([]byte(b.do("list", "--format", "json")), &list); err != nil || len(list) != 1 || list[0].ID != "c" {
		t.Errorf("list: %v, %v", list, err)
	}
	if out := b.do("list", "-q"); out != "c\n" {
		t.Errorf("list -q: %q", out)
	}
	if out := b.do("list"); !strings.HasPrefix(out, "ID ") || !strings.Contains(out, "running") {
		t.Errorf("list: %q", out)
	}
	b.do("pause", "c")
	if got := b.status("c"); got != "paused" {
		t.Errorf("paused: %s", got)
	}
	if _, stderr, code := b.try("exec", "c", "true"); code != 255 || !strings.Contains(stderr, "it is paused") {
		t.Errorf("exec when paused: %d %s", code, stderr)
	}
	waits := make(chan int)
	go func() { _, _, code := b.try("exec", "--ignore-paused", "c", "sh", "-c", "exit 7"); waits <- code }()
	b.do("resume", "c")
	if code := <-waits; code != 7 {
		t.Errorf("exec that waited: exit code %d", code)
	}
	b.do("kill", "c", "TERM")
	b.ends(pid)
	if s := b.state("c"); s.Status != specs.StateStopped || s.Pid != 0 {
		t.Errorf("stopped: %+v", s)
	}
	b.do("delete", "c")
	if _, stderr, code := b.try("state", "c"); code != 1 || !strings.Contains(stderr, "does not exist") {
		t.Errorf("state after delete: %d %s", code, stderr)
	}
	b.do("delete", "--force", "c")
}

// run waits, and its exit code is the process's.
func TestRun(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		out    string
		change func(*specs.Spec)
	}{
		{name: "success", args: []string{"echo", "hello"}, out: "hello\n"},
		{name: "exit code", args: []string{"sh", "-c", "echo out; exit 7"}, code: 7, out: "out\n"},
		{name: "signal", args: []string{"sh", "-c", "kill -9 $$; sleep 9"}, code: 137, change: func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[1:] // the first process of a PID namespace cannot kill itself
		}},
		{name: "input", args: []string{"cat"}, out: "from us"},
		{name: "hostname", args: []string{"hostname"}, out: "inside\n", change: func(s *specs.Spec) { s.Hostname = "inside" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, tt.change, tt.args...)
			out, stderr, code := b.feed("from us", "run", "-b", b.bundle, "c")
			if code != tt.code || out != tt.out || stderr != "" {
				t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
			}
		})
	}
	t.Run("signals are passed on", func(t *testing.T) {
		t.Parallel()
		b := newBox(t, nil, "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")
		c := b.command("run", "-b", b.bundle, "c")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Error(err)
		}
		if err := c.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		c.Wait()
		if code := c.ProcessState.ExitCode(); code != 5 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("a signal while it is made takes it back", func(t *testing.T) {
		t.Parallel()
		said := filepath.Join(t.TempDir(), "said")
		if err := unix.Mkfifo(said, 0o600); err != nil {
			t.Fatal(err)
		}
		b := newBox(t, func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/busybox", Args: []string{"sh", "-c", "echo >" + said + "; sleep 60"}}}}
		}, "true")
		c := b.command("run", "-b", b.bundle, "c")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(said); err != nil { // the hook runs
			t.Error(err)
		}
		if err := c.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		c.Wait() // what is left the box complains of
		if code := c.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("keep", func(t *testing.T) {
		t.Parallel()
		b := newBox(t, nil, "true")
		b.do("run", "--keep", "-b", b.bundle, "c")
		if got := b.status("c"); got != specs.StateStopped {
			t.Error(got)
		}
		b.do("delete", "c")
	})
	t.Run("preserved descriptors", func(t *testing.T) {
		t.Parallel()
		b := newBox(t, nil, "sh", "-c", "cat <&3")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, "passed")
		w.Close()
		c := b.command("run", "--preserve-fds", "1", "-b", b.bundle, "c")
		c.ExtraFiles = []*os.File{r}
		out, err := c.Output()
		r.Close()
		if err != nil || string(out) != "passed" {
			t.Errorf("%q, %v", out, err)
		}
	})
}

// running returns a box with a container "c" that goes on until it is killed.
func running(t testing.TB, change func(*specs.Spec)) (b *box, pid int) {
	t.Helper()
	b = newBox(t, change, "sleep", "1000")
	pidFile := filepath.Join(t.TempDir(), "pid")
	b.do("run", "--detach", "--pid-file", pidFile, "-b", b.bundle, "c")
	t.Cleanup(func() { b.do("delete", "--force", "c") })
	return b, b.pidOf(pidFile)
}

func TestExec(t *testing.T) {
	t.Parallel()
	b, _ := running(t, nil)
	process := filepath.Join(t.TempDir(), "process.json")
	text, err := json.Marshal(specs.Process{Args: []string{"sh", "-c", "id -u; pwd; echo $X"}, Cwd: "/tmp", Env: []string{"PATH=/bin", "X=y"}, User: specs.User{UID: 7, GID: 7}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(process, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		out  string
		code int
		err  string
	}{
		{"command", []string{"c", "echo", "-n", "hi"}, "hi", 0, ""},
		{"exit code", []string{"c", "sh", "-c", "exit 9"}, "", 9, ""},
		{"signal", []string{"c", "sh", "-c", "kill -15 $$"}, "", 143, ""},
		{"environment", []string{"-e", "A=1", "--env", "B=2", "c", "sh", "-c", "echo $A$B$HOME"}, "12/root\n", 0, ""},
		{"folder", []string{"--cwd", "/etc", "c", "sh", "-c", "pwd"}, "/etc\n", 0, ""},
		{"user", []string{"--user", "12:13", "c", "sh", "-c", "id -u; id -g"}, "12\n13\n", 0, ""},
		{"process", []string{"--process", process, "c"}, "7\n/tmp\ny\n", 0, ""},
		{"namespace", []string{"c", "sh", "-c", "kill -0 1 && readlink /proc/1/exe"}, "/bin/busybox\n", 0, ""},
		{"no such program", []string{"c", "nothing"}, "", 255, "nothing"},
		{"no such container", []string{"x", "true"}, "", 255, "does not exist"},
		{"no command", []string{"c"}, "", 255, "name a command"},
		{"groups", []string{"--additional-gids", "7", "-g", "8", "c", "id", "-G"}, "0 7 8\n", 0, ""},
		{"label", []string{"--process-label", "x", "c", "true"}, "", 255, "no SELinux"},
		{"profile", []string{"--apparmor", "x", "c", "true"}, "", 255, "AppArmor"}, // there is none, or none of that name
		{"bad user", []string{"--user", "root", "c", "true"}, "", 255, "uid[:gid]"},
		{"terminal without socket", []string{"--tty", "--detach", "c", "true"}, "", 255, "console socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, stderr, code := b.try(append([]string{"exec"}, tt.args...)...)
			if code != tt.code || out != tt.out || !strings.Contains(stderr, tt.err) || tt.err == "" && stderr != "" {
				t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
			}
		})
	}
	t.Run("detached", func(t *testing.T) {
		pidFile := filepath.Join(t.TempDir(), "pid")
		b.do("exec", "--detach", "--pid-file", pidFile, "c", "sleep", "500")
		pid := b.pidOf(pidFile)
		args := read(t, fmt.Sprintf("/proc/%d/cmdline", pid))
		if args != "sleep\x00500\x00" {
			t.Errorf("%q", args)
		}
		var pids []int
		if err := json.Unmarshal([]byte(b.do("ps", "--format", "json", "c")), &pids); err != nil || len(pids) != 2 {
			t.Errorf("ps: %v, %v", pids, err)
		}
		if out := b.do("ps", "c"); !strings.HasPrefix(out, "UID") || !strings.Contains(out, "sleep 500") || !strings.Contains(out, "sleep 1000") {
			t.Errorf("ps: %s", out)
		}
		b.do("kill", "--all", "c", "KILL")
		b.ends(pid)
	})
}

// A terminal's master is sent to a socket, or connected to our own streams in the foreground.
func TestTerminal(t *testing.T) {
	t.Parallel()
	terminal := func(s *specs.Spec) {
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 90, Height: 30}
	}
	t.Run("create", func(t *testing.T) {
		t.Parallel()
		b := newBox(t, terminal, "sh", "-c", "stty size; tty; read x; echo got $x")
		master := sentTo(t, func(socket string) { b.do("create", "--console-socket", socket, "-b", b.bundle, "c") })
		b.do("start", "c")
		if got := until(t, master, "/dev/pts/0"); !strings.Contains(got, "30 90") {
			t.Errorf("%q", got)
		}
		fmt.Fprintln(master, "typed")
		until(t, master, "got typed")
		b.do("delete", "--force", "c")
	})
	t.Run("exec", func(t *testing.T) {
		t.Parallel()
		b, _ := running(t, nil)
		master := sentTo(t, func(socket string) {
			b.do("exec", "--tty", "--detach", "--console-socket", socket, "c", "sh", "-c", "tty; read x; echo got $x")
		})
		until(t, master, "/dev/pts/")
		fmt.Fprintln(master, "typed")
		until(t, master, "got typed")
	})
	t.Run("run in the foreground", func(t *testing.T) {
		t.Parallel()
		b := newBox(t, terminal, "sh", "-c", "tty; read x; echo got $x; exit 4")
		out, stderr, code := b.feed("typed\n", "run", "-b", b.bundle, "c")
		if code != 4 || !strings.Contains(out, "/dev/pts/0") || !strings.Contains(out, "got typed") || stderr != "" {
			t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
		}
	})
	t.Run("exec in the foreground", func(t *testing.T) {
		t.Parallel()
		b, _ := running(t, nil)
		out, stderr, code := b.feed("typed\n", "exec", "--tty", "c", "sh", "-c", "read x; echo got $x; exit 6")
		if code != 6 || !strings.Contains(out, "got typed") || stderr != "" {
			t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
		}
	})
}

// sentTo returns the terminal that f sends to a console socket.
func sentTo(t testing.TB, f func(socket string)) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f(path)
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_, fds, err := linux.ReceiveMessage(int(raw.Fd()), make([]byte, 64))
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fds[0]), "terminal")
	if err := master.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() { master.Close() })
	return master
}

// until reads until text has come.
func until(t testing.TB, r io.Reader, text string) string {
	t.Helper()
	var all bytes.Buffer
	buf := make([]byte, 256)
	for !strings.Contains(all.String(), text) {
		n, err := r.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q, wanted %q", err, all.String(), text)
		}
	}
	return all.String()
}
