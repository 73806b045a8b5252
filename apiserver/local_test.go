package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// inBubble runs f with a server in a synctest bubble.
func inBubble(t *testing.T, o store.Options, f func(t *testing.T, ctx context.Context, s *apiserver.Server)) {
	t.Helper()
	overDatabase(t, func() store.Backend { return memory.New(true) }, o, f)
}

// overDatabase is inBubble with a database made in there.
func overDatabase(t *testing.T, db func() store.Backend, o store.Options, f func(t *testing.T, ctx context.Context, s *apiserver.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Log, o.Detect = slog.New(slog.NewTextHandler(io.Discard, nil)), true
		st := store.New(db(), api.Stored(), o)
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour) // of the bubble
		up, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- st.Run(ctx, func() { close(up) }) }()
		<-up
		s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: st, Resources: resources(), Authorizer: allow{}, Log: o.Log})
		if err != nil {
			t.Fatal(err)
		}
		f(t, ctx, s)
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestLocalClient(t *testing.T) {
	inBubble(t, store.Options{}, func(t *testing.T, ctx context.Context, s *apiserver.Server) {
		c := s.ClientAs(&authn.User{Name: "system:kube-scheduler"})
		key := api.Key{Namespace: "default", Name: "cm-000001"}
		made, err := client.Create(ctx, c, configMap(1))
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Get[*corev1.ConfigMap](ctx, c, key)
		if err != nil || got != made {
			t.Error("Get copies", err)
		}
		if m := made.ManagedFields; len(m) != 1 || m[0].Manager != "kube-scheduler" {
			t.Error(m)
		}
		next, err := client.Mutate(ctx, c, got, "", func(o *corev1.ConfigMap) { o.Data["n"] = "1" })
		if err != nil || got.Data["n"] != "" {
			t.Error(err)
		}
		if _, err := client.Mutate(ctx, c, got, "", func(o *corev1.ConfigMap) { o.Data["n"] = "2" }); !apierrors.IsConflict(err) {
			t.Error(err)
		}
		if _, err := c.Patch(ctx, api.ConfigMapKind, key, client.Patch{Type: types.MergePatchType, Data: []byte(`{"data":{"p":"q"}}`)}); err != nil {
			t.Error(err)
		}
		if err := c.Delete(ctx, next, client.DeleteOptions{}); !apierrors.IsConflict(err) {
			t.Error("a stale object was deleted:", err)
		}
		if err := c.Delete(ctx, next, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Error(err)
		}
		reader := s.ClientAs(&authn.User{Name: "reader"})
		if _, err := client.Create(ctx, reader, configMap(2)); !apierrors.IsForbidden(err) {
			t.Error(err)
		}
		for _, err := range s.ClientAs(&authn.User{Name: "nobody"}).Watch(ctx, api.ConfigMapKind, client.Query{}, 0) {
			if !apierrors.IsForbidden(err) {
				t.Error(err)
			}
		}
	})
}

func TestLocalScale(t *testing.T) {
	inBubble(t, store.Options{}, func(t *testing.T, ctx context.Context, s *apiserver.Server) {
		c := s.ClientAs(&authn.User{Name: "u"})
		if _, err := client.Create(ctx, c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}}); err != nil {
			t.Fatal(err)
		}
		scale, err := c.GetScale(ctx, api.DeploymentKind, api.Key{Namespace: "default", Name: "d"})
		if err != nil || scale.Spec.Replicas != 1 {
			t.Fatal(scale, err)
		}
		scale.Spec.Replicas = 0
		if scale, err = c.UpdateScale(ctx, api.DeploymentKind, scale); err != nil || scale.Spec.Replicas != 0 {
			t.Error(scale, err)
		}
		if _, err := c.GetScale(ctx, api.ConfigMapKind, api.Key{Namespace: "default", Name: "d"}); !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// tell renders an event.
func tell(ev client.Event) string {
	if ev.Op == client.Synced {
		return "synced"
	}
	s := map[client.Op]string{client.Added: "+", client.Modified: "~", client.Deleted: "-"}[ev.Op] + ev.Object.GetName()
	if ev.Op == client.Modified && ev.Old == nil {
		s += "(old unknown)"
	}
	return s
}

// A reader that fell behind what the store keeps still learns every net change, once.
func TestLocalWatchBridgesGaps(t *testing.T) {
	inBubble(t, store.Options{Window: 4}, func(t *testing.T, ctx context.Context, s *apiserver.Server) {
		c := s.ClientAs(&authn.User{Name: "u"})
		create := func(i int) *corev1.ConfigMap {
			cm, err := client.Create(ctx, c, configMap(i))
			if err != nil {
				t.Fatal(err)
			}
			return cm
		}
		kept, gone := create(0), create(1)
		state := map[string]string{}
		synced, steps := false, 0
		for ev, err := range c.Watch(ctx, api.ConfigMapKind, client.Query{Namespace: "default"}, 0) {
			if err != nil {
				t.Fatal(err)
			}
			steps++
			if ev.Op == client.Synced {
				synced = true
				// The reader is busy while more happens than is kept.
				if _, err := client.Mutate(ctx, c, kept, "", func(o *corev1.ConfigMap) { o.Data["x"] = "y" }); err != nil {
					t.Fatal(err)
				}
				if err := c.Delete(ctx, gone, client.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				for i := 2; i < 40; i++ {
					create(i)
				}
				continue
			}
			name := ev.Object.GetName()
			if synced && name == "cm-000000" && tell(ev) != "~cm-000000" {
				t.Error(tell(ev))
			}
			state[name] = tell(ev)
			if len(state) == 40 && state["cm-000001"] == "-cm-000001" {
				break
			}
		}
		if !synced || steps != 2+1+2+38 {
			t.Errorf("%d events, %v", steps, state)
		}
		if state["cm-000000"] != "~cm-000000" {
			t.Error(fmt.Sprint(state))
		}
	})
}

// minority is a database of several servers, a majority of which may be gone.
type minority struct {
	*memory.Backend
	cut atomic.Bool
}

func (*minority) Exclusive() bool { return false }

func (m *minority) Revision(ctx context.Context) (api.Revision, error) {
	if m.cut.Load() {
		if err := run.Pause(ctx, 7*time.Second); err != nil { // as etcd
			return 0, err
		}
		return 0, store.ErrUnavailable
	}
	return m.Backend.Revision(ctx)
}

// A watch that begins, or goes on after a gap, without a majority waits for it: who watches ends with an error, and the whole process with him.
func TestLocalWatchWithoutMajority(t *testing.T) {
	var db *minority
	mk := func() store.Backend { db = &minority{Backend: memory.New(true)}; return db }
	overDatabase(t, mk, store.Options{Window: 4}, func(t *testing.T, ctx context.Context, s *apiserver.Server) {
		c := s.ClientAs(&authn.User{Name: "u"})
		lose := func() {
			db.cut.Store(true)
			time.AfterFunc(20*time.Second, func() { db.cut.Store(false) })
		}
		lose()
		begin, seen := time.Now(), 0
		for ev, err := range c.Watch(ctx, api.ConfigMapKind, client.Query{Namespace: "default"}, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if ev.Op != client.Synced {
				if seen++; seen == 40 {
					break
				}
				continue
			}
			if since := time.Since(begin); since < 20*time.Second || since > 30*time.Second {
				t.Errorf("begins after %v", since)
			}
			for i := range 40 { // more than is kept
				if _, err := client.Create(ctx, c, configMap(i)); err != nil {
					t.Fatal(err)
				}
			}
			lose()
		}
		if seen != 40 {
			t.Errorf("%d events", seen)
		}
		db.cut.Store(true)
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		for _, err := range c.Watch(ctx, api.ConfigMapKind, client.Query{}, 0) {
			t.Error("after the end:", err)
		}
		if ctx.Err() == nil {
			t.Error("ends without a majority")
		}
		db.cut.Store(false)
	})
}
