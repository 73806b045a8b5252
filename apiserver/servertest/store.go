// Package servertest gives tests of the API server's parts a store in memory.
package servertest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// Store returns a running store in memory, of the built-in kinds and of more, that fails the test when a published object is
// changed.
func Store(t testing.TB, more ...*api.Kind) *store.Store {
	t.Helper()
	kinds := api.Stored()
	for _, k := range more {
		if !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	s := store.New(memory.New(false), kinds, store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1, Detect: true})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-ready
	return s
}

// Put stores objects as they are, in place of those of the same name. Objects without a UID get one.
func Put(t testing.TB, s *store.Store, os ...api.Object) {
	t.Helper()
	for _, o := range os {
		PutAs(t, s, api.KindOf(o), o)
	}
}

// PutAs stores objects of kind k as they are.
func PutAs(t testing.TB, s *store.Store, k *api.Kind, os ...api.Object) {
	t.Helper()
	for _, o := range os {
		o.GetObjectKind().SetGroupVersionKind(k.GVK())
		if o.GetUID() == "" {
			o.SetUID(uuid.NewUUID())
		}
		var err error
		if e := s.Snapshot(k).Get(api.KeyOf(o)); e != nil {
			_, err = s.Update(t.Context(), k, o, e.Revision, 0)
		} else {
			_, err = s.Create(t.Context(), k, o, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Remove deletes an object.
func Remove(t testing.TB, s *store.Store, o api.Object) {
	t.Helper()
	k := api.KindOf(o)
	e := s.Snapshot(k).Get(api.KeyOf(o))
	if e == nil {
		t.Fatalf("remove %v %s: not there", k, api.KeyOf(o))
	}
	if _, err := s.Delete(t.Context(), k, e.Key, e.Revision); err != nil {
		t.Fatal(err)
	}
}
