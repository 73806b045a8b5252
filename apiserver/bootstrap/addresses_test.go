package bootstrap

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
)

// parents are the Services that IPAddresses name, by address.
func parents(t testing.TB, c client.Client) map[string]string {
	t.Helper()
	synctest.Wait()
	all, err := client.List[*networkingv1.IPAddress](t.Context(), c, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, a := range all {
		out[a.Name] = a.Spec.ParentRef.Name
	}
	return out
}

func web(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

// TestAddresses follows IPAddresses through the life of Services, and through what others do to them.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		cidr := get[*networkingv1.ServiceCIDR](t, c, "", "kubernetes")
		if cidr.Spec.CIDRs[0] != "10.43.0.0/16" || !meta.IsStatusConditionTrue(cidr.Status.Conditions, "Ready") {
			t.Errorf("%+v", cidr)
		}
		if got := parents(t, c); len(got) != 1 || got["10.43.0.1"] != "kubernetes" {
			t.Errorf("at the start: %v", got)
		}
		s, err := client.Create(t.Context(), c, web("a", "10.43.0.9"))
		if err != nil {
			t.Fatal(err)
		}
		if got := parents(t, c); got["10.43.0.9"] != "a" {
			t.Errorf("a Service: %v", got)
		}
		if err := c.Delete(t.Context(), get[*networkingv1.IPAddress](t, c, "", "10.43.0.9"), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := parents(t, c); got["10.43.0.9"] != "a" {
			t.Errorf("deleted while it is used: %v", got)
		}
		// Changes while nobody looks are mended at the next start.
		stop()
		if err := c.Delete(t.Context(), s, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("b", "10.43.0.9")); err != nil {
			t.Fatal("an address whose Service is gone:", err)
		}
		stop = start(t, c)
		if got := parents(t, c); got["10.43.0.9"] != "b" {
			t.Errorf("after the start: %v", got)
		}
		b := get[*corev1.Service](t, c, "default", "b")
		if _, err := client.Mutate(t.Context(), c, b, "", func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}
		}); err != nil {
			t.Fatal(err)
		}
		if got := parents(t, c); len(got) != 1 {
			t.Errorf("of a Service without address: %v", got)
		}

		// An address that somebody else wrote down is not given away, nor removed.
		if _, err := client.Create(t.Context(), c, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.43.0.10"},
			Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Group: "example.com", Resource: "gateways", Name: "g"}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("c", "10.43.0.10")); err == nil {
			t.Error("an address of somebody else was given away")
		}

		// A further range serves when it is ready, and not when it is on its way out.
		wide := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more", Finalizers: []string{"example.com/hold"}},
			Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.44.0.0/24"}}}
		if _, err := client.Create(t.Context(), c, web("d", "10.44.0.7")); err == nil {
			t.Error("an address of no range")
		}
		if _, err := client.Create(t.Context(), c, wide); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("d", "10.44.0.255")); err == nil {
			t.Error("a broadcast address")
		}
		if _, err := client.Create(t.Context(), c, web("d", "10.44.0.7")); err != nil {
			t.Error(err)
		}
		if err := c.Delete(t.Context(), get[*networkingv1.ServiceCIDR](t, c, "", "more"), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("e", "10.44.0.8")); err == nil || !strings.Contains(err.Error(), "failed to allocate IP 10.44.0.8: the ServiceCIDR more that has it is being deleted") {
			t.Error("an address of a range that is being deleted:", err)
		}
		if _, err := client.Create(t.Context(), c, web("e", "10.45.0.8")); err == nil || !strings.Contains(err.Error(), "the provided network does not match the current range") {
			t.Error("an address of no range:", err)
		}

		// So does the first one.
		finalizers := func(names ...string) {
			_, err := client.Mutate(t.Context(), c, get[*networkingv1.ServiceCIDR](t, c, "", "kubernetes"), "", func(s *networkingv1.ServiceCIDR) { s.Finalizers = names })
			if err != nil {
				t.Fatal(err)
			}
		}
		finalizers("example.com/hold")
		if err := c.Delete(t.Context(), get[*networkingv1.ServiceCIDR](t, c, "", "kubernetes"), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("f", "10.43.0.20")); err == nil {
			t.Error("an address of the configured range, which is being deleted")
		}
		finalizers()
		if _, err := client.Create(t.Context(), c, web("f", "10.43.0.20")); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if again := get[*networkingv1.ServiceCIDR](t, c, "", "kubernetes"); again.UID == cidr.UID || !meta.IsStatusConditionTrue(again.Status.Conditions, "Ready") {
			t.Errorf("%+v", again)
		}
		stop()
	})
}

// TestFamilies finds the ServiceCIDR of a cluster of two families with both ranges, an IPAddress for each of a Service's addresses as long as it has
// them, and the API server's own Service with the main family alone.
func TestFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		services := []netip.Prefix{netip.MustParsePrefix("fd43::/112"), netip.MustParsePrefix("10.43.0.0/16")}
		c := serverOf(t, services...)
		stop := startOf(t, c, netip.MustParseAddrPort("[2001:db8::1]:6443"), services...)
		defer stop()
		if cidr := get[*networkingv1.ServiceCIDR](t, c, "", "kubernetes"); !slices.Equal(cidr.Spec.CIDRs, []string{"fd43::/112", "10.43.0.0/16"}) {
			t.Errorf("%+v", cidr.Spec)
		}
		own := get[*corev1.Service](t, c, "default", "kubernetes")
		if !slices.Equal(own.Spec.ClusterIPs, []string{"fd43::1"}) || !slices.Equal(own.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv6Protocol}) {
			t.Errorf("%+v", own.Spec)
		}
		if e := get[*discoveryv1.EndpointSlice](t, c, "default", "kubernetes"); e.AddressType != discoveryv1.AddressTypeIPv6 || e.Endpoints[0].Addresses[0] != "2001:db8::1" {
			t.Errorf("%+v", e)
		}
		both := web("both", "")
		both.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		made, err := client.Create(t.Context(), c, both)
		if err != nil {
			t.Fatal(err)
		}
		ips := made.Spec.ClusterIPs
		if got := parents(t, c); len(ips) != 2 || got[ips[0]] != "both" || got[ips[1]] != "both" {
			t.Fatalf("%v: %v", ips, got)
		}
		for i, family := range []string{"IPv6", "IPv4"} {
			if got := get[*networkingv1.IPAddress](t, c, "", ips[i]).Labels[networkingv1.LabelIPAddressFamily]; got != family {
				t.Errorf("%s is labelled %s", ips[i], got)
			}
		}
		if _, err = client.Mutate(t.Context(), c, made, "", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack) }); err != nil {
			t.Fatal(err)
		}
		if got := parents(t, c); got[ips[0]] != "both" || got[ips[1]] != "" {
			t.Errorf("after the second was given up: %v", got)
		}
		// Further ranges are of use for the families that the cluster has.
		more := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"fd44::/112"}}}
		if _, err := client.Create(t.Context(), c, more); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Create(t.Context(), c, web("six", "fd44::7")); err != nil {
			t.Error(err)
		}
	})
}
