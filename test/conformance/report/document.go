package report

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/yare-dev/yare/test/conformance/suite"
)

// Reason says why tests do not pass: a line "CLASS /PATTERN/: text" of reasons.txt. CLASS is "ours", "environment", or
// "empty" for tests that end well without having tested anything.
type Reason struct {
	Class   string
	Pattern *regexp.Regexp
	Text    string
}

var reasonLine = regexp.MustCompile(`^(ours|environment|empty) /(.+)/: (.+)$`)

// ReadReasons reads the file at path.
func ReadReasons(path string) ([]Reason, error) {
	lines, err := suite.ReadLines(path)
	if err != nil {
		return nil, fmt.Errorf("read reasons: %w", err)
	}
	var all []Reason
	for _, line := range lines {
		m := reasonLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("read reasons: not of the form \"ours /pattern/: text\" or \"environment ...\": %q", line)
		}
		p, err := regexp.Compile(m[2])
		if err != nil {
			return nil, fmt.Errorf("read reasons: %w", err)
		}
		all = append(all, Reason{m[1], p, m[3]})
	}
	return all, nil
}

// Discount turns what passed without having tested anything into skipped.
func Discount(rs []suite.Result, reasons []Reason) {
	for i := range rs {
		for _, x := range reasons {
			if rs[i].Outcome == suite.Passed && x.Class == emptyClass && x.Pattern.MatchString(rs[i].Name) {
				rs[i].Outcome, rs[i].Message = suite.Skipped, x.Text
			}
		}
	}
}

const emptyClass = "empty"

// The part of the document that is kept by the command; what stands before and after is written by people.
const (
	docBegin = "<!-- kept by make conformance-accept: begin -->"
	docEnd   = "<!-- kept by make conformance-accept: end -->"
)

// UpdateDocument brings the kept part of the document at path up to a run: every test of names has a line, those that
// the run did not include keep theirs.
func UpdateDocument(path string, names []string, run *Run, reasons []Reason) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	before, rest, ok := strings.Cut(string(old), docBegin)
	kept, after, ok2 := strings.Cut(rest, docEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the lines %q and %q", path, docBegin, docEnd)
	}
	text := before + docBegin + "\n" + render(names, kept, run, reasons) + docEnd + after
	return os.WriteFile(path, []byte(text), 0o644)
}

// lastFull begins the line that tells of the last run of most of the suite. Results of smaller runs are newer.
const lastFull = "The last run of most of the tests: "

var oldHead = regexp.MustCompile(`(?m)^` + lastFull + `.*$`)

// render is the kept part after a run.
func render(names []string, kept string, run *Run, reasons []Reason) string {
	latest := parseRows(kept)
	for _, r := range run.Results {
		if r.Outcome == suite.NotRun {
			if _, ok := latest[r.Name]; ok {
				continue
			}
		}
		latest[r.Name] = suite.Result{Name: r.Name, Outcome: r.Outcome, Time: r.Time, Message: why(r, reasons)}
	}
	all := make([]suite.Result, 0, len(names))
	for _, n := range names {
		all = append(all, cmp.Or(latest[n], suite.Result{Name: n, Outcome: suite.NotRun, Message: "in no run yet"}))
	}
	var b strings.Builder
	head := fmt.Sprintf(lastFull+"%s, Yare %s, %d tests in %s with %d processes.",
		run.Began.UTC().Format("2006-01-02 15:04 MST"), run.Version, len(run.Results), run.Took.Round(time.Second), run.Procs)
	if old := oldHead.FindString(kept); old != "" && 2*len(run.Results) < len(names) {
		head = old
	}
	fmt.Fprintf(&b, "\n%s\n\n", head)
	b.WriteString("| area | tests | passed | failed | skipped | not run |\n|---|---|---|---|---|---|\n")
	areas := byArea(all)
	total := tally{count: map[suite.Outcome]int{}}
	for _, name := range slices.Sorted(maps.Keys(areas)) {
		writeArea(&b, name, areas[name])
		for o, n := range areas[name].count {
			total.count[o] += n
		}
	}
	writeArea(&b, "all", total)
	b.WriteString("\n## Every test\n\n| result | s | test | reason |\n|---|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| %s | %.1f | %s | %s |\n", r.Outcome, r.Time.Seconds(), escape(r.Name), escape(r.Message))
	}
	b.WriteString("\n")
	return b.String()
}

func writeArea(b *strings.Builder, name string, t tally) {
	c := t.count
	sum := c[suite.Passed] + c[suite.Failed] + c[suite.Skipped] + c[suite.NotRun]
	fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d |\n", name, sum, c[suite.Passed], c[suite.Failed], c[suite.Skipped], c[suite.NotRun])
}

// why is the reason that people have found for a test that does not pass, or else the error itself.
func why(r suite.Result, reasons []Reason) string {
	if r.Outcome == suite.Passed {
		return ""
	}
	for _, x := range reasons {
		if (x.Class != emptyClass || r.Outcome == suite.Skipped) && x.Pattern.MatchString(r.Name+" "+r.Message) {
			return x.Class + ": " + x.Text
		}
	}
	return Brief(r.Message)
}

var row = regexp.MustCompile(`(?m)^\| (passed|failed|skipped|not run) \| ([0-9.]+) \| (.*?[^\\]) \| (.*) \|$`)

// parseRows reads back what render wrote.
func parseRows(kept string) map[string]suite.Result {
	found := map[string]suite.Result{}
	for _, m := range row.FindAllStringSubmatch(kept, -1) {
		var seconds float64
		// The pattern admits digits and points; what is no number counts as none.
		_, _ = fmt.Sscanf(m[2], "%g", &seconds)
		name := unescape.Replace(m[3])
		found[name] = suite.Result{
			Name: name, Outcome: suite.Outcome(m[1]), Time: time.Duration(seconds * float64(time.Second)), Message: unescape.Replace(m[4]),
		}
	}
	return found
}

var (
	escaper  = strings.NewReplacer("|", `\|`, "<", "&lt;", "&", "&amp;", "\n", " ")
	unescape = strings.NewReplacer(`\|`, "|", "&lt;", "<", "&amp;", "&")
)

func escape(s string) string { return escaper.Replace(s) }
