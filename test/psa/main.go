// Command psa runs upstream's fixtures of the Pod Security Standards (k8s.io/pod-security-admission/test) against the API
// server and keeps what has passed. The tests themselves are in psa_test.go, one for each level, version and check; they
// run against a server of their own, or against the cluster of -kubeconfig.
//
// passing.txt is the ratchet: a run that does not pass a test of it is red. With -accept the newly passing ones are taken
// up; lines are taken out by hand only, with the reason in the commit.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "psa: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("psa", flag.ContinueOnError)
	yare := f.String("yare", "", "program under test")
	kubeconfig := f.String("kubeconfig", "", "test this cluster instead of a server of our own")
	ratchet := f.String("ratchet", "passing.txt", "the tests that have passed")
	accept := f.Bool("accept", false, "take up the tests that pass for the first time")
	if err := f.Parse(args); err != nil {
		return err
	}
	var flags []string
	for name, file := range map[string]string{"yare": *yare, "kubeconfig": *kubeconfig} {
		if file == "" {
			continue
		}
		abs, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		flags = append(flags, "-"+name, abs)
	}
	passing, err := readRatchet(*ratchet)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1", ".", "-args"}, flags...)...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r, rerr := read(pipe)
	if err := errors.Join(rerr, cmd.Wait()); err != nil && len(r.outcome) == 0 {
		return fmt.Errorf("run the tests: %w\n%s", err, r.log.String())
	}
	return r.judge(passing, *ratchet, *accept, out)
}

// results are the outcomes of one run.
type results struct {
	outcome map[string]string // by test: pass, fail or skip
	output  map[string]string
	log     strings.Builder // what belongs to no test
}

// event is a line of `go test -json`.
type event struct{ Action, Test, Output string }

// read reads the events of a run. Tests that hold others do not count.
func read(in io.Reader) (*results, error) {
	r := &results{outcome: map[string]string{}, output: map[string]string{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			r.log.WriteString(lines.Text() + "\n") // of the compiler
			continue
		}
		switch {
		case e.Action == "output" && strings.Contains(e.Test, "/"):
			r.output[e.Test] += e.Output
		case e.Action == "output":
			r.log.WriteString(e.Output)
		case strings.Contains(e.Test, "/") && slices.Contains([]string{"pass", "fail", "skip"}, e.Action):
			r.outcome[e.Test] = e.Action
		}
	}
	return r, lines.Err()
}

// judge says what happened and returns an error for a run that failed a test or lost one that had passed.
func (r *results) judge(passing []string, ratchet string, accept bool, out io.Writer) error {
	count := map[string]int{}
	var tests, fresh, lost []string
	for test, o := range r.outcome {
		count[o]++
		tests = append(tests, test)
		if o == "pass" && !slices.Contains(passing, test) {
			fresh = append(fresh, test)
		}
	}
	slices.Sort(tests)
	for _, test := range tests {
		if r.outcome[test] == "fail" {
			fmt.Fprint(out, r.output[test])
		}
	}
	for _, test := range passing {
		if r.outcome[test] != "pass" {
			lost = append(lost, test)
		}
	}
	fmt.Fprintf(out, "pod security: %d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	if accept && len(fresh) > 0 {
		if err := writeRatchet(ratchet, append(passing, fresh...)); err != nil {
			return err
		}
		fmt.Fprintf(out, "%d tests are new in %s\n", len(fresh), ratchet)
	}
	switch {
	case len(lost) > 0:
		return fmt.Errorf("%d tests passed before and do not now:\n\t%s", len(lost), strings.Join(lost, "\n\t"))
	case count["fail"] > 0:
		return fmt.Errorf("%d tests fail", count["fail"])
	case len(r.outcome) == 0:
		return errors.New("no test ran:\n" + r.log.String())
	}
	return nil
}

const ratchetHead = `# Upstream's fixtures of pod security that have passed. A run that does not pass one of them is red. "make psa-accept" adds
# those that pass for the first time; lines are taken out by hand only, with the reason in the commit.
`

// readRatchet reads the tests of the file at path; one that does not exist has none.
func readRatchet(path string) (tests []string, err error) {
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read ratchet: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			tests = append(tests, line)
		}
	}
	return tests, nil
}

func writeRatchet(path string, tests []string) error {
	slices.Sort(tests)
	text := ratchetHead + strings.Join(slices.Compact(tests), "\n") + "\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write ratchet: %w", err)
	}
	return nil
}
