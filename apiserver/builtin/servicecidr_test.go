package builtin

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/servertest"
)

// A range for Services where pods have their addresses is told of when it is made, or made wider.
func TestServiceCIDRBesidePods(t *testing.T) {
	t.Parallel()
	cidr := func(cs ...string) *networkingv1.ServiceCIDR {
		return &networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: cs}}
	}
	known := Deps{Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	stored := Deps{Store: servertest.Store(t)}
	servertest.Put(t, stored.Store, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec: corev1.NodeSpec{PodCIDR: "10.50.1.0/24", PodCIDRs: []string{"10.50.1.0/24", "fd00:50::/64"}}})
	for name, tt := range map[string]struct {
		deps     Deps
		now, old *networkingv1.ServiceCIDR
		want     string
	}{
		"beside":           {known, cidr("10.43.0.0/16"), nil, ""},
		"within":           {known, cidr("10.42.7.0/24"), nil, "spec.cidrs[0]: 10.42.7.0/24 overlaps 10.42.0.0/16, where pods have their addresses"},
		"around":           {known, cidr("10.0.0.0/8"), nil, "spec.cidrs[0]: 10.0.0.0/8 overlaps"},
		"the second":       {known, cidr("fd00::/112", "10.42.0.0/24"), nil, "spec.cidrs[1]: 10.42.0.0/24 overlaps"},
		"was there before": {known, cidr("10.42.7.0/24"), cidr("10.42.7.0/24"), ""},
		"is added":         {stored, cidr("10.43.0.0/16", "fd00:50::/112"), cidr("10.43.0.0/16"), "spec.cidrs[1]: fd00:50::/112 overlaps fd00:50::/64, where pods of node n1 have"},
		"no range":         {known, cidr("x"), nil, ""},
		"beside a node's":  {stored, cidr("10.50.2.0/24"), nil, ""},
		"a node's":         {stored, cidr("10.50.0.0/16"), nil, "overlaps 10.50.1.0/24, where pods of node n1 have their addresses"},
		"nothing is known": {Deps{}, cidr("10.42.0.0/16"), nil, ""},
	} {
		got := strings.Join(serviceCIDRs(tt.deps).Warn(tt.now, tt.old), "\n")
		if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
