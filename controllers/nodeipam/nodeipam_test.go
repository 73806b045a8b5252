package nodeipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestAssignment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "old"},
			Spec: corev1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24", "fd00::/64"}}})
		rt.Start(t, d, New(d, Config{Clusters: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00::/48")}}))
		for i := range 20 {
			rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
		}
		synctest.Wait()
		seen := map[string]bool{}
		for _, n := range rt.List[*corev1.Node](t, c) {
			if len(n.Spec.PodCIDRs) != 2 || n.Spec.PodCIDR != n.Spec.PodCIDRs[0] || seen[n.Spec.PodCIDR] || seen[n.Spec.PodCIDRs[1]] {
				t.Errorf("%s has %v", n.Name, n.Spec.PodCIDRs)
			}
			seen[n.Spec.PodCIDRs[0]], seen[n.Spec.PodCIDRs[1]] = true, true
		}
		if rt.Get[*corev1.Node](t, c, "", "old").Spec.PodCIDR != "10.42.0.0/24" {
			t.Error("an assigned range was changed")
		}
	})
}

func TestFree(t *testing.T) {
	tests := []struct {
		cluster string
		bits    int
		taken   []string
		want    string // empty: none is left
	}{
		{"10.0.0.0/22", 24, nil, "10.0.0.0/24"},
		{"10.0.0.0/22", 24, []string{"10.0.0.0/24", "10.0.2.0/24"}, "10.0.1.0/24"},
		{"10.0.0.0/23", 24, []string{"10.0.0.0/24", "10.0.1.0/24"}, ""},
		{"10.0.0.0/22", 24, []string{"10.0.0.0/23"}, "10.0.2.0/24"},
		{"10.0.0.0/23", 24, []string{"10.0.0.128/25"}, "10.0.1.0/24"},
		{"255.255.255.0/24", 24, []string{"255.255.255.0/24"}, ""},
		{"fd00::/63", 64, []string{"fd00::/64"}, "fd00:0:0:1::/64"},
	}
	for _, tt := range tests {
		taken := map[netip.Prefix]bool{}
		for _, s := range tt.taken {
			taken[netip.MustParsePrefix(s)] = true
		}
		got, ok := free(netip.MustParsePrefix(tt.cluster), tt.bits, taken)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%+v: %v, %v", tt, got, ok)
		}
	}
	if !slices.Equal([]int{24, 64, 26}, []int{
		Config{}.mask(netip.MustParsePrefix("10.0.0.0/16")), Config{}.mask(netip.MustParsePrefix("fd00::/48")),
		Config{}.mask(netip.MustParsePrefix("10.0.0.0/26"))}) {
		t.Error("masks")
	}
}
