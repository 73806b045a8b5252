package critest

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/yare-dev/yare/cri"
)

// Target is a server under test.
type Target struct {
	*cri.Client
	// Dir is a folder that the test and the server know by the same path. It must be below a mount that is shared where
	// the server has its mounts. The suite leaves logs and volumes in it.
	Dir string
	// CgroupParent is the path of a cgroup, in every hierarchy, below which pods get theirs.
	CgroupParent string
	// Registry and Guarded are listeners for the suite's registries, which speak HTTP, the second to those alone who
	// know the password; nil means one on loopback. The suite closes them.
	Registry, Guarded net.Listener
	// Sandbox is the name, in Registry, of an image whose only program waits to be killed, for servers that need one.
	Sandbox string
	// Revision is the minor release of Kubernetes whose CRI the server speaks, such as 37.
	Revision int
	// Handler is the runtime handler of the pods; empty: the server's own.
	Handler string
	// Groups are those whose cases are run; nil: all.
	Groups []string
	// Deviations are the cases that are known to fail, "Call/case", each with its reason.
	Deviations map[string]string
}

// Case is one expectation.
type Case struct {
	// Name says what is expected, in words.
	Name string
	// Since is the revision that brought it; 0 is for what CRI v1 had from its beginning.
	Since int
	run   func(*T)
}

// group holds the cases of one call, or of one subject that spans calls.
type group struct {
	name  string
	cases []Case
}

// groups are all cases.
func groups() []group {
	return []group{
		{"Version", versionCases()},
		{"Status", statusCases()},
		{"RunPodSandbox", sandboxRunCases()},
		{"StopPodSandbox", sandboxStopCases()},
		{"RemovePodSandbox", sandboxRemoveCases()},
		{"PodSandboxStatus", sandboxStatusCases()},
		{"ListPodSandbox", sandboxListCases()},
		{"CreateContainer", createCases()},
		{"StartContainer", startCases()},
		{"StopContainer", stopCases()},
		{"RemoveContainer", removeCases()},
		{"ContainerStatus", containerStatusCases()},
		{"ListContainers", containerListCases()},
		{"Process", processCases()},
		{"User", userCases()},
		{"Security", securityCases()},
		{"AppArmor", appArmorCases()},
		{"Namespaces", namespaceCases()},
		{"Mounts", mountCases()},
		{"Devices", deviceCases()},
		{"Resources", resourceCases()},
		{"ExecSync", execSyncCases()},
		{"Exec", execCases()},
		{"Attach", attachCases()},
		{"PortForward", portForwardCases()},
		{"Log", logCases()},
		{"Stats", statsCases()},
		{"Images", imageCases()},
		{"Events", eventCases()},
		{"Checkpoint", checkpointCases()},
	}
}

// shortEvery is which part of the cases a short run takes: every third.
const shortEvery = 3

// Run runs the cases, and says how many there were.
func Run(t *testing.T, target Target) {
	s := newSuite(t, target)
	n, deviating := 0, 0
	checkDeviations(t, target.Deviations)
	for _, g := range groups() {
		if target.Groups != nil && !slices.Contains(target.Groups, g.name) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			for i, c := range g.cases {
				name := g.name + "/" + c.Name
				if c.Since > target.Revision || testing.Short() && i%shortEvery != 0 {
					continue
				}
				n++
				reason, deviates := target.Deviations[name]
				if deviates {
					deviating++
				}
				t.Run(c.Name, func(t *testing.T) {
					t.Parallel()
					s.places <- struct{}{}
					defer func() { <-s.places }()
					runCase(t, s, c, reason)
				})
			}
		})
	}
	t.Logf("%d cases, %d of them known deviations", n, deviating)
}

// checkDeviations finds names of no case.
func checkDeviations(t *testing.T, deviations map[string]string) {
	t.Helper()
	known := map[string]bool{}
	for _, g := range groups() {
		for _, c := range g.cases {
			known[g.name+"/"+c.Name] = true
		}
	}
	for name := range deviations {
		if !known[name] {
			t.Errorf("deviation %q: there is no such case", name)
		}
	}
}

// runCase runs one. A case with a reason to deviate must fail, which fails nothing.
func runCase(t *testing.T, s *suite, c Case, reason string) {
	if reason == "" {
		c.run(&T{TB: t, suite: s})
		return
	}
	v := &verdict{}
	done := make(chan struct{})
	go func() { // which FailNow may end
		defer close(done)
		c.run(&T{TB: t, suite: s, verdict: v})
	}()
	<-done
	if v.failed.Load() == 0 {
		t.Errorf("it does not deviate any more, although %s", reason)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	t.Logf("deviates, as is known: %s: %s", reason, v.first)
}

// verdict is how a case fares whose failure is no failure.
type verdict struct {
	failed atomic.Int64
	mu     sync.Mutex
	first  string
}

// T is what a case has: the suite, the target's clients, and its own place in the test.
type T struct {
	testing.TB
	*suite
	verdict *verdict // nil unless the case is to fail
}

func (t *T) note(text string) {
	t.verdict.mu.Lock()
	defer t.verdict.mu.Unlock()
	if t.verdict.failed.Add(1) == 1 {
		t.verdict.first = text
	}
}

// Errorf is testing's, unless the case is to fail.
func (t *T) Errorf(format string, args ...any) {
	t.Helper()
	if t.verdict == nil {
		t.TB.Errorf(format, args...)
		return
	}
	t.note(fmt.Sprintf(format, args...))
}

// Fatalf is as Errorf.
func (t *T) Fatalf(format string, args ...any) {
	t.Helper()
	if t.verdict == nil {
		t.TB.Fatalf(format, args...)
	}
	t.note(fmt.Sprintf(format, args...))
	runtime.Goexit()
}

// Error is as Errorf.
func (t *T) Error(args ...any) { t.Helper(); t.Errorf("%s", fmt.Sprint(args...)) }

// Fatal is as Errorf.
func (t *T) Fatal(args ...any) { t.Helper(); t.Fatalf("%s", fmt.Sprint(args...)) }
