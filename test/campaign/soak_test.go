package campaign_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// perPod is how many containers a pod of TestMany has.
const perPod = 2

// each calls f for all numbers below n, by some clients.
func each(n int, f func(i int) error) error {
	var next atomic.Int64
	var all sync.WaitGroup
	var first atomic.Pointer[error]
	for range clients {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && first.Load() == nil; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	all.Wait()
	if err := first.Load(); err != nil {
		return *err
	}
	return nil
}

// TestMany has many containers at once, and a server that is killed among them.
func TestMany(t *testing.T) {
	s := newServer(t)
	pods := make([]*pod, (*many+perPod-1)/perPod)
	begin := time.Now()
	must(t, each(len(pods), func(i int) error {
		p := &pod{s: s, name: fmt.Sprint("m", i)}
		pods[i] = p
		if err := p.run(t.Context()); err != nil {
			return err
		}
		for k := range perPod {
			b := &box{name: fmt.Sprint("c", k), args: []string{"idle"}, lines: -1}
			p.boxes = append(p.boxes, b)
			if err := p.create(t.Context(), b); err != nil {
				return err
			}
			if err := p.start(t.Context(), b); err != nil {
				return err
			}
		}
		return nil
	}))
	t.Logf("%d containers in %d pods run after %.1f s", perPod*len(pods), len(pods), time.Since(begin).Seconds())
	use := s.usage()
	t.Logf("%v", use)
	s.kill()
	begin = time.Now()
	s.start()
	t.Logf("a new server answers after %d ms", time.Since(begin).Milliseconds())
	must(t, each(len(pods), func(i int) error {
		p := pods[i]
		if err := p.verify(t.Context()); err != nil {
			return err
		}
		return p.say(t.Context(), p.boxes[0], p.name, 3)
	}))
	s.checkHost()
	begin = time.Now()
	must(t, each(len(pods), func(i int) error { return pods[i].remove(t.Context()) }))
	t.Logf("all are gone after %.1f s", time.Since(begin).Seconds())
}

// TestInARow starts and removes one container after the other. What there is of everything stays as it was after the
// first ones.
func TestInARow(t *testing.T) {
	s := newServer(t)
	row := func(first, n int) {
		t.Helper()
		must(t, each(n, func(i int) error { return s.once(t.Context(), first+i) }))
	}
	warm := *starts/10 + 1
	row(0, warm)
	before := s.settled()
	begin := time.Now()
	row(warm, *starts)
	took := time.Since(begin)
	after := s.settled()
	t.Logf("%d starts and removals in %.0f s\nbefore: %v\nafter:  %v", *starts, took.Seconds(), before, after)
	for _, c := range []struct {
		what          string
		before, after int
	}{
		{"descriptors", before.descriptors, after.descriptors}, {"threads", before.threads, after.threads},
		{"mounts", before.mounts, after.mounts}, {"cgroups", before.cgroups, after.cgroups}, {"links", before.links, after.links},
		{"files", before.files, after.files}, {"processes", before.processes, after.processes}, {"rules", before.rules, after.rules},
		{"memory, kB", before.memory, after.memory},
	} {
		if c.after > c.before+c.before/4+slack[c.what] {
			t.Errorf("%s: %d became %d", c.what, c.before, c.after)
		}
	}
}

// slack is what comes and goes by itself: threads that Go keeps, its heap, which it gives back in its own time.
var slack = map[string]int{"descriptors": 2, "threads": 8, "memory, kB": 8 << 10}

// once is the life of one pod.
func (s *server) once(ctx context.Context, i int) error {
	b := count("once", (i+1)%20, int32((i+1)%100))
	p := &pod{s: s, name: fmt.Sprint("r", i), boxes: []*box{b}}
	for _, step := range []func(context.Context) error{
		p.run,
		func(ctx context.Context) error { return p.create(ctx, b) },
		func(ctx context.Context) error { return p.start(ctx, b) },
		func(ctx context.Context) error { return p.over(ctx, b) },
		p.haltAll, p.remove,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// usage is how much there is of what could leak.
type usage struct {
	memory, shims                        int // kB: the server's, proportional; the shims', each
	descriptors, threads, processes      int
	mounts, cgroups, links, files, rules int
}

func (u usage) String() string {
	return fmt.Sprintf("server %d kB, %d descriptors, %d threads; %d processes, of which a shim has %d kB; %d mounts, %d cgroups, %d links, %d files, %d nft rules",
		u.memory, u.descriptors, u.threads, u.processes, u.shims, u.mounts, u.cgroups, u.links, u.files, u.rules)
}

// settled is the usage when what happens in the background is over.
func (s *server) settled() usage {
	s.Helper()
	var last usage
	for range 20 { // the kernel deletes links in its own time, the pool of namespaces fills up
		time.Sleep(250 * time.Millisecond)
		u := s.usage()
		same := u
		same.memory, same.threads = last.memory, last.threads
		if same == last {
			return u
		}
		last = u
	}
	return last
}

func (s *server) usage() (u usage) {
	s.Helper()
	for line := range s.picture() {
		kind, _, _ := strings.Cut(line, " ")
		switch kind {
		case "mount":
			u.mounts++
		case "cgroup":
			u.cgroups++
		case "link":
			u.links++
		case "file":
			u.files++
		}
	}
	u.rules = rules(s)
	proc := fmt.Sprintf("/proc/%d", s.command.Process.Pid)
	u.memory = pss(s, proc)
	u.descriptors, u.threads = len(children(s, proc+"/fd")), len(children(s, proc+"/task"))
	all, err := filepath.Glob("/proc/[0-9]*")
	must(s, err)
	u.processes = len(all)
	n := 0
	for _, dir := range all {
		if comm, _ := os.ReadFile(dir + "/comm"); string(comm) == "yare-shim\n" {
			u.shims += pss(s, dir)
			n++
		}
	}
	u.shims /= max(n, 1)
	return u
}

// pss is a process's proportional share of memory in kB.
func pss(t testing.TB, proc string) int {
	t.Helper()
	text, err := os.ReadFile(proc + "/smaps_rollup")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, err := strconv.Atoi(f[1])
			must(t, err)
			return n
		}
	}
	t.Fatalf("%s tells no proportional set size", proc)
	return 0
}

// rules is how many lines the host's nft rules have.
func rules(t testing.TB) int {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").Output()
	must(t, err)
	return strings.Count(string(out), "\n")
}
