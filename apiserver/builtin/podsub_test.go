package builtin

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// contended is a database in which somebody else has always just written the pod, so many times.
type contended struct {
	store.Backend
	times int
}

func (b *contended) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if want != 0 && b.times > 0 {
		b.times--
		rev, err := b.Revision(ctx)
		if err != nil {
			return 0, err
		}
		return rev, store.ErrConflict
	}
	return b.Backend.Put(ctx, key, value, want, ttl)
}

// A binding that others were always faster than is a conflict, and none that was made.
func TestBindContended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &contended{Backend: memory.New(true)}
		s := store.New(db, api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1})
		ctx, cancel := context.WithCancel(t.Context())
		up, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(up) }) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		<-up
		e, err := s.Create(ctx, api.PodKind, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		to := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Target: corev1.ObjectReference{Name: "n"}}
		for times, want := range map[int]bool{bindAttempts - 1: true, bindAttempts: false} {
			db.times = times
			begin := time.Now()
			st, err := Deps{Store: s}.assign(ctx, e.Object.(*corev1.Pod), to, false)
			node := s.Snapshot(api.PodKind).Get(e.Key).Object.(*corev1.Pod).Spec.NodeName
			if want != (err == nil) || want != (node == "n") || !want && !apierrors.IsConflict(err) {
				t.Errorf("after %d conflicts: %+v %v, on node %q", times, st, err, node)
			}
			if took := time.Since(begin); took != (bindAttempts-1)*bindPause {
				t.Errorf("took %v", took)
			}
			if !want {
				continue
			}
			// As it was.
			back := e.Object.DeepCopyObject().(*corev1.Pod)
			if e, err = s.Update(ctx, api.PodKind, back, s.Snapshot(api.PodKind).Get(e.Key).Revision, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}
