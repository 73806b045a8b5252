package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// Options say what to run and where.
type Options struct {
	Kubeconfig string // of the cluster under test
	Kubectl    string // program that the tests of kubectl call; its name must be kubectl
	Images     string // file that maps registries, see KUBE_TEST_REPO_LIST; empty for upstream's
	Procs      int    // parallel processes for the tests that are not [Serial]
	Nodes      int    // of the cluster, for tests that want several; 0: they are not told, and do without
	Dir        string // for reports and logs
	Log        io.Writer

	// Grace is how long the suite may clean up when its time is up, before it is killed.
	Grace time.Duration
}

// Outcome is what became of one test.
type Outcome string

const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped" // by the test itself
	NotRun  Outcome = "not run" // the time was up, or the program ended, before its turn
)

// Result is the outcome of one test.
type Result struct {
	Name    string        `json:"name"`
	Outcome Outcome       `json:"outcome"`
	Time    time.Duration `json:"time"`
	Message string        `json:"message,omitempty"` // of the first failure, or why skipped
}

// Serial tells the tests that must run alone.
func Serial(name string) bool { return strings.Contains(name, "[Serial]") }

// Run runs the named tests, the serial ones after the others, until ctx ends. Every name has a result, in the order of
// names. An error is a run that could not be judged; failing tests are none.
func (p *Program) Run(ctx context.Context, o Options, names []string) ([]Result, error) {
	var parallel, serial []string
	for _, n := range names {
		if Serial(n) {
			serial = append(serial, n)
		} else {
			parallel = append(parallel, n)
		}
	}
	found := map[string]Result{}
	for _, phase := range []struct {
		name  string
		procs int
		tests []string
	}{{"parallel", o.Procs, parallel}, {"serial", 1, serial}} {
		if len(phase.tests) == 0 || ctx.Err() != nil {
			continue
		}
		ctx, cancel := share(ctx, phase.name == "parallel" && len(serial) > 0)
		err := p.phase(ctx, o, phase.name, phase.procs, phase.tests, found)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("run %s tests: %w", phase.name, err)
		}
	}
	results := make([]Result, 0, len(names))
	for _, n := range names {
		r, ok := found[n]
		if !ok {
			r = Result{Name: n, Outcome: NotRun, Message: "the run ended before it"}
		}
		results = append(results, r)
	}
	return results, nil
}

// share leaves a quarter of the time to the serial tests if there are any.
func share(ctx context.Context, more bool) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok && more {
		return context.WithDeadline(ctx, time.Now().Add(time.Until(end)*3/4))
	}
	return context.WithCancel(ctx)
}

func (p *Program) phase(ctx context.Context, o Options, name string, procs int, tests []string, found map[string]Result) error {
	log, err := os.Create(filepath.Join(o.Dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.CommandContext(ctx, p.Ginkgo, p.arguments(ctx, o, name, procs, tests)...)
	c.Dir = o.Dir
	c.Env = append(os.Environ(), "KUBE_TEST_REPO_LIST="+o.Images, "KUBECONFIG="+o.Kubeconfig)
	progress := &progress{out: o.Log, total: len(tests)}
	c.Stdout = io.MultiWriter(log, progress)
	c.Stderr = c.Stdout
	// Ginkgo does not pass signals on to its processes: they are a group, and are told together. What does not end in
	// time is killed.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
	c.WaitDelay = o.Grace
	err = c.Run()
	if c.Process != nil {
		if kill := syscall.Kill(-c.Process.Pid, syscall.SIGKILL); kill != nil && !errors.Is(kill, syscall.ESRCH) {
			return errors.Join(err, kill)
		}
	}
	// Failing tests make ginkgo fail; what is true is in its report.
	told, e := read(filepath.Join(o.Dir, name+".json"), found)
	switch {
	case e == nil && told:
		return nil
	case e == nil || errors.Is(e, os.ErrNotExist):
		if e := errors.Join(log.Sync(), readLog(log.Name(), tests, found)); e != nil {
			return errors.Join(err, e)
		}
		if len(found) == 0 && ctx.Err() == nil {
			return errors.Join(err, fmt.Errorf("no test has a result: see %s", log.Name()))
		}
		return nil
	}
	return errors.Join(err, e)
}

func (p *Program) arguments(ctx context.Context, o Options, name string, procs int, tests []string) []string {
	quoted := make([]string, len(tests))
	for i, t := range tests {
		quoted[i] = regexp.QuoteMeta(t)
	}
	args := []string{
		"run", "--procs=" + strconv.Itoa(procs), "--no-color", "-v", "--keep-going", "--focus=" + strings.Join(quoted, "|"),
		"--output-dir=" + o.Dir, "--json-report=" + name + ".json", "--junit-report=" + name + ".xml", "--timeout=24h",
		"--grace-period=" + (o.Grace / 2).String(), "--silence-skips", "--poll-progress-after=0",
	}
	if end, ok := ctx.Deadline(); ok {
		args = append(args, "--timeout="+max(time.Until(end)-o.Grace, time.Second).Round(time.Second).String())
	}
	args = append(args, p.Tests, "--",
		"--kubeconfig="+o.Kubeconfig, "--kubectl-path="+o.Kubectl, "--provider=local", "--repo-root="+o.Dir,
		"--dump-logs-on-failure=false", "--disable-log-dump", "--e2e-output-dir="+o.Dir,
		"--node-schedulable-timeout=1m", "--system-pods-startup-timeout=1m", "--system-daemonsets-startup-timeout=1m")
	if o.Nodes > 0 {
		args = append(args, "--num-nodes="+strconv.Itoa(o.Nodes))
	}
	return args
}

// read adds the results of one of ginkgo's reports and tells whether it has any.
func read(path string, found map[string]Result) (told bool, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("the suite left no report: %w", err)
	}
	var reports []types.Report
	if err := json.Unmarshal(raw, &reports); err != nil {
		return false, fmt.Errorf("read report %s: %w", path, err)
	}
	var before string // why the suite's own preparation failed, if it did
	for _, r := range reports {
		for _, s := range r.SpecReports {
			if s.LeafNodeType.Is(types.NodeTypesForSuiteLevelNodes) && s.State.Is(types.SpecStateFailureStates) {
				before = s.Failure.Message
			}
			if s.LeafNodeType != types.NodeTypeIt || s.State == types.SpecStateSkipped && s.Failure.Message == "" {
				continue
			}
			told = true
			found[s.FullText()] = Result{
				Name: s.FullText(), Outcome: outcome(s.State, s.Failure.Message), Time: s.RunTime, Message: s.Failure.Message,
			}
		}
	}
	if before != "" {
		return false, fmt.Errorf("the suite could not begin: %s", before)
	}
	return told, nil
}

// timeUp is what ginkgo says of the tests that were under way when the time of the run was up.
const timeUp = "A suite timeout occurred"

func outcome(s types.SpecState, message string) Outcome {
	switch {
	case strings.HasPrefix(message, timeUp):
		return NotRun
	case s == types.SpecStatePassed:
		return Passed
	case s.Is(types.SpecStateSkipped | types.SpecStatePending):
		return Skipped
	case s.Is(types.SpecStateInterrupted | types.SpecStateInvalid):
		return NotRun
	}
	return Failed
}

// progress counts the mark that ginkgo writes for each test that ended.
type progress struct {
	out   io.Writer
	total int
	ended int
	tail  []byte // the beginning of a mark that was cut
}

func (p *progress) Write(b []byte) (int, error) {
	const mark = "•"
	text := append(p.tail, b...)
	p.tail = nil
	for i := max(0, len(text)-len(mark)+1); i < len(text); i++ {
		if strings.HasPrefix(mark, string(text[i:])) {
			p.tail = bytes.Clone(text[i:])
			break
		}
	}
	if n := bytes.Count(text, []byte(mark)); n > 0 {
		p.ended += n
		fmt.Fprintf(p.out, "%d of %d tests\n", p.ended, p.total)
	}
	return len(b), nil
}
