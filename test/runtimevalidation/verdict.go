package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type outcome string

const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"
)

// verdict is how a program ended, and for one that did not pass the first thing that it says about it.
type verdict struct {
	outcome outcome
	why     string
}

// result is a program's for both runtimes.
type result struct {
	name       string
	ours, peer verdict
	again      int // how often ours ran again, alone
}

// tries is how often a program that is red runs again with nothing beside it before the run is. Some compare what a container's
// process wrote with what a hook wrote right after the process was executed; on a busy machine the hook may be faster.
const tries = 3

// races are programs whose outcome is decided by which of two things comes first, for any runtime. They are run and reported,
// but neither compared nor kept.
var races = map[string]string{
	"pidfile": "kills a program that has nothing to do and ends by itself",
	"killsig": "signals a shell that may not have set its trap yet",
}

// read judges what a program has said in the Test Anything Protocol, and how it ended. Some number no checks: they say an error in
// a block of their own, or nothing when all was well.
func read(text string, err error) verdict {
	checks, skips := 0, 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "not ok"):
			return verdict{failed, line}
		case strings.HasPrefix(line, "ok "):
			checks++
			if strings.Contains(strings.ToUpper(line), "# SKIP") {
				skips++
			}
		}
	}
	switch {
	case err != nil:
		return verdict{failed, fmt.Sprintf("%v: %s", err, last(text))}
	case checks == 0 && strings.Contains(text, `"error":`):
		return verdict{failed, errorLine(text)}
	case checks > 0 && checks == skips:
		return verdict{skipped, ""}
	}
	return verdict{passed, ""}
}

func errorLine(text string) string {
	_, rest, _ := strings.Cut(text, `"error":`)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func last(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// report prints a line per program and their sums.
func report(out io.Writer, results []result, peer string, took time.Duration) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "PROGRAM\tOURS\t%s\tOURS SAY\n", strings.ToUpper(peer))
	sums := map[outcome]int{}
	peers := map[outcome]int{}
	for _, r := range results {
		why := r.ours.why
		if race := races[r.name]; race != "" {
			why = "a race: it " + race
		}
		if r.again > 0 {
			why = strings.TrimSpace(fmt.Sprintf("(run %d times) %s", 1+r.again, why))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.name, r.ours.outcome, r.peer.outcome, why)
		sums[r.ours.outcome]++
		peers[r.peer.outcome]++
	}
	w.Flush()
	for _, s := range []struct {
		name string
		of   map[outcome]int
	}{{"ours", sums}, {peer, peers}} {
		fmt.Fprintf(out, "%s: %d passed, %d failed, %d skipped of %d\n", s.name, s.of[passed], s.of[failed], s.of[skipped], len(results))
	}
	fmt.Fprintf(out, "%.0f s\n", took.Seconds())
}

// judge returns an error for a red run.
func judge(results []result, ratchet []string, peer string) error {
	var errs []error
	for _, r := range results {
		errs = append(errs, r.red(ratchet, peer))
	}
	return errors.Join(errs...)
}

// red says why a result makes a run red; nil is one that does not.
func (r result) red(ratchet []string, peer string) error {
	switch {
	case r.ours.outcome == passed || races[r.name] != "":
	case slices.Contains(ratchet, r.name):
		return fmt.Errorf("%s has passed before: %s", r.name, r.ours.why)
	case r.peer.outcome == passed:
		return fmt.Errorf("%s passes for %s: %s", r.name, peer, r.ours.why)
	}
	return nil
}

// retry runs again, one at a time, what is red.
func retry(results []result, ratchet []string, peer string, one func(name string) verdict) {
	for i := range results {
		for r := &results[i]; r.again < tries && r.red(ratchet, peer) != nil; r.again++ {
			r.ours = one(r.name)
		}
	}
}

const (
	ratchetName = "passing.txt"
	ratchetHead = `# The validation programs that have passed. A run that includes one of them and does not pass it is red.
# "make runtime-validation-accept" adds those that the last run passed; lines are taken out by hand only, with the reason in
# the commit.
`
)

// keep writes down what passed, for accept.
func keep(cache string, results []result) error {
	var names []string
	for _, r := range results {
		if r.ours.outcome == passed && races[r.name] == "" {
			names = append(names, r.name)
		}
	}
	return writeLines(filepath.Join(cache, "passed"), "", names)
}

func accept(w wish, cache string, out io.Writer) error {
	path := filepath.Join(w.module, ratchetName)
	have, err := readLines(path)
	if err != nil {
		return err
	}
	now, err := readLines(filepath.Join(cache, "passed"))
	if err != nil {
		return fmt.Errorf("there is no run to accept: %w", err)
	}
	all := append(slices.Clone(have), now...)
	slices.Sort(all)
	all = slices.Compact(all)
	fmt.Fprintf(out, "%d new, %d in all\n", len(all)-len(have), len(all))
	return writeLines(path, ratchetHead, all)
}

// readLines returns the lines of a file that are neither empty nor comments.
func readLines(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func writeLines(path, head string, lines []string) error {
	text := head
	for _, l := range lines {
		text += l + "\n"
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
