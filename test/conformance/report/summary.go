// Package report says what a run of the suite was: a summary for people, the ratchet that keeps what has passed, and
// the table in doc/conformance.md.
package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/yare-dev/yare/test/conformance/suite"
)

// Run is what is kept of a run, for the accept command.
type Run struct {
	Began   time.Time      `json:"began"`
	Took    time.Duration  `json:"took"`
	Version string         `json:"version"`
	Foreign bool           `json:"foreign,omitempty"` // of a cluster that is not ours
	Beside  bool           `json:"beside,omitempty"`  // of tests that are not of the suite
	Procs   int            `json:"procs"`
	Results []suite.Result `json:"results"`
}

// Area is the special interest group that a test names first.
func Area(name string) string {
	if rest, ok := strings.CutPrefix(name, "["); ok {
		if area, _, ok := strings.Cut(rest, "]"); ok {
			return area
		}
	}
	return "other"
}

// tally counts the outcomes of an area.
type tally struct {
	count map[suite.Outcome]int
	took  time.Duration
}

func byArea(rs []suite.Result) map[string]tally {
	areas := map[string]tally{}
	for _, r := range rs {
		t, ok := areas[Area(r.Name)]
		if !ok {
			t.count = map[suite.Outcome]int{}
		}
		t.count[r.Outcome]++
		t.took += r.Time
		areas[Area(r.Name)] = t
	}
	return areas
}

// Summary writes the table by area, and the first error of each test that failed, most frequent errors first.
func Summary(out io.Writer, run *Run) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "area\tpassed\tfailed\tskipped\tnot run\ttime\t")
	row := func(name string, a tally) {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t\n", name, a.count[suite.Passed], a.count[suite.Failed],
			a.count[suite.Skipped], a.count[suite.NotRun], a.took.Round(time.Second))
	}
	areas := byArea(run.Results)
	for _, name := range slices.Sorted(maps.Keys(areas)) {
		row(name, areas[name])
	}
	all := tally{count: map[suite.Outcome]int{}, took: run.Took}
	for _, r := range run.Results {
		all.count[r.Outcome]++
	}
	row("all", all)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range groups(run.Results) {
		fmt.Fprintf(out, "\n%d x %s\n", len(g.tests), g.message)
		for _, name := range g.tests {
			fmt.Fprintf(out, "    %s\n", name)
		}
	}
	return nil
}

// group is the tests of one message.
type group struct {
	message string
	tests   []string
}

func groups(rs []suite.Result) []group {
	tests := map[string][]string{}
	for _, r := range rs {
		if r.Outcome != suite.Passed {
			m := string(r.Outcome) + ": " + Brief(r.Message)
			tests[m] = append(tests[m], r.Name)
		}
	}
	var out []group
	for m, names := range tests {
		out = append(out, group{m, slices.Sorted(slices.Values(names))})
	}
	slices.SortFunc(out, func(a, b group) int {
		return cmp.Or(cmp.Compare(len(b.tests), len(a.tests)), cmp.Compare(a.message, b.message))
	})
	return out
}

const briefly = 300

// Brief is the part of an error that fits on a line. It ends where gomega begins to dump the fields of an object, and what
// differs from run to run is left out, so that equal errors look equal.
func Brief(message string) string {
	var kept []string
	for line := range strings.Lines(message) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "{") || strings.HasSuffix(line, "{") && len(kept) > 0 {
			break
		}
		if line == "" || typeLine.MatchString(line) {
			continue
		}
		kept = append(kept, line)
	}
	text := strings.ToValidUTF8(strings.Join(kept, " "), "")
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.by)
	}
	if r := []rune(text); len(r) > briefly {
		text = string(r[:briefly]) + " ..."
	}
	return cmp.Or(text, "no message")
}

// typeLine is how gomega heads the dump of a value.
var typeLine = regexp.MustCompile(`^<[^>]*>: ?\{?$`)

var varying = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`0x[0-9a-f]{6,}`), "0x"},
	{regexp.MustCompile(`-[0-9]{2,5}\b`), "-N"},
	{regexp.MustCompile(`\([0-9]{4,6}\)`), "(N)"},
	{regexp.MustCompile(`\b([0-9]+)\.[0-9]+s\b`), "${1}s"},
	{regexp.MustCompile(`\b127\.0\.0\.1:[0-9]+`), "127.0.0.1:N"},
}
