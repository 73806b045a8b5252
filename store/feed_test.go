package store_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// faulty is a Backend whose watch can be cut and held back, and whose answers to writes can be lost.
type faulty struct {
	store.Backend

	mu   sync.Mutex
	cut  chan struct{} // closed: the present watch breaks
	hold chan struct{} // not nil: no watch starts before it is closed
	lose bool
	puts int
}

func newFaulty() *faulty {
	return &faulty{Backend: memory.New(true), cut: make(chan struct{})}
}

func (f *faulty) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	f.mu.Lock()
	cut, hold := f.cut, f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-cut:
			cancel(errors.New("connection reset"))
		case <-ctx.Done():
		}
	}()
	err := f.Backend.Watch(ctx, prefix, from, emit)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// interrupt breaks the watch and keeps it from starting again until the function is called.
func (f *faulty) interrupt() (again func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cut)
	f.cut = make(chan struct{})
	hold := make(chan struct{})
	f.hold = hold
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hold = nil
		close(hold)
	}
}

func (f *faulty) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	rev, err := f.Backend.Put(ctx, key, value, want, ttl)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	if f.lose {
		return 0, store.ErrUnknown
	}
	return rev, err
}

// While the watch is broken others write; afterwards the tables and the watchers have what happened.
func TestBrokenWatch(t *testing.T) {
	t.Parallel()
	for _, compact := range []bool{false, true} {
		name := map[bool]string{false: "resumed", true: "compacted"}[compact]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty()
			bubble(t, func() store.Backend { return f }, store.Options{}, func(t *testing.T, s *store.Store) {
				ctx, ok := t.Context(), must[*store.Entry](t)
				kept := ok(s.Create(ctx, api.PodKind, pod("ns", "kept", "n1"), 0))
				changed := ok(s.Create(ctx, api.PodKind, pod("ns", "changed", "n1"), 0))
				gone := ok(s.Create(ctx, api.PodKind, pod("ns", "gone", "n1"), 0))
				start := s.Revision()
				w := must[*store.Watch](t)(s.Watch(api.PodKind, start, 0))

				again := f.interrupt()
				synctest.Wait()
				other := store.New(f.Backend, api.Stored(), store.Options{Log: slog.New(slog.DiscardHandler)})
				octx, stop := context.WithCancel(ctx)
				up, down := make(chan struct{}), make(chan struct{})
				go func() { defer close(down); _ = other.Run(octx, func() { close(up) }) }()
				<-up
				ok(other.Update(ctx, api.PodKind, pod("ns", "changed", "n2"), changed.Revision, 0))
				ok(other.Create(ctx, api.PodKind, pod("ns", "new", "n2"), 0))
				last := ok(other.Delete(ctx, api.PodKind, gone.Key, gone.Revision))
				stop()
				<-down
				if compact {
					if err := f.Compact(ctx, last.Revision); err != nil {
						t.Fatal(err)
					}
				}
				again()
				if err := s.Sync(ctx); err != nil {
					t.Fatal(err)
				}
				if s.Revision() != last.Revision {
					t.Errorf("revision %d after Sync, want %d", s.Revision(), last.Revision)
				}
				snap := s.Snapshot(api.PodKind)
				if got := strings.Join(names(snap.All("", api.Key{})), " "); got != "ns/changed ns/kept ns/new" {
					t.Error("objects are", got)
				}
				if got := strings.Join(names(snap.Indexed("spec.nodeName", "n1")), " "); got != "ns/kept" {
					t.Error("index has", got)
				}
				if snap.Get(kept.Key) != kept {
					t.Error("an unchanged object was published again")
				}
				evs, rev, err := w.Next(ctx)
				if len(evs) != 3 || rev != last.Revision || err != nil || evs[0].Old != changed || !evs[2].Deleted || evs[2].Entry.Key != gone.Key {
					t.Errorf("watcher sees %v up to %d, %v", evs, rev, err)
				}
				if _, err = s.Watch(api.PodKind, start, 0); compact != errors.Is(err, store.ErrCompacted) {
					t.Errorf("watch across the gap: %v", err)
				}
				if _, err = s.Watch(api.PodKind, last.Revision, 0); err != nil {
					t.Error("watch after the gap:", err)
				}
			})
		})
	}
}

func TestUnknownOutcomeIsNotRetried(t *testing.T) {
	t.Parallel()
	f := newFaulty()
	bubble(t, func() store.Backend { return f }, store.Options{}, func(t *testing.T, s *store.Store) {
		f.mu.Lock()
		f.lose = true
		f.mu.Unlock()
		_, err := s.Create(t.Context(), api.PodKind, pod("ns", "a", ""), 0)
		isErr(t, "lost answer", err, store.ErrUnknown)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.puts != 1 {
			t.Errorf("written %d times", f.puts)
		}
	})
}

// A write that ends while the feed is held up says that its revision was not seen.
func TestWriteOutlivesContext(t *testing.T) {
	t.Parallel()
	f := newFaulty()
	bubble(t, func() store.Backend { return f }, store.Options{}, func(t *testing.T, s *store.Store) {
		again := f.interrupt()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Create(ctx, api.PodKind, pod("ns", "a", ""), 0)
		isErr(t, "held feed", err, context.DeadlineExceeded)
		again()
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.Snapshot(api.PodKind).Len() != 1 {
			t.Error("the write is lost")
		}
	})
}

// Strange keys and unreadable values are left alone, and hide nothing else.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	b := memory.New(true)
	put := func(t *testing.T, key, value string, want api.Revision) api.Revision {
		rev, err := b.Put(t.Context(), key, []byte(value), want, 0)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	for _, key := range []string{"/registry/pods/x", "/registry/pods/a/b/c", "/registry/podz/a/b", "/registry/nodes/n", "/registry/", "/other", "compact_rev_key"} {
		put(t, key, "strange", 0)
	}
	bad := api.Key{Namespace: "ns", Name: "bad"}
	rev := put(t, "/registry/pods/ns/bad", "k8s\x00garbage", 0)
	put(t, "/registry/pods/ns/json", `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"ns","name":"json"}}`, 0)
	put(t, "/registry/pods/ns/alien", `{"apiVersion":"v9","kind":"Pod","metadata":{"namespace":"ns","name":"alien"}}`, 0)
	put(t, "/registry/pods/ns/liar", `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"ns","name":"other"}}`, 0)
	bubble(t, func() store.Backend { return b }, store.Options{}, func(t *testing.T, s *store.Store) {
		snap := s.Snapshot(api.PodKind)
		if got := strings.Join(names(snap.All("", api.Key{})), " "); got != "ns/json" || snap.Len() != 1 {
			t.Errorf("%d objects: %s", snap.Len(), got)
		}
		for _, name := range []string{"bad", "alien", "liar"} {
			e := snap.Get(api.Key{Namespace: "ns", Name: name})
			if e == nil || e.Err() == nil || e.Object != nil {
				t.Errorf("%s reads as %v", name, e)
			}
		}
		w := must[*store.Watch](t)(s.Watch(api.PodKind, s.Revision(), 0))
		put(t, "/registry/pods/ns/bad", `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"ns","name":"bad"}}`, rev)
		evs, _, err := w.Next(t.Context())
		if err != nil || len(evs) != 1 || evs[0].Old != nil || evs[0].Entry.Err() != nil {
			t.Errorf("mended: %v, %v", evs, err)
		}
		put(t, "/registry/pods/ns/bad", "{", evs[0].Revision())
		evs, _, err = w.Next(t.Context())
		if err != nil || len(evs) != 1 || !evs[0].Deleted || evs[0].Entry.Object == nil {
			t.Errorf("broken: %v, %v", evs, err)
		}
		e := s.Snapshot(api.PodKind).Get(bad)
		if _, err := s.Delete(t.Context(), api.PodKind, bad, e.Revision); err != nil {
			t.Error("delete what cannot be read:", err)
		}
		if s.Snapshot(api.PodKind).Get(bad) != nil {
			t.Error("still there")
		}
	})
}

func TestDetector(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := store.New(memory.New(false), api.Stored(), store.Options{Log: slog.New(slog.DiscardHandler), Detect: true})
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(ready) }) }()
		<-ready
		e := must[*store.Entry](t)(s.Create(ctx, api.PodKind, pod("ns", "a", ""), 0))
		e.Object.(*corev1.Pod).Spec.NodeName = "changed"
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "Pod ns/a") {
			t.Errorf("got %v", err)
		}
	})
}

// Each format is encoded once, whoever asks.
func TestBytes(t *testing.T) {
	t.Parallel()
	bubble(t, fresh, store.Options{}, func(t *testing.T, s *store.Store) {
		e := must[*store.Entry](t)(s.Create(t.Context(), api.PodKind, pod("ns", "a", "n"), 0))
		for _, f := range []store.Format{store.JSON, store.Protobuf} {
			var wg sync.WaitGroup
			got := make([][]byte, 8)
			for i := range got {
				wg.Go(func() { got[i], _ = e.Bytes(f) })
			}
			wg.Wait()
			for _, b := range got {
				if len(b) == 0 || &b[0] != &got[0][0] {
					t.Fatal("encoded more than once")
				}
			}
		}
		j, _ := e.Bytes(store.JSON)
		p := new(corev1.Pod)
		if _, err := api.DecodeJSON(j, p); err != nil || p.ResourceVersion != e.Revision.String() || p.Spec.NodeName != "n" {
			t.Errorf("%s: %v", j, err)
		}
	})
}

// One that took another's place while the watch was broken is told as what it is: the other is gone, and it is new.
func TestRecreatedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFaulty()
	bubble(t, func() store.Backend { return f }, store.Options{}, func(t *testing.T, s *store.Store) {
		ctx, ok := t.Context(), must[*store.Entry](t)
		one, two := pod("ns", "p", "n1"), pod("ns", "p", "n2")
		one.UID, two.UID = "1", "2"
		old := ok(s.Create(ctx, api.PodKind, one, 0))
		w := must[*store.Watch](t)(s.Watch(api.PodKind, s.Revision(), 0))
		again := f.interrupt()
		synctest.Wait()
		other := store.New(f.Backend, api.Stored(), store.Options{Log: slog.New(slog.DiscardHandler)})
		octx, stop := context.WithCancel(ctx)
		up, down := make(chan struct{}), make(chan struct{})
		go func() { defer close(down); _ = other.Run(octx, func() { close(up) }) }()
		<-up
		ok(other.Delete(ctx, api.PodKind, old.Key, old.Revision))
		now := ok(other.Create(ctx, api.PodKind, two, 0))
		stop()
		<-down
		if err := f.Compact(ctx, now.Revision); err != nil {
			t.Fatal(err)
		}
		again()
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		evs, _, err := w.Next(ctx)
		if err != nil || len(evs) != 2 {
			t.Fatalf("%+v %v", evs, err)
		}
		if gone, came := evs[0], evs[1]; !gone.Deleted || gone.Old != old || gone.Revision() >= came.Revision() || came.Deleted || came.Old != nil || came.Revision() != now.Revision {
			t.Errorf("%+v, %+v", gone, came)
		}
		snap := s.Snapshot(api.PodKind)
		if got := names(snap.Indexed("spec.nodeName", "n1")); len(got) != 0 || len(names(snap.Indexed("spec.nodeName", "n2"))) != 1 {
			t.Errorf("index has %v", got)
		}
	})
}
