package campaign_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	clients = 4
	elders  = 3
	// mostSteps is how much the clients do in the life of a server of TestServerKilled, counted and not timed, so that it is
	// as much on a slow machine; it is killed within moment after that.
	mostSteps = 30
	moment    = 20 * time.Millisecond
)

// client makes, uses and removes one pod after the other. A step that a kill interrupted is done again.
type client struct {
	s     *server
	n     int
	made  int
	pod   *pod
	steps []func(context.Context) error
	at    int
	done  *atomic.Int64 // steps of all clients
}

func (c *client) next() {
	c.made++
	p := &pod{s: c.s, name: fmt.Sprintf("p%d-%d", c.n, c.made)}
	long, short, late, victim, never := until("long", 3), count("short", 50, 7), count("late", 1, 0), until("victim", 4), until("never", 5)
	p.boxes = []*box{long, short, late, victim, never}
	on := func(f func(context.Context, *box) error, b *box) func(context.Context) error {
		return func(ctx context.Context) error { return f(ctx, b) }
	}
	c.pod, c.at = p, 0
	c.steps = []func(context.Context) error{
		p.run, on(p.create, long), on(p.start, long), on(p.create, short), on(p.start, short),
		func(ctx context.Context) error { return p.say(ctx, long, p.name, 9) },
		on(p.over, short), on(p.create, late), on(p.start, late), on(p.over, late), on(p.drop, short),
		on(p.create, victim), on(p.start, victim), on(p.create, never), on(p.halt, long), p.haltAll, p.remove,
	}
}

// work goes on until the server is gone.
func (c *client) work(ctx context.Context) error {
	for {
		if c.pod == nil || c.at == len(c.steps) {
			c.next()
		}
		if err := c.steps[c.at](ctx); err != nil {
			return fmt.Errorf("step %d: %w", c.at, err)
		}
		c.at++
		c.done.Add(1)
	}
}

// campaign is what TestServerKilled works with.
type campaign struct {
	*server
	random  *rand.Rand
	clients []*client
	elders  []*pod
	done    atomic.Int64 // steps of the clients
}

// TestServerKilled kills the server again and again while clients work, and also while it starts. Processes stay what they
// are; exit codes, output and logs are as the processes made them; and the kernel and the disk have what the runtime knows
// of, and nothing else.
func TestServerKilled(t *testing.T) {
	c := &campaign{server: newServer(t), random: newRandom(t)}
	for i := range elders {
		p := &pod{s: c.server, name: fmt.Sprint("elder", i), boxes: []*box{until("a", 11), until("b", 12)}}
		must(t, p.run(t.Context()))
		for _, b := range p.boxes {
			must(t, errors.Join(p.create(t.Context(), b), p.start(t.Context(), b)))
		}
		c.elders = append(c.elders, p)
	}
	for n := range clients {
		c.clients = append(c.clients, &client{s: c.server, n: n, done: &c.done})
	}
	begin := time.Now()
	var away time.Duration
	starting := 0
	for i := 0; i < *kills && !t.Failed(); i++ {
		c.workUntilKilled()
		if c.random.IntN(4) == 0 {
			c.launch()
			c.sleep(5 * moment)
			c.kill()
			starting++
			i++
		}
		dead := time.Now()
		c.start()
		away += time.Since(dead)
		c.verify()
		if i%100 == 99 {
			t.Logf("%d kills", i+1)
		}
	}
	pods := 0
	for _, k := range c.clients {
		pods += k.made
	}
	t.Logf("%d kills, %d of them while it started, in %.0f s; it was away for %d ms each; %d pods, %d steps",
		*kills, starting, time.Since(begin).Seconds(), away.Milliseconds()/int64(max(1, *kills)), pods, c.done.Load())
	for _, p := range c.elders {
		for _, b := range p.boxes {
			must(t, p.halt(t.Context(), b))
		}
		must(t, p.remove(t.Context()))
	}
	for _, k := range c.clients {
		for k.pod != nil && k.at < len(k.steps) && !t.Failed() {
			must(t, k.steps[k.at](t.Context()))
			k.at++
		}
	}
}

// newRandom tells its seed, by which a campaign can be repeated.
func newRandom(t *testing.T) *rand.Rand {
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("-seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// workUntilKilled lets the clients work and kills the server at some moment.
func (c *campaign) workUntilKilled() {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	errs := make([]error, clients)
	var all sync.WaitGroup
	for i, k := range c.clients {
		all.Go(func() { errs[i] = k.work(ctx) })
	}
	for _, p := range c.elders { // sessions that nobody ends: the shim must
		all.Go(func() {
			_, _ = c.client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.boxes[0].id, Cmd: []string{"/work", "idle"}})
		})
	}
	target := c.done.Load() + 1 + c.random.Int64N(mostSteps)
	c.eventually("the clients have done something", func() bool { return c.done.Load() >= target }, nil)
	c.sleep(moment)
	c.kill()
	all.Wait()
	for i, err := range errs {
		if !gone(err) {
			c.Errorf("client %d: %v", i, err)
		}
	}
}

// sleep lets any part of the time pass.
func (c *campaign) sleep(most time.Duration) { time.Sleep(time.Duration(c.random.Int64N(int64(most)))) }

// verify compares all that is known with what the new server says and with what there is.
func (c *campaign) verify() {
	c.Helper()
	for _, p := range c.elders {
		if err := errors.Join(p.verify(c.Context()), p.say(c.Context(), p.boxes[1], "still here", 1)); err != nil {
			c.Error(err)
		}
		for _, b := range p.boxes {
			c.eventually("the sessions of the killed server end", func() bool { return len(processes(p.group(b))) == 1 },
				func() string { return fmt.Sprint(processes(p.group(b))) })
		}
	}
	for _, k := range c.clients {
		if k.pod == nil {
			continue
		}
		if err := k.pod.verify(c.Context()); err != nil {
			c.Errorf("client %d in step %d: %v", k.n, k.at, err)
		}
	}
	c.checkHost(c.open()...)
}

// open are the containers that may have lost a part of what they had, because the call that removes them has had no answer.
func (c *campaign) open() (ids []string) {
	for _, k := range c.clients {
		if k.pod == nil {
			continue
		}
		for _, b := range k.pod.boxes {
			if b.busy && b.phase > absent {
				ids = append(ids, b.id)
			}
		}
	}
	return ids
}

// checkHost compares what the kernel and the disk have with what the server lists, but for open containers. Nobody may be
// calling it.
func (s *server) checkHost(open ...string) {
	s.Helper()
	pods, err := s.client.ListPodSandbox(s.Context(), &cri.ListPodSandboxRequest{})
	must(s, err)
	boxes, err := s.client.ListContainers(s.Context(), &cri.ListContainersRequest{})
	must(s, err)
	var all, ready, short, containers []string
	groups := map[string][]string{}
	for _, p := range pods.Items {
		all = append(all, p.Id)
		if p.State == cri.PodSandboxState_SANDBOX_READY {
			ready, short = append(ready, p.Id), append(short, p.Id[:20])
			groups[p.Id] = []string{"shim-" + p.Id[:20]}
		}
	}
	for _, b := range boxes.Containers {
		if slices.Contains(open, b.Id) {
			continue
		}
		containers = append(containers, b.Id)
		if groups[b.PodSandboxId] != nil {
			groups[b.PodSandboxId] = append(groups[b.PodSandboxId], b.Id)
		}
	}
	s.same("sandboxes on disk", children(s, s.data("containers", "sandboxes")), all)
	closed := func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(open, n) })
	}
	s.same("containers on disk", closed(children(s, s.data("containers", "containers"))), containers)
	s.same("snapshots", closed(children(s, s.data("images", "snapshots"))), containers)
	s.same("shims' folders", children(s, s.path("s")), short)
	s.same("shims", shims(), short)
	s.same("pods in the network", children(s, s.path("net", "pods")), ready)
	for _, p := range pods.Items {
		entries, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/pids", inside.cgroup, p.Labels["pod"], "*", "cgroup.procs"))
		var have []string
		for _, e := range entries {
			have = append(have, filepath.Base(filepath.Dir(e)))
		}
		s.same("cgroups of "+p.Labels["pod"], closed(have), groups[p.Id])
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(s, err)
	var shm, roots int
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, s.dir) && strings.Contains(line, "/shm ") {
			shm++
		} else if strings.Contains(line, s.data("images", "snapshots")) && !slices.ContainsFunc(open, func(id string) bool { return strings.Contains(line, id) }) {
			roots++
		}
	}
	if shm != len(ready) || roots != len(containers) {
		s.Errorf("%d mounts of shared memory for %d sandboxes, %d of root file systems for %d containers", shm, len(ready), roots, len(containers))
	}
}

// shims are the sandboxes of ours whose shims live, by their cgroups.
func shims() (list []string) {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range comms {
		comm, _ := os.ReadFile(f)
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cgroup"))
		above, name, ok := strings.Cut(string(groups), "/shim-")
		if ok && strings.Contains(above, inside.cgroup+"/") && string(comm) == "yare-shim\n" {
			list = append(list, name[:20])
		}
	}
	return list
}

// same compares what is there with what should be, in any order.
func (s *server) same(what string, have, want []string) {
	s.Helper()
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		s.Errorf("%s: there are\n%s\nwanted\n%s", what, strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}
