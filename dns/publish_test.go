package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// TestPublishAgain deletes what the server has published: it is there again, and what is another's is left.
func TestPublishAgain(t *testing.T) {
	t.Parallel()
	cl := newCluster()
	s, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:5353")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.10")}, NodeName: "n1"},
		Deps{Client: cl, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.addrs = s.c.Listen
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, k := range []*api.Kind{api.ServiceKind, api.EndpointSliceKind} {
		wg.Go(func() { _ = s.watch(ctx, k, func() {}) })
	}
	wg.Go(func() { s.publish(ctx) })
	there := func() {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); len(cl.all()) != 2; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("there are %v", cl.all())
			}
		}
	}
	there()
	for _, o := range cl.all() {
		cl.del(o)
		there()
	}
	if s.published(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "other"}}) ||
		s.published(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns-n2"}}) {
		t.Error("another's object is taken for ours")
	}
}
