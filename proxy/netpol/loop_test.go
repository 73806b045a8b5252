package netpol

import (
	"context"
	"errors"
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

// rig is a loop without a kernel, in a bubble.
type rig struct {
	e       *Enforcer
	events  chan change
	foreign chan struct{}
	errs    chan error
	kernel  *paper
	ready   bool
	end     func() error
}

func newRig(t *testing.T) *rig {
	e, err := New(Config{Table: "t"}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{e: e, events: make(chan change, 100), foreign: make(chan struct{}, 1), errs: make(chan error, 1), kernel: &paper{}}
	l := &loop{e: e, kernel: kernel{r.kernel, "t"}, ready: func() { r.ready = true }, state: newState(testFacts())}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.run(ctx, r.events, r.foreign, r.errs) }()
	r.end = func() error { cancel(); return <-ended }
	return r
}

func (r *rig) put(o api.Object) {
	r.events <- change{api.KindOf(o), client.Event{Op: client.Added, Object: o}}
}

func (r *rig) sync() {
	for _, k := range watched() {
		r.events <- change{k, client.Event{Op: client.Synced}}
	}
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
		r.sync()
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
		r.sync()
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
		r.events <- change{api.PodKind, client.Event{Op: client.Deleted, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}}}
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
		r.sync()
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

// TestWatchEnds checks that an enforcer that can see no more says so.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		want := errors.New("forbidden")
		r.errs <- want
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
