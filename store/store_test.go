package store_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

func pod(ns, name, node string, owners ...types.UID) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: node}}
	p.Namespace, p.Name = ns, name
	for _, uid := range owners {
		p.OwnerReferences = append(p.OwnerReferences, metav1.OwnerReference{UID: uid})
	}
	return p
}

func nodeName(o api.Object) string { return o.(*corev1.Pod).Spec.NodeName }

// bubble runs f with a Store over b in a synctest bubble, and checks at the end that no published object was changed.
func bubble(t *testing.T, newBackend func() store.Backend, o store.Options, f func(t *testing.T, s *store.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Log = slog.New(slog.DiscardHandler)
		o.Detect = true
		o.Indexes = map[*api.Kind]map[string]func(api.Object) string{api.PodKind: {"spec.nodeName": nodeName}}
		s := store.New(newBackend(), api.Stored(), o)
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(ready) }) }()
		<-ready
		f(t, s)
		cancel()
		if err := <-done; err != nil {
			t.Error("store stopped:", err)
		}
	})
}

func fresh() store.Backend { return memory.New(true) }

func names(seq iter.Seq[*store.Entry]) []string {
	var out []string
	for e := range seq {
		out = append(out, e.Key.String())
	}
	return out
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestWrites(t *testing.T) {
	t.Parallel()
	bubble(t, fresh, store.Options{}, func(t *testing.T, s *store.Store) {
		ctx, ok := t.Context(), must[*store.Entry](t)
		p := pod("default", "a", "")
		p.ResourceVersion = "17"
		e := ok(s.Create(ctx, api.PodKind, p, 0))
		if e.Object != api.Object(p) {
			t.Error("what is published is not the writer's object")
		}
		if p.ResourceVersion != e.Revision.String() || p.Kind != "Pod" || p.APIVersion != "v1" {
			t.Errorf("published with %q, %q, %q", p.ResourceVersion, p.Kind, p.APIVersion)
		}
		if got := s.Snapshot(api.PodKind).Get(e.Key); got != e {
			t.Error("the write is not published when it returns")
		}
		_, err := s.Create(ctx, api.PodKind, pod("default", "a", ""), 0)
		isErr(t, "create again", err, store.ErrConflict)
		_, err = s.Update(ctx, api.PodKind, pod("default", "a", "n"), e.Revision+1, 0)
		isErr(t, "update at a wrong revision", err, store.ErrConflict)
		_, err = s.Update(ctx, api.PodKind, pod("default", "a", "n"), 0, 0)
		isErr(t, "update without a revision", err, store.ErrConflict)
		e2 := ok(s.Update(ctx, api.PodKind, pod("default", "a", "n"), e.Revision, 0))
		if e2.Revision <= e.Revision || p.Spec.NodeName != "" {
			t.Error("update changed what was published before")
		}
		_, err = s.Delete(ctx, api.PodKind, e.Key, e.Revision)
		isErr(t, "delete at a wrong revision", err, store.ErrConflict)
		gone := ok(s.Delete(ctx, api.PodKind, e.Key, e2.Revision))
		if gone.Object.GetResourceVersion() != gone.Revision.String() || gone.Revision <= e2.Revision {
			t.Errorf("deleted at %d with resourceVersion %s", gone.Revision, gone.Object.GetResourceVersion())
		}
		if e2.Object.GetResourceVersion() != e2.Revision.String() {
			t.Error("deletion changed what was published before")
		}
		_, err = s.Delete(ctx, api.PodKind, e.Key, e2.Revision)
		isErr(t, "delete again", err, store.ErrNotFound)
		if s.Snapshot(api.PodKind).Len() != 0 {
			t.Error("still there")
		}
	})
}

func isErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: got error %v, want %v", what, got, want)
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	bubble(t, fresh, store.Options{}, func(t *testing.T, s *store.Store) {
		ctx, ok := t.Context(), must[*store.Entry](t)
		for _, p := range []*corev1.Pod{pod("b", "2", "n1", "u1"), pod("a", "1", "n1"), pod("b", "1", "n2", "u1", "u2"), pod("c", "1", "", "u2")} {
			ok(s.Create(ctx, api.PodKind, p, 0))
		}
		before := s.Snapshot(api.PodKind)
		b1 := before.Get(api.Key{Namespace: "b", Name: "1"})
		ok(s.Update(ctx, api.PodKind, pod("b", "1", "n1", "u2"), b1.Revision, 0))
		ok(s.Delete(ctx, api.PodKind, api.Key{Namespace: "a", Name: "1"}, before.Get(api.Key{Namespace: "a", Name: "1"}).Revision))
		after := s.Snapshot(api.PodKind)
		none := api.Key{}
		for _, tt := range []struct {
			what string
			got  iter.Seq[*store.Entry]
			want string
		}{
			{"all", before.All("", none), "a/1 b/1 b/2 c/1"},
			{"all, later", after.All("", none), "b/1 b/2 c/1"},
			{"namespace", before.All("b", none), "b/1 b/2"},
			{"after", before.All("", api.Key{Namespace: "b", Name: "1"}), "b/2 c/1"},
			{"after what is gone", after.All("", api.Key{Namespace: "a", Name: "1"}), "b/1 b/2 c/1"},
			{"namespace, after", before.All("b", api.Key{Namespace: "b", Name: "1"}), "b/2"},
			{"no such namespace", before.All("bb", none), ""},
			{"owner", before.Owned("u1"), "b/1 b/2"},
			{"owner, later", after.Owned("u1"), "b/2"},
			{"kept owner", after.Owned("u2"), "b/1 c/1"},
			{"node", before.Indexed("spec.nodeName", "n1"), "a/1 b/2"},
			{"node, later", after.Indexed("spec.nodeName", "n1"), "b/1 b/2"},
			{"node without pods", after.Indexed("spec.nodeName", "n2"), ""},
		} {
			if got := strings.Join(names(tt.got), " "); got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.what, got, tt.want)
			}
		}
		if before.Len() != 4 || after.Len() != 3 || after.Revision() != s.Revision() {
			t.Error("lengths or revision are wrong")
		}
	})
}

// What SnapshotAt takes from events, from the database and from what was kept at the time is the same.
func TestSnapshotAt(t *testing.T) {
	t.Parallel()
	for _, window := range []int{1, 5, 1000} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			t.Parallel()
			bubble(t, fresh, store.Options{Window: window}, func(t *testing.T, s *store.Store) {
				ctx, ok := t.Context(), must[*store.Entry](t)
				var kept []store.Snapshot
				for i := range 40 {
					key := api.Key{Namespace: "ns", Name: fmt.Sprint(i * 7 % 5)}
					now := pod(key.Namespace, key.Name, fmt.Sprint("n", i%3), types.UID(fmt.Sprint("u", i%4)))
					e := s.Snapshot(api.PodKind).Get(key)
					switch {
					case e == nil:
						ok(s.Create(ctx, api.PodKind, now, 0))
					case i%4 == 0:
						ok(s.Delete(ctx, api.PodKind, key, e.Revision))
					default:
						ok(s.Update(ctx, api.PodKind, now, e.Revision, 0))
					}
					kept = append(kept, s.Snapshot(api.PodKind))
				}
				for _, want := range kept {
					got := must[store.Snapshot](t)(s.SnapshotAt(ctx, api.PodKind, want.Revision()))
					if d := cmp.Diff(dump(want), dump(got)); d != "" {
						t.Fatalf("revision %d: %s", want.Revision(), d)
					}
				}
				_, err := s.SnapshotAt(ctx, api.PodKind, s.Revision()+1)
				isErr(t, "future", err, store.ErrFuture)
			})
		})
	}
}

func dump(s store.Snapshot) map[string][]string {
	m := map[string][]string{}
	for e := range s.All("", api.Key{}) {
		m["all"] = append(m["all"], e.Key.String()+"@"+e.Object.GetResourceVersion())
	}
	for i := range 4 {
		m[fmt.Sprint("node", i)] = names(s.Indexed("spec.nodeName", fmt.Sprint("n", i)))
		m[fmt.Sprint("owner", i)] = names(s.Owned(types.UID(fmt.Sprint("u", i))))
	}
	return m
}

func TestWatch(t *testing.T) {
	t.Parallel()
	bubble(t, fresh, store.Options{Window: 4}, func(t *testing.T, s *store.Store) {
		ctx, ok := t.Context(), must[*store.Entry](t)
		start := s.Revision()
		w := must[*store.Watch](t)(s.Watch(api.PodKind, start, 0))
		lazy := must[*store.Watch](t)(s.Watch(api.PodKind, start, 2))
		e := ok(s.Create(ctx, api.PodKind, pod("ns", "a", ""), 0))
		e2 := ok(s.Update(ctx, api.PodKind, pod("ns", "a", "n"), e.Revision, 0))
		gone := ok(s.Delete(ctx, api.PodKind, e.Key, e2.Revision))
		want := []store.Event{{Entry: e}, {Entry: e2, Old: e}, {Entry: gone, Old: e2, Deleted: true}}
		evs, rev, err := w.Next(ctx)
		if err != nil || rev != s.Revision() || !sameEvents(evs, want) {
			t.Errorf("live: %v up to %d, %v", evs, rev, err)
		}
		again := must[*store.Watch](t)(s.Watch(api.PodKind, e.Revision, 0))
		if evs, _, _ := again.Next(ctx); !sameEvents(evs, want[1:]) {
			t.Errorf("from the past: %v", evs)
		}
		_, _, err = lazy.Next(ctx)
		isErr(t, "three behind, limit two", err, store.ErrSlow)
		_, err = s.Watch(api.PodKind, s.Revision()+1, 0)
		isErr(t, "future", err, store.ErrFuture)

		// Changes of other kinds are progress.
		cm := &corev1.ConfigMap{}
		cm.Name, cm.Namespace = "c", "ns"
		other := ok(s.Create(ctx, api.ConfigMapKind, cm, 0))
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, rev, err := w.Next(soon); !errors.Is(err, context.DeadlineExceeded) || rev != other.Revision {
			t.Errorf("progress is %d, want %d; %v", rev, other.Revision, err)
		}
		for i := range 20 {
			ok(s.Create(ctx, api.PodKind, pod("ns", fmt.Sprint(i), ""), 0))
		}
		_, _, err = w.Next(ctx)
		isErr(t, "out of the window", err, store.ErrSlow)
		_, err = s.Watch(api.PodKind, start, 0)
		isErr(t, "from before the window", err, store.ErrCompacted)
	})
}

func sameEvents(got, want []store.Event) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		if got[i] != want[i] {
			return false
		}
	}
	return true
}

// Many writers and readers at once: every reader sees every change once, in order, and ends in the same state.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	bubble(t, fresh, store.Options{}, func(t *testing.T, s *store.Store) {
		const writers, rounds, watchers = 8, 60, 5
		ctx, cancel := context.WithCancel(t.Context())
		var readers, wg sync.WaitGroup
		views := make([]map[api.Key]*store.Entry, watchers)
		for i := range watchers {
			w := must[*store.Watch](t)(s.Watch(api.PodKind, s.Revision(), 0))
			readers.Go(func() { views[i] = follow(t, ctx, w) })
		}
		for w := range writers {
			wg.Go(func() { churn(t, s, w, rounds) })
		}
		wg.Wait()
		synctest.Wait()
		cancel()
		readers.Wait()
		want := map[api.Key]*store.Entry{}
		for e := range s.Snapshot(api.PodKind).All("", api.Key{}) {
			want[e.Key] = e
		}
		for i, got := range views {
			if len(got) != len(want) {
				t.Errorf("reader %d sees %d objects, want %d", i, len(got), len(want))
			}
			for k, e := range want {
				if got[k] != e {
					t.Errorf("reader %d sees another %v", i, k)
				}
			}
		}
	})
}

func follow(t *testing.T, ctx context.Context, w *store.Watch) map[api.Key]*store.Entry {
	view := map[api.Key]*store.Entry{}
	var last api.Revision
	for {
		evs, rev, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return view
		}
		for _, ev := range evs {
			if ev.Revision() <= last || ev.Old != view[ev.Entry.Key] {
				t.Errorf("event of revision %d after %d does not follow", ev.Revision(), last)
			}
			last = ev.Revision()
			view[ev.Entry.Key] = ev.Entry
			if ev.Deleted {
				delete(view, ev.Entry.Key)
			}
		}
		if rev < last {
			t.Errorf("told up to %d, which is before %d", rev, last)
		}
	}
}

// churn writes a few keys that all writers share, with bytes that they share too.
func churn(t *testing.T, s *store.Store, w, rounds int) {
	for i := range rounds {
		key := api.Key{Namespace: "ns", Name: fmt.Sprint((i + w) % 4)}
		e := s.Snapshot(api.PodKind).Get(key)
		now := pod(key.Namespace, key.Name, fmt.Sprint("n", i%2))
		var got *store.Entry
		var err error
		switch {
		case e == nil:
			got, err = s.Create(t.Context(), api.PodKind, now, 0)
		case i%5 == 0:
			got, err = s.Delete(t.Context(), api.PodKind, key, e.Revision)
		default:
			got, err = s.Update(t.Context(), api.PodKind, now, e.Revision, 0)
		}
		if err != nil {
			if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
				t.Error(err)
			}
			continue
		}
		if got.Object.GetResourceVersion() != got.Revision.String() {
			t.Errorf("entry of %d says %s", got.Revision, got.Object.GetResourceVersion())
		}
	}
}

func TestTTL(t *testing.T) {
	t.Parallel()
	bubble(t, func() store.Backend { return memory.New(false) }, store.Options{}, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		ev := &corev1.Event{}
		ev.Namespace, ev.Name = "ns", "e"
		must[*store.Entry](t)(s.Create(ctx, api.EventKind, ev, time.Hour))
		time.Sleep(time.Hour - time.Second)
		if s.Snapshot(api.EventKind).Len() != 1 {
			t.Error("gone too early")
		}
		time.Sleep(time.Minute)
		if s.Snapshot(api.EventKind).Len() != 0 {
			t.Error("still there after its time")
		}
	})
}

func TestKeep(t *testing.T) {
	t.Parallel()
	bubble(t, func() store.Backend { return memory.New(false) }, store.Options{Keep: 5 * time.Minute}, func(t *testing.T, s *store.Store) {
		ctx := t.Context()
		time.Sleep(90 * time.Second) // amid a step
		start := s.Revision()
		ev := &corev1.Event{}
		ev.Namespace, ev.Name = "ns", "e"
		must[*store.Entry](t)(s.Create(ctx, api.EventKind, ev, 0))
		time.Sleep(5*time.Minute - time.Second)
		_, err := s.Watch(api.EventKind, start, 0)
		isErr(t, "watch from a while ago", err, nil)
		_, err = s.SnapshotAt(ctx, api.EventKind, start)
		isErr(t, "list at a revision of a while ago", err, nil)
		time.Sleep(time.Minute + 2*time.Second)
		_, err = s.Watch(api.EventKind, start, 0)
		isErr(t, "watch from long ago", err, store.ErrCompacted)
		_, err = s.SnapshotAt(ctx, api.EventKind, start)
		isErr(t, "list at a revision of long ago", err, store.ErrCompacted)
	})
}

// An object that a writer in this process left in memory is the one that others read: to the second.
func TestTimes(t *testing.T) {
	bubble(t, fresh, store.Options{}, func(t *testing.T, s *store.Store) {
		p := pod("ns", "a", "")
		at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
		p.Status.StartTime = &at
		e, err := s.Create(t.Context(), api.PodKind, p, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Object.(*corev1.Pod).Status.StartTime; got.Nanosecond() != 0 || at.Nanosecond() == 0 {
			t.Errorf("started %v, written as %v", got.Time, at.Time)
		}
	})
}
