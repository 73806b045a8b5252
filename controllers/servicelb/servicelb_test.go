package servicelb

import (
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestAddressesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, Config{Reserved: []int32{22}}))
		// want are addresses by Service.
		want := func(when, name, ips string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, in := range rt.Get[*corev1.Service](t, c, "d", name).Status.LoadBalancer.Ingress {
				got = append(got, in.IP)
			}
			if text := strings.Join(got, ","); text != ips {
				t.Errorf("%s: %s has %q, want %q", when, name, text, ips)
			}
		}
		one := rt.Create(t, c, balanced("one", 1, 80))
		want("no nodes", "one", "")
		a := rt.Create(t, c, node("a", "10.0.0.1"))
		want("a node", "one", "10.0.0.1")
		b := rt.Create(t, c, node("b", "10.0.0.2"))
		want("two", "one", "10.0.0.1,10.0.0.2")
		rt.Create(t, c, balanced("two", 2, 80))
		want("the port is taken", "two", "")

		b = rt.Mutate(t, c, b, "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse })
		want("a node is not ready", "one", "10.0.0.1")
		rt.Mutate(t, c, b, "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
		want("it is again", "one", "10.0.0.1,10.0.0.2")
		p := rt.Create(t, c, pod("p", "a", "", 80, ""))
		want("a pod has the port", "one", "10.0.0.2")
		rt.Delete(t, c, p, client.DeleteOptions{Grace: new(int64)})
		want("it is gone", "one", "10.0.0.1,10.0.0.2")

		one = rt.Mutate(t, c, one, "", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
		want("Local, no endpoints", "one", "")
		want("what was let go of", "two", "10.0.0.1,10.0.0.2")
		rt.Mutate(t, c, one, "", func(s *corev1.Service) { s.Spec.Ports[0].Port = 81 })
		name := "a"
		slice := rt.Create(t, c, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "one-x", Labels: map[string]string{discoveryv1.LabelServiceName: "one"}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.9"}, NodeName: &name}}})
		want("Local, with one", "one", "10.0.0.1")
		no := false
		rt.Mutate(t, c, slice, "", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = &no })
		want("Local, which is not ready", "one", "")
		yes := true
		slice = rt.Mutate(t, c, slice, "", func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Conditions.Ready = &yes
			s.Labels[discoveryv1.LabelServiceName] = "two"
		})
		want("Local, its slice is another's", "one", "")
		slice = rt.Mutate(t, c, slice, "", func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "one" })
		want("Local, its slice is its own again", "one", "10.0.0.1")
		rt.Mutate(t, c, slice, "", func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "two" })
		want("Local, it is another's for good", "one", "")

		writes := c.Writes("update services")
		rt.Mutate(t, c, a, "status", func(n *corev1.Node) { n.Status.NodeInfo.KernelVersion = "6" })
		synctest.Wait()
		if n := c.Writes("update services") - writes; n != 0 {
			t.Errorf("a node's heartbeat led to %d writes", n)
		}
	})
}
