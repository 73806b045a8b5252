package client_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// late is a client that is made of what it is given to.
type late struct{ client.Client }

// server returns the API in this process, with a namespace.
func server(t testing.TB) client.Client {
	t.Helper()
	st := servertest.Store(t)
	rbac := authz.NewRBAC(st)
	self := &late{}
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: st, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Authorizer: rbac,
		Resources: builtin.All(builtin.Deps{Store: st, Client: self, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}})})
	if err != nil {
		t.Fatal(err)
	}
	self.Client = s.ClientAs(&authn.User{Name: "admin", Groups: []string{authn.Masters}})
	if _, err := client.Create(t.Context(), self.Client, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}); err != nil {
		t.Fatal(err)
	}
	return self.Client
}

var leaseKey = api.Key{Namespace: "kube-system", Name: "kube-scheduler"}

// cut is a client whose way to the server can be cut.
type cut struct {
	client.Client
	off atomic.Bool
}

func (c *cut) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if c.off.Load() {
		return nil, apierrors.NewTimeoutError("no way to the server", 1)
	}
	return c.Client.Get(ctx, k, key)
}

func holder(t testing.TB, c client.Client) string {
	t.Helper()
	l, err := client.Get[*coordinationv1.Lease](t.Context(), c, leaseKey)
	if err != nil {
		t.Fatal(err)
	}
	return *l.Spec.HolderIdentity
}

// member is a process that stands for election.
type member struct {
	cut    *cut
	leads  atomic.Bool
	err    error
	stop   context.CancelFunc
	exited chan struct{}
}

func stand(t testing.TB, c client.Client, name string) *member {
	m := &member{cut: &cut{Client: c}, exited: make(chan struct{})}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(t.Context())
	work := run.Func("work", func(ctx context.Context, ready func()) error {
		m.leads.Store(true)
		ready()
		<-ctx.Done()
		m.leads.Store(false)
		return nil
	})
	go func() {
		defer close(m.exited)
		m.err = run.Leading(&client.Lease{Client: m.cut, Key: leaseKey, Identity: name}, work).Run(ctx, func() {})
	}()
	t.Cleanup(func() { m.stop(); <-m.exited })
	return m
}

// One of two leads, as long as it renews; the other takes over at once when the lease is given back.
func TestLeaseIsHeldByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		a := stand(t, c, "a")
		synctest.Wait()
		b := stand(t, c, "b")
		time.Sleep(time.Hour)
		synctest.Wait()
		if !a.leads.Load() || b.leads.Load() || holder(t, c) != "a" {
			t.Fatal(a.leads.Load(), b.leads.Load(), holder(t, c))
		}
		a.stop()
		<-a.exited
		if a.err != nil || holder(t, c) != "" {
			t.Error(a.err, holder(t, c))
		}
		time.Sleep(2 * time.Second) // one retry
		synctest.Wait()
		if !b.leads.Load() || holder(t, c) != "b" {
			t.Error(b.leads.Load(), holder(t, c))
		}
		l, err := client.Get[*coordinationv1.Lease](t.Context(), c, leaseKey)
		if err != nil || *l.Spec.LeaseTransitions < 1 || *l.Spec.LeaseDurationSeconds != 15 {
			t.Error(l, err)
		}
	})
}

// A leader that cannot reach the server ends before the other takes over: there are never two.
func TestLeaseIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		a := stand(t, c, "a")
		synctest.Wait()
		b := stand(t, c, "b")
		time.Sleep(time.Minute + time.Second) // between two renewals
		synctest.Wait()
		a.cut.off.Store(true)
		for range 400 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if a.leads.Load() && b.leads.Load() {
				t.Fatal("two leaders")
			}
		}
		<-a.exited
		if a.err == nil || !b.leads.Load() || holder(t, c) != "b" {
			t.Error(a.err, b.leads.Load(), holder(t, c))
		}
	})
}

// Somebody who takes the lease by hand is obeyed.
func TestLeaseIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		a := stand(t, c, "a")
		time.Sleep(time.Minute + time.Second) // between two renewals
		synctest.Wait()
		l, err := client.Get[*coordinationv1.Lease](t.Context(), c, leaseKey)
		if err != nil {
			t.Fatal(err)
		}
		other, now := "somebody", metav1.NowMicro()
		if _, err := client.Mutate(t.Context(), c, l, "", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity, l.Spec.RenewTime = &other, &now
		}); err != nil {
			t.Fatal(err)
		}
		<-a.exited
		if a.err == nil || a.leads.Load() || holder(t, c) != other {
			t.Error(a.err, a.leads.Load(), holder(t, c))
		}
	})
}
