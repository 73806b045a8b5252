package store

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Who has seen a Snapshot can go on from it, although the feed has not said yet that its revision was reached.
func TestAhead(t *testing.T) {
	t.Parallel()
	s := New(nil, []*api.Kind{api.PodKind}, Options{Log: slog.New(slog.DiscardHandler)})
	key := api.Key{Namespace: "ns", Name: "p"}
	e := entry(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}, key, 5)
	s.held.Load().tables[api.PodKind].publish(5, []Event{{Entry: e}}, false) // as the feed does, before it tells
	seen := s.Snapshot(api.PodKind)
	if seen.Revision() != 5 || s.Revision() != 0 {
		t.Fatalf("snapshot of %d, the store is at %d", seen.Revision(), s.Revision())
	}
	w, err := s.Watch(api.PodKind, seen.Revision(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if evs, rev, err := w.Ready(); len(evs) != 0 || rev != 5 || err != nil {
		t.Errorf("%v up to %d, %v", evs, rev, err)
	}
	if again, err := s.SnapshotAt(t.Context(), api.PodKind, seen.Revision()); err != nil || again.Len() != 1 {
		t.Errorf("%d objects, %v", again.Len(), err)
	}
	if _, err := s.Watch(api.PodKind, 6, 0); err == nil {
		t.Error("a watch from the future")
	}
}
