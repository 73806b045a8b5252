package suite

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stand-in programs take ginkgo's place: what is tested is what becomes of a report, or of none.
func ginkgo(t *testing.T, script string) (*Program, Options) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "ginkgo")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Program{Tests: "/e2e.test", Ginkgo: path}, Options{Kubeconfig: "/k", Kubectl: "/kubectl", Procs: 2, Dir: dir, Log: t.Output(), Grace: 100 * time.Millisecond}
}

const (
	passing = "[sig-a] passes [Conformance]"
	failing = "[sig-a] fails [Conformance]"
	skipped = "[sig-a] skips [Conformance]"
	serial  = "[sig-a] alone [Serial] [Conformance]"
)

const reportText = `[{"SpecReports": [
 {"LeafNodeType": "It", "LeafNodeText": "[sig-a] passes [Conformance]", "State": "passed", "RunTime": 1000000000},
 {"LeafNodeType": "It", "LeafNodeText": "[sig-a] fails [Conformance]", "State": "timedout", "Failure": {"Message": "too late"}},
 {"LeafNodeType": "It", "LeafNodeText": "[sig-a] skips [Conformance]", "State": "skipped", "Failure": {"Message": "needs more"}},
 {"LeafNodeType": "It", "LeafNodeText": "[sig-a] not chosen", "State": "skipped"}]}]`

func TestRun(t *testing.T) {
	t.Parallel()
	p, o := ginkgo(t, `case "$*" in *serial.json*) echo '[]' >serial.json ;; *) cat >parallel.json <<'X'
`+reportText+"\nX\nesac\nexit 1\n")
	rs, err := p.Run(t.Context(), o, []string{serial, passing, failing, skipped})
	if err != nil {
		t.Fatal(err)
	}
	want := []Result{
		{Name: serial, Outcome: NotRun, Message: "the run ended before it"}, {Name: passing, Outcome: Passed, Time: time.Second},
		{Name: failing, Outcome: Failed, Message: "too late"}, {Name: skipped, Outcome: Skipped, Message: "needs more"},
	}
	for i := range want {
		if rs[i] != want[i] {
			t.Errorf("got %+v, want %+v", rs[i], want[i])
		}
	}
}

func TestRunCannotJudge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, want string }{
		"no report": {"exit 2", "no test has a result"},
		"no suite": {`echo '[{"SpecReports":[{"LeafNodeType":"SynchronizedBeforeSuite","State":"failed","Failure":{"Message":"no node"}}]}]' >parallel.json`,
			"the suite could not begin: no node"},
	} {
		p, o := ginkgo(t, c.script)
		if _, err := p.Run(t.Context(), o, []string{passing}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// When the time is up, what hangs is ended with its children, and what has a result keeps it.
func TestRunEndsInTime(t *testing.T) {
	t.Parallel()
	p, o := ginkgo(t, "cat >parallel.json <<'X'\n"+reportText+"\nX\nsleep 1000 & echo $! >child; wait\n")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	rs, err := p.Run(ctx, o, []string{passing, serial})
	if err != nil {
		t.Fatal(err)
	}
	if rs[0].Outcome != Passed || rs[1].Outcome != NotRun {
		t.Errorf("got %+v", rs)
	}
	pid, err := os.ReadFile(filepath.Join(o.Dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	// It was sent its signal; the kernel takes a moment to end it.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the suite's child lives on: %s", state)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	p, o := ginkgo(t, "")
	line := strings.Join(p.arguments(t.Context(), o, "serial", 1, []string{"a [x]", "b."}), " ")
	for _, want := range []string{"--procs=1", `--focus=a \[x\]|b\.`, "--json-report=serial.json", "/e2e.test -- --kubeconfig=/k"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %q", want, line)
		}
	}
}

// A process that ended takes ginkgo's report with it; what was printed of each test still counts.
func TestRunWithoutReport(t *testing.T) {
	t.Parallel()
	p, o := ginkgo(t, `echo '[]' >parallel.json; cat <<'X'
------------------------------
• [1.5 seconds]
[sig-a] passes [Conformance] [sig-a, Conformance]
/a.go:1
------------------------------
• [FAILED] [0.1 seconds]
[sig-a] fails [BeforeEach] [Conformance] [sig-a, Conformance]
  Timeline >>
  In [It] not yet
  << Timeline

  [FAILED] not found
  at all
  In [It] at: /a.go:2
------------------------------
S [SKIPPED] [0.0 seconds]
[sig-a] skips [It] [Conformance] [sig-a, Conformance]
  << Timeline

  [SKIPPED] needs more
  In [It] at: /a.go:3
------------------------------
• [9.0 seconds]
[sig-a] not chosen [sig-a]
X
exit 2
`)
	lost := "[sig-a] took its process with it [Conformance]"
	rs, err := p.Run(t.Context(), o, []string{passing, failing, skipped, lost})
	if err != nil {
		t.Fatal(err)
	}
	want := []Result{
		{Name: passing, Outcome: Passed, Time: 1500 * time.Millisecond},
		{Name: failing, Outcome: Failed, Time: 100 * time.Millisecond, Message: "not found\n  at all"},
		{Name: skipped, Outcome: Skipped, Message: "needs more"},
		{Name: lost, Outcome: NotRun, Message: "the run ended before it"},
	}
	for i := range want {
		if rs[i] != want[i] {
			t.Errorf("got %+v, want %+v", rs[i], want[i])
		}
	}
}

// A mark counts once, wherever the writes cut it.
func TestProgress(t *testing.T) {
	t.Parallel()
	const text = "S•• [FAILED]\nx•S"
	for cut := range len(text) {
		var out bytes.Buffer
		p := &progress{out: &out, total: 9}
		for _, part := range []string{text[:cut], text[cut:]} {
			if n, err := p.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		if !strings.HasSuffix(out.String(), "3 of 9 tests\n") {
			t.Errorf("cut at %d: %q", cut, out.String())
		}
	}
}
