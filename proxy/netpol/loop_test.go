package netpol

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/linux/nft"
)

// paper is a kernel that only notes what it is given.
type paper struct {
	mu     sync.Mutex
	counts struct{ whole, commits int }
	fail   error
}

func (p *paper) Commit(b *nft.Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !b.Empty() {
		p.counts.commits++
	}
	return p.fail
}

func (p *paper) MakeWhole(string, *nft.Table) (because, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.whole++
	return nil, p.fail
}

// answer has the kernel answer with err from now on.
func (p *paper) answer(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

// gated is an API whose watches show nothing before they may.
type gated struct {
	*kubelettest.API
	open   chan struct{}
	refuse error // before open

	mu      sync.Mutex
	watches map[*api.Kind]int // that are not over
}

// Watch implements client.Reader.
func (g *gated) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	count := func(n int) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.watches[k] += n; g.watches[k] == 0 {
			delete(g.watches, k)
		}
	}
	return func(yield func(client.Event, error) bool) {
		count(1)
		defer count(-1)
		select {
		case <-g.open:
			if g.refuse != nil {
				yield(client.Event{}, g.refuse)
				return
			}
			g.API.Watch(ctx, k, q, from)(yield)
		case <-ctx.Done():
		}
	}
}

// rig is a loop without a kernel, in a bubble.
type rig struct {
	e       *Enforcer
	api     *gated
	foreign chan struct{}
	kernel  *paper
	state   *state // once ended
	ready   bool
	end     func() error
}

func newRig(t *testing.T) *rig {
	r := &rig{api: &gated{API: kubelettest.NewAPI(), open: make(chan struct{}), watches: map[*api.Kind]int{}},
		foreign: make(chan struct{}, 1), kernel: &paper{}}
	var err error
	if r.e, err = New(Config{Table: "t"}, Deps{Client: r.api, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}); err != nil {
		t.Fatal(err)
	}
	l := &loop{e: r.e, kernel: kernel{r.kernel, "t"}, ready: func() { r.ready = true }, foreign: r.foreign, state: newState(testConfig())}
	r.state = l.state
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- l.run(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil })
	}()
	r.end = func() error { cancel(); return <-ended }
	return r
}

// put stores an object and waits until all is done about it.
func (r *rig) put(o api.Object) {
	r.api.Put(o)
	synctest.Wait()
}

func (r *rig) remove(t *testing.T, o api.Object) {
	if err := r.api.Delete(t.Context(), o, client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// follows says how many kinds are watched.
func (r *rig) follows() int {
	synctest.Wait()
	r.api.mu.Lock()
	defer r.api.mu.Unlock()
	return len(r.api.watches)
}

// attach attaches in the background; the channel has what came of it.
func (r *rig) attach(t *testing.T) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- r.e.Attach(t.Context(), Attachment{Sandbox: "s", Namespace: "a", Name: "p", Addrs: []netip.Addr{netip.MustParseAddr("10.42.1.2")}})
	}()
	synctest.Wait()
	return done
}

func waits(done <-chan error) bool {
	synctest.Wait()
	return len(done) == 0
}

// TestAttachWaits checks that a pod waits until all policies are known and the kernel has what they make, and not longer.
func TestAttachWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
		r.put(deny("a"))
		r.put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
		first := r.attach(t)
		if !waits(first) || r.ready {
			t.Fatal("it does not wait for what is not known")
		}
		r.kernel.answer(errors.New("no"))
		close(r.api.open)
		if !waits(first) || r.ready {
			t.Fatal("it does not wait for the kernel")
		}
		r.kernel.answer(nil)
		err := <-first
		if waits(first); err != nil || !r.ready || r.kernel.counts.whole != 2 {
			t.Fatalf("%v, ready %v, %d tries", err, r.ready, r.kernel.counts.whole)
		}
		r.e.Detach("s")
		synctest.Wait()
		if r.kernel.counts.commits != 1 {
			t.Errorf("%d transactions for the pod's end", r.kernel.counts.commits)
		}
		r.kernel.answer(errors.New("no"))
		second := r.attach(t)
		if err := <-second; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up with %v", err)
		}
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
}

// TestUnknownWaits checks that a pod that the API shows late waits for that, and one that it does not show, a second.
func TestUnknownWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		close(r.api.open)
		if err := <-r.attach(t); err != nil { // without policies nobody needs to know
			t.Fatal(err)
		}
		r.put(deny("a"))
		second := r.attach(t)
		time.Sleep(knownLimit / 2)
		if !waits(second) {
			t.Error("it does not wait")
		}
		r.put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
		if waits(second) {
			t.Error("it waits although it is known")
		}
		r.remove(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
		start := time.Now()
		if err := <-r.attach(t); err != nil || time.Since(start) != knownLimit {
			t.Errorf("waited %v, %v", time.Since(start), err)
		}
		fourth := r.attach(t)
		r.e.Detach("s")
		if waits(fourth) {
			t.Error("it waits although it is gone")
		}
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
}

// TestNothingToDo checks that events that change nothing reach the kernel with nothing, and that what others do to the table is undone.
func TestNothingToDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(deny("a"))
		close(r.api.open)
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
		r.put(p)
		if err := <-r.attach(t); err != nil {
			t.Fatal(err)
		}
		before := r.kernel.counts
		for range 3 {
			p = p.DeepCopy()
			p.Status.Message += "!"
			r.put(p)
			synctest.Wait()
		}
		if r.kernel.counts != before {
			t.Errorf("from %+v to %+v", before, r.kernel.counts)
		}
		r.foreign <- struct{}{}
		synctest.Wait()
		if r.kernel.counts.whole != before.whole+1 {
			t.Error("a foreign change stays")
		}
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
}

// TestOnlyPolicies checks that namespaces and pods are watched while there is a policy, and are nobody's business, nor a pod's reason to wait, while
// there is none.
func TestOnlyPolicies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
		r.put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
		r.api.open <- struct{}{} // of policies, which are none
		if err := <-r.attach(t); err != nil || r.follows() != 1 || !r.ready {
			t.Errorf("%v, %d kinds are watched, ready %v", err, r.follows(), r.ready)
		}
		r.put(deny("a"))
		if waiting := r.attach(t); !waits(waiting) || r.follows() != 3 {
			t.Error("it does not wait until all is known that there must be")
		} else if close(r.api.open); waits(waiting) || <-waiting != nil {
			t.Error("it waits although all is known")
		}
		before := r.kernel.counts
		if r.remove(t, deny("a")); r.follows() != 1 || r.kernel.counts.commits != before.commits+1 {
			t.Errorf("%d kinds are watched; from %+v to %+v", r.follows(), before, r.kernel.counts)
		}
		if err := <-r.attach(t); err != nil {
			t.Error(err)
		}
		r.put(deny("a"))
		if err := <-r.attach(t); err != nil || r.follows() != 3 {
			t.Errorf("%v, %d kinds are watched", err, r.follows())
		}
		r.remove(t, deny("a"))
		if err := r.end(); err != nil || len(r.state.namespaces)+len(r.state.pods) != 0 {
			t.Errorf("%v, remembers %v, %v", err, r.state.namespaces, r.state.pods)
		}
		if r.follows() != 0 {
			t.Error("a watch goes on")
		}
	})
}

// TestWatchEnds checks that an enforcer that can see no more says so.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		want := errors.New("forbidden")
		r.api.refuse = want
		close(r.api.open)
		synctest.Wait()
		if err := r.end(); !errors.Is(err, want) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Ranges: []netip.Prefix{{}}}, Deps{}); err == nil {
		t.Error("no error")
	}
}

// BenchmarkAttach measures what a pod's start waits for where there is no policy.
func BenchmarkAttach(b *testing.B) {
	w := newWorld(b)
	w.start(b)
	for b.Loop() {
		if err := w.enforcer.Attach(b.Context(), Attachment{Sandbox: "s", Namespace: "a", Name: "p", Addrs: []netip.Addr{netip.MustParseAddr("10.42.1.2")}}); err != nil {
			b.Fatal(err)
		}
		w.enforcer.Detach("s")
	}
}
