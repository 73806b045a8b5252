package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

var widgetKind = api.Custom(api.Kind{Group: "example.com", Version: "v1", Kind: "Widget", Plural: "widgets", Namespaced: true}, "")

func widget(name string, n int64) *unstructured.Unstructured {
	o := widgetKind.New().(*unstructured.Unstructured)
	o.SetNamespace("a")
	o.SetName(name)
	o.Object["n"] = n
	return o
}

// A kind that is added while the store runs has what was stored before, and is read, written and watched like any other. When it is
// removed, its watches end after their last event.
func TestAddAndRemove(t *testing.T) {
	b := memory.New(false)
	bubble(t, func() store.Backend { return b }, store.Options{}, func(t *testing.T, s *store.Store) {
		old := []byte(`{"apiVersion":"example.com/v1alpha1","kind":"Widget","metadata":{"name":"old","namespace":"a"},"n":1}`)
		if _, err := b.Put(t.Context(), widgetKind.StoreKey(api.Key{Namespace: "a", Name: "old"}), old, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), widgetKind, widget("new", 2), 0); !errors.Is(err, store.ErrRemoved) {
			t.Error("written before the kind was there:", err)
		}
		if err := s.Add(t.Context(), widgetKind); err != nil {
			t.Fatal(err)
		}
		w, err := s.Watch(widgetKind, s.Revision(), 0)
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.Create(t.Context(), widgetKind, widget("new", 2), 0)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(names(s.Snapshot(widgetKind).All("", api.Key{})), " ")
		if got != "a/new a/old" {
			t.Error("stored:", got)
		}
		if v := s.Snapshot(widgetKind).Get(api.Key{Namespace: "a", Name: "old"}).Object.GetObjectKind().GroupVersionKind().Version; v != "v1alpha1" {
			t.Error("what was stored is not kept in its version:", v)
		}
		gone, err := s.Delete(t.Context(), widgetKind, e.Key, e.Revision)
		if err != nil {
			t.Fatal(err)
		}
		if gone.Object.GetResourceVersion() == e.Object.GetResourceVersion() {
			t.Error("a deletion has the revision of the object that it deleted, whose metadata it shares")
		}
		s.Remove(widgetKind)
		evs, _, err := w.Next(t.Context())
		if err != nil || len(evs) != 2 || !evs[1].Deleted {
			t.Errorf("events %v, error %v", evs, err)
		}
		if _, _, err := w.Next(t.Context()); !errors.Is(err, store.ErrRemoved) {
			t.Error("watch of a removed kind:", err)
		}
		if n := s.Snapshot(widgetKind).Len(); n != 0 {
			t.Error("removed, but has", n)
		}
		if err := s.Add(t.Context(), widgetKind); err != nil || s.Snapshot(widgetKind).Len() != 1 {
			t.Error("added again:", err, s.Snapshot(widgetKind).Len())
		}
	})
}

// Changes that come while a kind is being added are neither lost nor told twice.
func TestAddWhileWritten(t *testing.T) {
	for round := range 20 {
		b := memory.New(true)
		bubble(t, func() store.Backend { return b }, store.Options{}, func(t *testing.T, s *store.Store) {
			write := func(ctx context.Context, name string, n int, want api.Revision) api.Revision {
				text := fmt.Appendf(nil, `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":%q,"namespace":"a"},"n":%d}`, name, n)
				rev, err := b.Put(ctx, widgetKind.StoreKey(api.Key{Namespace: "a", Name: name}), text, want, 0)
				if err != nil {
					t.Error(err)
				}
				return rev
			}
			var writers sync.WaitGroup
			last := make([]api.Revision, 4)
			for i := range last {
				writers.Go(func() {
					for n := range 20 + round {
						last[i] = write(t.Context(), fmt.Sprint("w", i), n, last[i])
					}
				})
			}
			if err := s.Add(t.Context(), widgetKind); err != nil {
				t.Fatal(err)
			}
			snap := s.Snapshot(widgetKind)
			w, err := s.Watch(widgetKind, snap.Revision(), 0)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]api.Revision{}
			for e := range snap.All("", api.Key{}) {
				seen[e.Key.Name] = e.Revision
			}
			writers.Wait()
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			evs, _, err := w.Ready()
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range evs {
				if ev.Revision() <= seen[ev.Entry.Key.Name] {
					t.Errorf("%s of revision %d after %d", ev.Entry.Key, ev.Revision(), seen[ev.Entry.Key.Name])
				}
				seen[ev.Entry.Key.Name] = ev.Revision()
			}
			for i, rev := range last {
				if got := seen[fmt.Sprint("w", i)]; got != rev {
					t.Errorf("w%d is told as of %d, was written at %d", i, got, rev)
				}
			}
		})
	}
}
