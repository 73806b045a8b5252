package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func logCases() []Case {
	return []Case{
		{"a line has a time, a stream, a tag and its text", 0, logLine},
		{"output and errors are told apart", 0, logStreams},
		{"lines are in their order, and so are times", 0, logOrder},
		{"a line without an end is whole at the end", 0, logUnended},
		{"an empty line is a line", 0, logEmpty},
		{"a long line comes in parts", 0, logLong},
		{"bytes are bytes", 0, logBytes},
		{"a terminal's output is output", 0, logTerminal},
		{"the log may be in a folder", 0, logFolder},
		{"no path is no log", 0, logNone},
		{"much is whole", 0, logMuch},
		{"after a rotation it goes on in a new file", 0, logReopen},
		{"a log that is reopened in place goes on", 0, logReopenSame},
		{"a container that is not there is not found", 0, logReopenUnknown},
		{"of an exited container no new file is made with an error", 0, logReopenExited},
		{"a line is there while the program runs", 0, logNow},
	}
}

func (t *T) logged(lines ...string) []record {
	t.Helper()
	_, log := t.finish(t.any(), t.script(lines...))
	return log
}

func logLine(t *T) {
	if l := t.logged("echo a text  with spaces"); len(l) != 1 || l[0].stream != "stdout" || l[0].tags != "F" || l[0].text != "a text with spaces" || l[0].at.IsZero() {
		t.Errorf("%v", l)
	}
}

func logStreams(t *T) {
	l := t.logged("echo out; echo err >&2")
	t.same("output", said(l, "stdout"), "out\n")
	t.same("errors", said(l, "stderr"), "err\n")
}

func logOrder(t *T) {
	l := t.logged("for i in 1 2 3 4 5 6 7 8 9; do echo $i; done")
	for i, r := range l {
		if r.text != fmt.Sprint(i+1) || i > 0 && r.at.Before(l[i-1].at) {
			t.Errorf("%v", l)
		}
	}
}

// The last line has no end: a reader joins it with none.
func logUnended(t *T) {
	l := t.logged("printf 'one\\ntwo'")
	if len(l) != 2 || l[1].text != "two" || l[0].tags != "F" {
		t.Errorf("%v", l)
	}
}

func logEmpty(t *T) {
	if l := t.logged("echo; echo x"); len(l) != 2 || l[0].text != "" || l[0].tags != "F" {
		t.Errorf("%v", l)
	}
}

func logLong(t *T) {
	l := t.logged("head -c 100000 /dev/zero | tr '\\0' x; echo")
	if len(l) < 2 || said(l, "stdout") != strings.Repeat("x", 100000)+"\n" {
		t.Fatalf("%d parts", len(l))
	}
	for i, r := range l {
		if want := map[bool]string{true: "F", false: "P"}[i == len(l)-1]; r.tags != want || len(r.text) > 1<<15 {
			t.Errorf("part %d of %d: %s, %d bytes", i, len(l), r.tags, len(r.text))
		}
	}
}

func logBytes(t *T) {
	t.same("text", said(t.logged(`printf '\377\001\t\n'`), "stdout"), "\xff\x01\t\n")
}

func logTerminal(t *T) {
	c := t.script("echo out; echo err >&2")
	c.Tty = true
	_, l := t.finish(t.any(), c)
	t.same("output", said(l, "stdout"), "out\nerr\n")
	t.same("errors", said(l, "stderr"), "")
}

func logFolder(t *T) {
	pod, c := t.any(), t.script("echo here")
	c.LogPath = c.Metadata.Name + "/0.log"
	if err := os.MkdirAll(filepath.Dir(logPath(pod, c)), 0o755); err != nil { // as the kubelet does
		t.Fatal(err)
	}
	t.prints("here\n", pod, c)
}

func logNone(t *T) {
	c := t.script("echo nowhere; exit 3")
	c.LogPath = ""
	pod := t.own()
	id := t.run(pod, c)
	t.wantCode(id, 3)
	if left, err := os.ReadDir(pod.config.LogDirectory); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func logMuch(t *T) {
	pod, c := t.any(), t.script("seq 1 20000; seq 1 20000 >&2; exec sleep 100000") // whose end is no matter
	t.run(pod, c)
	t.eventually("the whole log", func() bool {
		l := t.readLog(logPath(pod, c))
		return strings.Count(said(l, "stdout"), "\n") == 20000 && strings.Count(said(l, "stderr"), "\n") == 20000
	})
}

// teller prints a line whenever a file is there: /tmp/1, /tmp/2.
func (t *T) teller(pod pods) (id, log string) {
	t.Helper()
	c := t.script("for i in 1 2; do until test -e /tmp/$i; do sleep 0.01; done; echo line $i; done; exec sleep 100000")
	return t.run(pod, c), logPath(pod, c)
}

func (t *T) tell(id string, n int, log string) {
	t.Helper()
	t.exec(id, "touch", fmt.Sprint("/tmp/", n))
	t.eventually(fmt.Sprint("line ", n), func() bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.HasSuffix(string(text), fmt.Sprintf(" line %d\n", n))
	})
}

func (t *T) reopen(id string) {
	t.Helper()
	if _, err := t.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatalf("reopen: %v", err)
	}
}

func logReopen(t *T) {
	id, log := t.teller(t.any())
	t.tell(id, 1, log)
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	t.reopen(id)
	t.tell(id, 2, log)
	t.same("the old log", said(t.readLog(log+".1"), "stdout"), "line 1\n")
	t.same("the new log", said(t.readLog(log), "stdout"), "line 2\n")
}

func logReopenSame(t *T) {
	id, log := t.teller(t.any())
	t.tell(id, 1, log)
	t.reopen(id)
	t.tell(id, 2, log)
	t.same("the log", said(t.readLog(log), "stdout"), "line 1\nline 2\n")
}

func logReopenUnknown(t *T) {
	_, err := t.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: "0123456789abcdef"})
	t.refused("reopening of nothing", err, codes.NotFound)
}

func logReopenExited(t *T) {
	pod, c := t.any(), t.script("echo here")
	id := t.run(pod, c)
	t.exited(id)
	if err := os.Remove(logPath(pod, c)); err != nil {
		t.Fatal(err)
	}
	_, err := t.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	if _, e := os.Stat(logPath(pod, c)); err != nil && e == nil {
		t.Errorf("a file in spite of %v", err)
	}
}

func logNow(t *T) {
	id, log := t.teller(t.any())
	t.tell(id, 1, log)
	if s := t.status(id); s.State != running {
		t.Errorf("%v", s)
	}
}
