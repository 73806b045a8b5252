package dns

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
)

// wide is a zone with a headless Service of n endpoints, and its slices of 100 each.
func wide(n int) (*Zone, []*discoveryv1.EndpointSlice) {
	z := NewZone("cluster.local", 5)
	z.PutService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}})
	var all []*discoveryv1.EndpointSlice
	for i := range n / 100 {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprint("db-", i), Labels: map[string]string{discoveryv1.LabelServiceName: "db"}}}
		for j := range 100 {
			host := fmt.Sprintf("DB-%d", i*100+j)
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", i, j)}, Hostname: &host})
		}
		z.PutSlice(s)
		all = append(all, s)
	}
	return z, all
}

// TestEndpointByHost finds one endpoint of many, without looking through them, and not when it is gone or its slice another Service's.
func TestEndpointByHost(t *testing.T) {
	z, all := wide(1000)
	is := func(want int) {
		t.Helper()
		if got := len(z.Lookup("db-707.db.d.svc.cluster.local.", dns.TypeA).Records); got != want {
			t.Errorf("%d records, want %d", got, want)
		}
	}
	is(1)
	if n := testing.AllocsPerRun(10, func() { z.Lookup("db-707.db.d.svc.cluster.local.", dns.TypeA) }); n > 50 {
		t.Errorf("%v allocations for a question", n)
	}
	s := &Server{zone: z}
	moved := all[7].DeepCopy()
	moved.Labels[discoveryv1.LabelServiceName] = "other"
	s.apply(client.Event{Op: client.Modified, Object: moved, Old: all[7]})
	is(0)
	s.apply(client.Event{Op: client.Modified, Object: all[7], Old: moved})
	is(1)
	less := all[7].DeepCopy()
	less.Endpoints = less.Endpoints[:7]
	s.apply(client.Event{Op: client.Modified, Object: less, Old: all[7]})
	is(0)
	if len(z.endpoints) != 907 {
		t.Errorf("%d addresses are known", len(z.endpoints))
	}
}

func BenchmarkHeadless1000(b *testing.B) {
	z, all := wide(1000)
	s := &Server{zone: z}
	b.Run("question", func(b *testing.B) {
		for b.Loop() {
			z.Lookup("db-707.db.d.svc.cluster.local.", dns.TypeA)
		}
	})
	b.Run("change", func(b *testing.B) {
		for b.Loop() {
			s.apply(client.Event{Op: client.Modified, Object: all[7], Old: all[7]})
		}
	})
}
