package report

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/test/conformance/suite"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; rewrite it with -update and read the difference. Got:\n%s", path, got)
	}
}

func sample() *Run {
	return &Run{
		Began: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Took: 90 * time.Second, Version: "v1", Procs: 4,
		Results: []suite.Result{
			{Name: "[sig-node] Pods should a [Conformance]", Outcome: suite.Passed, Time: 2 * time.Second},
			{Name: "[sig-node] Pods should b [Conformance]", Outcome: suite.Failed, Time: 40 * time.Second,
				Message: "waiting for a | b\n    <*errors.errorString | 0xc000>: {\n        s: \"\",\n    }\nto be <true>"},
			{Name: "[sig-node] Pods should c [Conformance]", Outcome: suite.Failed, Time: time.Second,
				Message: "waiting for a | b\n    <*errors.errorString | 0xc111>: {\n        s: \"\",\n    }\nto be <true>"},
			{Name: "[sig-apps] Job should d [Conformance]", Outcome: suite.Skipped, Message: "needs two nodes"},
			{Name: "[sig-apps] Job should e [Serial] [Conformance]", Outcome: suite.NotRun, Message: "the run ended before it"},
		},
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := Summary(&b, sample()); err != nil {
		t.Fatal(err)
	}
	golden(t, "summary.txt", b.String())
}

// A document is brought up to one run, then to a second one that includes only some tests: the others keep their lines.
func TestDocument(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("# Title\n"+docBegin+"\n"+docEnd+"\nby hand\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	reasonsFile := filepath.Join(t.TempDir(), "reasons.txt")
	if err := os.WriteFile(reasonsFile, []byte("# why\nenvironment /two nodes/: one node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	reasons, err := ReadReasons(reasonsFile)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range sample().Results {
		names = append(names, r.Name)
	}
	names = append(names, "[sig-cli] never run [Conformance]")
	second := sample()
	second.Results = []suite.Result{{Name: names[2], Outcome: suite.Passed, Time: 3 * time.Second}, {Name: names[0], Outcome: suite.NotRun}}
	for _, run := range []*Run{sample(), second} {
		if err := UpdateDocument(path, names, run, reasons); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "document.md", string(text))
}

func TestDiscount(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "reasons.txt")
	if err := os.WriteFile(path, []byte("empty /should a/: returns early\nenvironment /should b/: no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	reasons, err := ReadReasons(path)
	if err != nil {
		t.Fatal(err)
	}
	rs := sample().Results
	rs[1].Outcome = suite.Passed
	Discount(rs, reasons)
	if rs[0].Outcome != suite.Skipped || rs[0].Message != "returns early" || rs[1].Outcome != suite.Passed {
		t.Errorf("got %+v", rs[:2])
	}
}

func TestReasonsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"theirs /a/: b", "ours /(/: b", "ours a: b"} {
		path := filepath.Join(t.TempDir(), "reasons.txt")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadReasons(path); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestRatchet(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "passing.txt")
	r, err := ReadRatchet(path)
	if err != nil {
		t.Fatal(err)
	}
	rs := sample().Results
	if lost := r.Lost(rs); len(lost) != 0 {
		t.Errorf("an empty ratchet has lost %v", lost)
	}
	if err := r.Add(r.New(rs)); err != nil {
		t.Fatal(err)
	}
	if r, err = ReadRatchet(path); err != nil {
		t.Fatal(err)
	}
	if !r.Has(rs[0].Name) || r.Has(rs[1].Name) || len(r.New(rs)) != 0 {
		t.Errorf("after one run the ratchet is %v", r.names)
	}
	for _, o := range []suite.Outcome{suite.Failed, suite.Skipped, suite.NotRun} {
		rs[0].Outcome = o
		if lost := r.Lost(rs); len(lost) != 1 || lost[0].Name != rs[0].Name {
			t.Errorf("a test that is now %s: lost %v", o, lost)
		}
	}
}

func TestBrief(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", "no message"},
		{"one\n\n  two  \n", "one two"},
		{"Timed out after 120.001s.\nin namespace pods-4711 of 1c4fbf8b-6fd6-4c1d-9a77-f3d0c4e0a001\n", "Timed out after 120s. in namespace pods-N of UID"},
		{"wrong:\n    <*errors.StatusError | 0xc000123456>: \n    not found (post x)\n    {\n        ErrStatus: {\n", "wrong: not found (post x)"},
		{strings.Repeat("é", 400), strings.Repeat("é", 300) + " ..."},
	} {
		if got := Brief(c.in); got != c.want {
			t.Errorf("Brief(%.20q) = %q, want %q", c.in, got, c.want)
		}
	}
}
