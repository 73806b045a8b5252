package shim_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/shim"
)

// testBroken has a runtime do wrong when it creates: an error says so, nothing of it is left, and nobody else is touched.
func testBroken(t *testing.T) {
	for name, c := range map[string]struct {
		script string // runs in place of create; $pid is the file, $log the other, $stranger a process that is not the container's
		want   string // in the error
	}{
		"no pid file":     {`exit 0`, "pid: no such file"},
		"process 1":       {`echo 1 >$pid`, "no process number"},
		"a group":         {`echo -$stranger >$pid`, "no process number"},
		"a stranger":      {`echo $stranger >$pid`, "no child"},
		"the shim":        {`echo $PPID >$pid`, "no child"},
		"itself":          {`echo $$ >$pid`, "no such process"},
		"a fifo":          {`mkfifo $pid`, "no process number"},
		"a folder":        {`mkdir $pid`, "is a directory"},
		"an endless file": {`ln -s /dev/zero $pid`, "no process number"},
		"log fifo":        {`rm $log; mkfifo $log; exit 1`, "exit code 1"},
		"log endless":     {`rm $log; ln -s /dev/zero $log; exit 1`, "exit code 1"},
		"log long":        {`{ printf '{"level":"error","msg":"'; head -c 3000000 /dev/zero | tr '\0' x; printf '"}\n'; } >$log; exit 1`, "xxx"},
		"left behind":     {`setsid sleep 1000 & exit 1`, "exit code 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			stranger := exec.Command("sleep", "1000")
			if err := stranger.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
					t.Errorf("stranger: %v", err)
				}
				stranger.Process.Kill()
				if err := stranger.Wait(); err.Error() != "signal: killed" {
					t.Error(err)
				}
			}()
			s.wrap(fmt.Sprintf("stranger=%d\n[ $verb = create ] && { %s\nexit; }", stranger.Process.Pid, c.script))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := s.Create(ctx, shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000"), Runtime: s.runtime})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %.300v", err)
			}
			if err != nil && len(err.Error()) > 5000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if list, err := s.Containers(ctx); err != nil || len(list) != 0 {
				t.Errorf("left behind: %+v, %v", list, err)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "c")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("state left behind: %v", err)
			}
		})
	}
}

// testBrokenLater has a runtime do wrong with a container that it has made: nothing is left all the same.
func testBrokenLater(t *testing.T) {
	for name, c := range map[string]struct {
		script string            // runs before each command
		later  func(path string) // when the container runs
		exec   string            // in its error
	}{
		"removed":               {later: func(path string) { os.Remove(path) }, exec: "no such file"},
		"a folder":              {later: func(path string) { os.Remove(path); os.Mkdir(path, 0o755) }, exec: "permission denied"},
		"no kill":               {script: `[ $verb = kill ] && exit 1`},
		"kill does nothing":     {script: `[ $verb = kill ] && exit 0`},
		"forgets":               {script: `[ $verb = delete ] && echo '{"level":"error","msg":"container does not exist"}' >$log && exit 1`},
		"exec without process":  {script: `[ $verb = exec ] && exit 0`, exec: "no such file"},
		"exec of another":       {script: `[ $verb = exec ] && echo $PPID >$pid && exit 0`, exec: "no child"},
		"exec of the container": {script: `[ $verb = exec ] && cat "$bundle/pid" >$pid && exit 0`, exec: "no child"},
		"exec hangs":            {script: `[ $verb = exec ] && exec sleep 1000`, exec: "deadline exceeded"},
		"exec hangs in a child": {script: `[ $verb = exec ] && sleep 1000`, exec: "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			s.wrap(c.script)
			s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sleep", "1000")})
			if err := s.Start(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			if c.later != nil {
				c.later(s.runtime.Path)
			}
			process := *s.spec("c", "true").Process
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, _, _, err := s.ExecSync(ctx, "c", &process, 0, 1000)
			if c.exec == "" && err != nil || c.exec != "" && (err == nil || !strings.Contains(err.Error(), c.exec)) {
				t.Errorf("exec: %.300v, want %s", err, c.exec)
			}
			if status, _, err := s.end("c"); err != nil || status.Code != 137 {
				t.Errorf("got %+v, %v", status, err)
			}
		})
	}
}

// consoleEnv names what TestSendConsole sends, and to where.
const consoleEnv = "SHIM_TEST_CONSOLE"

// consoles are what a runtime may send in place of a terminal: how many descriptors and bytes.
var consoles = map[string]struct {
	fds, bytes int
}{
	"leaves": {0, 0}, "no descriptor": {0, 1}, "two": {2, 1},
	"a hundred": {100, 1}, "a flood": {0, 100_000},
}

// TestSendConsole is the runtime that testNoTerminal needs.
func TestSendConsole(t *testing.T) {
	what, path, _ := strings.Cut(os.Getenv(consoleEnv), "@")
	if what == "" {
		return
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Connect(sock, &unix.SockaddrUnix{Name: path})
	}
	if c := consoles[what]; err == nil && c.bytes > 0 {
		err = unix.Sendmsg(sock, make([]byte, c.bytes), unix.UnixRights(make([]int, c.fds)...), nil, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// testNoTerminal has a runtime send another thing than a terminal, or nothing: its process goes.
func testNoTerminal(t *testing.T) {
	try := func(name, script, want string) {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			s.wrap("[ $verb = create ] && { sleep 1000 & echo $! >$pid; " + script + "; exit 0; }")
			spec := s.spec("c", "sleep", "1000")
			spec.Process.Terminal = true
			_, err := s.Create(t.Context(), shim.CreateRequest{ID: "c", Spec: spec, Runtime: s.runtime})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
			eventually(t, func() bool { return len(children(t, s.Pid())) == 0 })
			if list, err := s.Containers(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("left behind: %+v, %v", list, err)
			}
		})
	}
	try("nothing", "true", "accept terminal")
	for name := range consoles {
		try(name, fmt.Sprintf("%s='%s@'$console %s -test.run '^TestSendConsole$'", consoleEnv, name, os.Args[0]), "has sent no terminal")
	}
}

// wrap puts a script before the runtime.
func (s *sandbox) wrap(script string) {
	s.Helper()
	program := filepath.Join(s.TempDir(), "wrapped")
	script = fmt.Sprintf(`#!/bin/sh
pid=; log=; verb=; console=; before=; bundle=
for word; do
	case $before in --pid-file) pid=$word;; --log) log=$word;; --root) bundle=${word%%/root};; --console-socket) console=$word;; json) [ $verb ] || verb=$word;; esac
	before=$word
done
%s
exec %s "$@"
`, script, s.runtime.Path)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		s.Fatal(err)
	}
	s.runtime = &shim.Runtime{Path: program}
}
