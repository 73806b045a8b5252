package critest

import (
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

func execSyncCases() []Case {
	return []Case{
		{"output and errors are told apart", 0, execOutput},
		{"the exit code is told", 0, execCode},
		{"a killed command's code is told", 0, execKilled},
		{"the environment is the container's", 0, execEnv},
		{"the folder is the container's", 0, execFolder},
		{"the namespaces are the container's", 0, execNamespaces},
		{"the limits are the container's", 0, execCgroup},
		{"the capabilities are the container's", 0, execCaps},
		{"there is nothing to read", 0, execStdin},
		{"much output is whole", 0, execMuch},
		{"more than 16 MiB is cut, and no error", 0, execTooMuch},
		{"more than 16 MiB of both streams is cut", 0, execTooMuchOfBoth},
		{"bytes are bytes", 0, execBytes},
		{"a command that outlives its time is killed", 0, execTimeout},
		{"a command that is quick enough is not", 0, execInTime},
		{"a program that is not there is an error", 0, execNoProgram},
		{"no command is an error", 0, execNoCommand},
		{"a container that is not there is not found", 0, execUnknown},
		{"a created container is refused", 0, execCreated},
		{"an exited container is refused", 0, execExited},
		{"many run at once", 0, execMany},
	}
}

func (t *T) execSync(id string, cmd ...string) *runtimeapi.ExecSyncResponse {
	t.Helper()
	r, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return r
}

func execOutput(t *T) {
	if r := t.execSync(t.sleeper(t.any()), "sh", "-c", "echo out; echo err >&2"); string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 0 {
		t.Errorf("%v", r)
	}
}

func execCode(t *T) {
	if r := t.execSync(t.sleeper(t.any()), "sh", "-c", "echo out; exit 200"); string(r.Stdout) != "out\n" || r.ExitCode != 200 {
		t.Errorf("%v", r)
	}
}

func execKilled(t *T) {
	if r := t.execSync(t.sleeper(t.any()), "sh", "-c", "kill -9 $$"); r.ExitCode != 137 {
		t.Errorf("%v", r)
	}
}

func execEnv(t *T) {
	id := t.sleeper(t.any(), func(c *containerConfig) { c.Envs = []*runtimeapi.KeyValue{variable("OWN", "value")} })
	t.wantExec(id, "yes value /root\n", "sh", "-c", "echo $IMAGE $OWN $HOME")
}

func execFolder(t *T) {
	t.wantExec(t.sleeper(t.any(), func(c *containerConfig) { c.WorkingDir = "/work" }), "/work\n", "pwd")
}

func execNamespaces(t *T) {
	id := t.sleeper(t.any())
	t.wantExec(id, "same\n", "sh", "-c", `for n in net ipc uts pid mnt; do test "$(readlink /proc/1/ns/$n)" = "$(readlink /proc/self/ns/$n)" || echo other $n; done; echo same`)
}

func execCgroup(t *T) {
	t.wantExec(t.sleeper(t.any()), "same\n", "sh", "-c", `test "$(cat /proc/1/cgroup)" = "$(cat /proc/self/cgroup)" && echo same`)
}

func execCaps(t *T) {
	id := t.sleeper(t.any(), func(c *containerConfig) { dropping("ALL")(security(c)) })
	t.wantExec(id, "0000000000000000\n", "awk", "/^CapEff:/ {print $2}", "/proc/self/status")
}

func execStdin(t *T) { t.wantExec(t.sleeper(t.any()), "end\n", "sh", "-c", "cat; echo end") }

func execMuch(t *T) {
	out, code := t.exec(t.sleeper(t.any()), "seq", "1", "200000")
	if lines := strings.Count(out, "\n"); lines != 200000 || !strings.HasSuffix(out, "\n200000\n") || code != 0 {
		t.Errorf("%d lines, code %d", lines, code)
	}
}

func execTooMuch(t *T) {
	t.cut("head -c 20000000 /dev/zero; exit 3")
}

func execTooMuchOfBoth(t *T) {
	t.cut("head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2; exit 3")
}

// cut runs a script that prints 20 MB. Of them come nearly all that fit into 16 MiB, the largest message of the kubelet's.
func (t *T) cut(script string) {
	t.Helper()
	r := t.execSync(t.sleeper(t.any()), "sh", "-c", script)
	if n := len(r.Stdout) + len(r.Stderr); n > 16<<20 || n < 15<<20 || r.ExitCode != 3 {
		t.Errorf("%d bytes, exit code %d", n, r.ExitCode)
	}
}

func execBytes(t *T) {
	t.wantExec(t.sleeper(t.any()), "\x00\xff\r\n\x01", "printf", `\000\377\r\n\001`)
}

func (t *T) timedExec(seconds int64, cmd ...string) error {
	t.Helper()
	_, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: t.sleeper(t.any()), Cmd: cmd, Timeout: seconds})
	return err
}

func execTimeout(t *T) {
	id := t.sleeper(t.any())
	_, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "98765"}, Timeout: 1})
	t.refused("a command that is too slow", err, codes.DeadlineExceeded)
	t.eventually("the command's end", func() bool {
		out, _ := t.exec(id, "sh", "-c", "ps | grep -c '[s]leep 98765'")
		return out == "0\n"
	})
}

func execInTime(t *T) {
	if err := t.timedExec(100, "true"); err != nil {
		t.Error(err)
	}
}

func execNoProgram(t *T) {
	t.refused("a program that is not there", t.timedExec(0, "/no/such/program"))
}
func execNoCommand(t *T) { t.refused("no command", t.timedExec(0)) }

func (t *T) execIn(id string) error {
	_, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	return err
}

func execUnknown(t *T) { t.refused("exec in nothing", t.execIn("0123456789abcdef"), codes.NotFound) }

func execCreated(t *T) {
	t.refused("exec in a created container", t.execIn(t.create(t.any(), t.config(forever()...))))
}

func execExited(t *T) {
	id := t.run(t.any(), t.config("true"))
	t.exited(id)
	t.refused("exec in an exited container", t.execIn(id))
}

func execMany(t *T) {
	id := t.sleeper(t.any())
	errs := make(chan error)
	for range 8 {
		go func() {
			r, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo x; exit 5"}})
			if err == nil && (string(r.Stdout) != "x\n" || r.ExitCode != 5) {
				t.Errorf("%v", r)
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Errorf("%v (%v)", err, cri.Code(err))
		}
	}
}
