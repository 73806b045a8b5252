package bootstrap

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
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
