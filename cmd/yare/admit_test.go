package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/store/memory"
)

// withMembers is a server, of which only that works which admits others, with a member of its own.
func withMembers(t *testing.T, name string) *server {
	t.Helper()
	var shared atomic.Bool
	shared.Store(true)
	l := newLeader(t, name, memory.New(true), &shared)
	keys, err := pki.Ensure(t.TempDir(), pki.Config{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	l.etcd, err = etcd.New(etcd.Config{
		DataDir: filepath.Join(t.TempDir(), "etcd"), Name: name, Ephemeral: true, MinFree: 1 << 20, Log: slog.New(slog.DiscardHandler),
		Peer: &etcd.Peer{Address: at, File: keys.PeerFile(), CAFile: keys.PeerAuthorityFile(), TLS: keys.PeerTLS()},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- l.etcd.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		l.stop()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return l.server
}

func newNode(t *testing.T, s *server, name, address string) {
	t.Helper()
	n := api.NodeKind.New().(*corev1.Node)
	n.Name, n.Spec.PodCIDR, n.Spec.PodCIDRs = name, "10.42.1.0/24", []string{"10.42.1.0/24"}
	if address != "" {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	}
	if _, err := client.Create(t.Context(), s.admin(), n); err != nil {
		t.Fatal(err)
	}
}

// soonAdmitted asks as one who joins does.
func soonAdmitted(t *testing.T, s *server, e *entry) (a *admitted) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if a, err = s.admit(t.Context(), e); err == nil {
			return a
		}
	}
	t.Fatal(err)
	return nil
}

// One that was admitted and does not come up is in the way of others, who are told its name; it takes itself out again, with the Node that was made for it.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	s := withMembers(t, "first")
	newNode(t, s, "second", "")
	e := &entry{Node: "second", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Peer: "https://127.0.0.1:1"}
	if a := soonAdmitted(t, s, e); len(a.Members) != 2 || fmt.Sprint(a.NodeRanges) != "[10.42.1.0/24]" {
		t.Errorf("%+v", a)
	}
	newNode(t, s, "third", "")
	_, err := s.admit(t.Context(), &entry{Node: "third", Addresses: e.Addresses, Peer: "https://127.0.0.1:2"})
	if again := (busy{}); !errors.As(err, &again) || !strings.Contains(err.Error(), "second at https://127.0.0.1:1") || !strings.Contains(err.Error(), "'yare server-remove second'") {
		t.Errorf("%v", err)
	}
	if all, err := s.servers(t.Context()); err != nil || len(all) != 2 || staying(all) != 0 {
		t.Errorf("the one that is joining counts as one that stays: %+v, %v", all, err)
	}
	for range 2 {
		if err := s.withdraw(t.Context(), e.Peer); err != nil || len(s.etcd.Members()) != 1 {
			t.Fatalf("%v, %v", s.etcd.Members(), err)
		}
	}
	if _, err := client.Get[*corev1.Node](t.Context(), s.admin(), api.Key{Name: "second"}); !apierrors.IsNotFound(err) {
		t.Errorf("its Node: %v", err)
	}
	// A Node that was there before stays, and a member that is one is not taken out.
	newNode(t, s, "fourth", "127.0.0.1")
	e.Node = "fourth"
	soonAdmitted(t, s, e)
	for _, peer := range []string{s.etcd.Members()[0].URL, s.etcd.Members()[1].URL} {
		if err := s.withdraw(t.Context(), peer); err != nil {
			t.Error(err)
		}
	}
	if all := s.etcd.Members(); len(all) != 1 || all[0].ID != s.etcd.Self() {
		t.Errorf("%+v", all)
	}
	if _, err := client.Get[*corev1.Node](t.Context(), s.admin(), api.Key{Name: "fourth"}); err != nil {
		t.Error(err)
	}
}

// Two servers have no one name, and where they have it all the same nobody removes one for the other.
func TestOneName(t *testing.T) {
	t.Parallel()
	s := withMembers(t, "first")
	e := &entry{Node: "first", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Peer: "https://127.0.0.1:1"}
	if _, err := s.admit(t.Context(), e); err == nil || !strings.Contains(err.Error(), "nodeName: the cluster has a server first, at "+s.etcd.Members()[0].URL) {
		t.Errorf("%v", err)
	}
	e.Node = "second"
	newNode(t, s, "second", "")
	soonAdmitted(t, s, e)
	var self, other etcd.Member
	for _, m := range s.etcd.Members() {
		if m.ID == s.etcd.Self() {
			self = m
		} else {
			other = m
		}
	}
	again := &entry{Node: "first", Addresses: e.Addresses, Peer: self.URL}
	if _, err := s.admit(t.Context(), again); err == nil || !strings.Contains(err.Error(), "'yare server-remove first'") {
		t.Errorf("a member: %v", err)
	}
	if _, err := s.etcd.Client().Put(t.Context(), nameKey(other.ID), "first"); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%x", other.ID)
	for name, why := range map[string]string{"first": "several servers are", "second": "there is no server"} {
		if _, err := s.remove(t.Context(), name); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), id) || len(s.etcd.Members()) != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.remove(t.Context(), id); err != nil || len(s.etcd.Members()) != 1 {
		t.Errorf("%v, %v", s.etcd.Members(), err)
	}
}

// A Node that was deleted and registered anew may have other pod addresses: the server's next start has those.
func TestNodeRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var shared atomic.Bool
		l := newLeader(t, "second", memory.New(true), &shared)
		defer l.stop()
		l.record = &cluster.Record{Joined: true, DataDir: t.TempDir()}
		if err := l.record.KeepNodeRanges([]netip.Prefix{netip.MustParsePrefix("10.42.5.0/24")}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.nodeRanges().Run(ctx, func() {}) }()
		newNode(t, l.server, "third", "")
		time.Sleep(time.Minute)
		if got := fmt.Sprint(l.record.NodeRanges()); got != "[10.42.5.0/24]" {
			t.Error(got)
		}
		newNode(t, l.server, "second", "")
		time.Sleep(time.Minute)
		if got := fmt.Sprint(l.record.NodeRanges()); got != "[10.42.1.0/24]" {
			t.Error(got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Who is asked to come again until it takes too long is told why.
func TestAskReason(t *testing.T) {
	t.Parallel()
	p, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := p.CA.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) > 1 {
			cancel()
		}
		http.Error(w, "no pod addresses", http.StatusServiceUnavailable)
	}))
	srv.TLS = p.ServerTLS(p.Server)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	j := &pendingJoin{Server: srv.URL, Token: token, Authority: p.CA.PEM()}
	if err := j.ask(ctx, joinRequest{Token: token}, &struct{}{}); err == nil || err.Error() != "no pod addresses" || asked.Load() != 2 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
}
