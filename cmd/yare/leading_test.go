package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

type allowed struct{}

func (allowed) Authorize(context.Context, *authz.Attributes) (bool, string, error) {
	return true, "", nil
}

// theirs is a database that one server has to itself until there are others, and that it may be cut off from.
type theirs struct {
	*memory.Backend
	shared *atomic.Bool
	cut    atomic.Bool
	held   atomic.Pointer[chan struct{}] // what takes the fence waits for it, as a process that is paused
}

func (b *theirs) Exclusive() bool { return !b.shared.Load() }

// Range reads also for who is to end but has not noticed yet.
func (b *theirs) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	return b.Backend.Range(context.WithoutCancel(ctx), from, end, limit, at)
}

func (b *theirs) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if hold := b.held.Load(); hold != nil && strings.HasPrefix(key, "/yare/leaders/") {
		<-*hold
		ctx = context.WithoutCancel(ctx) // it has not noticed yet
	}
	if b.cut.Load() {
		return 0, store.ErrUnavailable
	}
	return b.Backend.Put(ctx, key, value, want, ttl)
}

// leader is a server of which only that works which one of several does.
type leader struct {
	*server
	db    *theirs
	leads chan context.Context // each time that it begins to
	stop  func()
}

func newLeader(t *testing.T, name string, m *memory.Backend, shared *atomic.Bool) *leader {
	t.Helper()
	return newLeaderOn(t, name, &theirs{Backend: m, shared: shared})
}

func newLeaderOn(t *testing.T, name string, db *theirs) *leader {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	l := &leader{db: db, leads: make(chan context.Context, 10)}
	l.server = newServer(Config{NodeName: name}, nil, log, &notifier{})
	l.store = store.New(l.db, api.Stored(), store.Options{Log: log, Indexes: rest.Indexes(), Keep: -1})
	var err error
	l.api, err = apiserver.New(apiserver.Config{}, apiserver.Deps{Store: l.store, Authorizer: allowed{}, Log: log,
		Resources: builtin.All(builtin.Deps{Store: l.store, Access: allowed{}})})
	if err != nil {
		t.Fatal(err)
	}
	led := l.leading("kube-scheduler", func() (run.Component, error) {
		return run.Func("led", func(ctx context.Context, ready func()) error {
			ready()
			l.leads <- ctx
			<-ctx.Done()
			return nil
		}), nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() { done <- run.InOrder(name, l.store, led).Run(ctx, func() { close(ready) }) }()
	<-ready
	l.stop = func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(name, err)
		}
	}
	return l
}

// write is one of what is led, as of when it began.
func (l *leader) write(ctx context.Context, name string) error {
	m := &corev1.ConfigMap{}
	m.Namespace, m.Name = "default", name
	_, err := l.store.Create(context.WithoutCancel(ctx), api.ConfigMapKind, m, 0)
	return err
}

// namespaces makes those that leases and tests need.
func (l *leader) namespaces(t *testing.T) {
	t.Helper()
	for _, name := range []string{"default", "kube-system"} {
		ns := &corev1.Namespace{}
		ns.Name = name
		if _, err := client.Create(t.Context(), l.admin(), ns); err != nil {
			t.Fatal(err)
		}
	}
}

// One server leads without a lease; it takes it, without a break, before there is another one. Who is cut off ends what it leads before the other one begins, and what
// it still writes afterwards comes to nothing. It leads again when the other one ends.
func TestLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, shared := memory.New(true), &atomic.Bool{}
		a := newLeader(t, "a", m, shared)
		a.namespaces(t)
		first := <-a.leads
		key := api.Key{Namespace: "kube-system", Name: "kube-scheduler"}
		if _, err := client.Get[*coordinationv1.Lease](t.Context(), a.admin(), key); !apierrors.IsNotFound(err) {
			t.Errorf("alone, with a lease: %v", err)
		}
		if err := a.share(t.Context()); err != nil {
			t.Fatal(err)
		}
		shared.Store(true)
		if first.Err() != nil || len(a.leads) > 0 {
			t.Error("a break")
		}
		if _, err := client.Get[*coordinationv1.Lease](t.Context(), a.admin(), key); err != nil {
			t.Error(err)
		}
		b := newLeader(t, "b", m, shared)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.leads) > 0 || first.Err() != nil {
			t.Fatal("two lead")
		}
		if err := a.write(first, "of-a"); err != nil {
			t.Error(err)
		}
		a.db.cut.Store(true)
		second := <-b.leads
		if first.Err() == nil {
			t.Error("the other one begins before the first has ended")
		}
		a.db.cut.Store(false)
		if err := a.write(first, "late"); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a late write: %v", err)
		}
		if err := b.write(second, "of-b"); err != nil {
			t.Error(err)
		}
		b.stop()
		third := <-a.leads
		if err := a.write(third, "again"); err != nil {
			t.Error(err)
		}
		if err := b.write(second, "late-of-b"); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a late write of the other one: %v", err)
		}
		a.stop()
	})
}

// Who is paused between the lease and its fence does not take the fence from the one that leads meanwhile.
func TestLeadingLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, shared := memory.New(true), &atomic.Bool{}
		shared.Store(true)
		db, paused := &theirs{Backend: m, shared: shared}, make(chan struct{})
		db.held.Store(&paused) // before it can take the fence
		a := newLeaderOn(t, "a", db)
		a.namespaces(t)
		time.Sleep(10 * time.Second) // a has the lease
		a.db.cut.Store(true)
		b := newLeader(t, "b", m, shared)
		first := <-b.leads
		a.db.cut.Store(false)
		a.db.held.Store(nil)
		close(paused)
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := b.write(first, "of-b"); err != nil || first.Err() != nil || len(a.leads) > 0 {
			t.Fatalf("the one that leads: %v, %v", err, first.Err())
		}
		b.stop()
		second := <-a.leads
		if err := a.write(second, "of-a"); err != nil {
			t.Error(err)
		}
		a.stop()
	})
}

// Who meets somebody else's fence leads no more, although the lease is still its own, and stands anew.
func TestLeadingFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, shared := memory.New(true), &atomic.Bool{}
		shared.Store(true)
		a := newLeader(t, "a", m, shared)
		a.namespaces(t)
		first := <-a.leads
		other := a.store.NewFence("kube-scheduler")
		if err := other.Stand(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Take(t.Context(), "another"); err != nil {
			t.Fatal(err)
		}
		if err := a.write(first, "fenced"); !errors.Is(err, store.ErrFenced) || first.Err() == nil {
			t.Fatalf("%v, still leads: %v", err, first.Err() == nil)
		}
		if err := a.write(<-a.leads, "again"); err != nil {
			t.Error(err)
		}
		a.stop()
	})
}
