package netpol

import (
	"net"
	"net/netip"
	"testing"
)

// TestDNS has pods whom policies allow nothing, or one peer, ask for names: of a node, and of a pod that the Service leads to.
func TestDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: a, name: locked}
spec: {podSelector: {}, policyTypes: [Egress]}
---
kind: NetworkPolicy
metadata: {namespace: a, name: allowed}
spec: {podSelector: {matchLabels: {app: allowed}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: names}}}]}]}`)
	w.start(t)
	w.services(t)
	w.serve(t, "outside", ":8080")
	w.pod(t, "b", "names", map[string]string{"app": "names"})
	w.pod(t, "a", "locked", nil)
	w.pod(t, "a", "allowed", map[string]string{"app": "allowed"})
	at := netip.AddrPortFrom(testConfig().DNS[0], 53).String()
	lead := func(to netip.Addr) {
		svc, slice := service("dns", testConfig().DNS[0].String(), 30053, to)
		for i := range svc.Spec.Ports {
			svc.Spec.Ports[i].Port = 53
		}
		w.api.Put(svc)
		w.api.Put(slice)
	}
	lead(netip.MustParseAddr("192.0.2.1"))
	until(t, "the Service is served", func() bool { return w.ask(t, "locked", "udp", at, silent) == "yes" })
	w.expect(t, "yes", "locked", at)
	lead(w.addrs["names"])
	until(t, "the Service leads to the pod", func() bool { return w.ask(t, "locked", "udp", at, silent) == "silence" })
	w.expect(t, "silence", "locked", at)
	w.expect(t, "yes", "allowed", at)
}

// TestIPv6 checks that an isolated pod is not reached past its policies, nor reaches anybody, by IPv6.
func TestIPv6(t *testing.T) {
	t.Parallel()
	w := newWorld(t, netip.MustParsePrefix("fd00:42:1::/64"))
	w.put(t, namespaces)
	w.start(t)
	w.pod(t, "a", "locked", nil)
	w.pod(t, "b", "other", nil)
	pods, err := w.network.Attached()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{}
	for _, p := range pods {
		at[p.Name] = netip.AddrPortFrom(p.Addrs[1], 8080).String()
		w.in(t, p.Name, func() error {
			l, err := net.Listen("tcp6", ":8080")
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
	}
	ways := map[string]string{"locked": "other", "other": "locked"}
	reaches := func(from string) (is bool) {
		w.in(t, from, func() error {
			c, err := net.DialTimeout("tcp6", at[ways[from]], silent)
			if is = err == nil; is {
				c.Close()
			}
			return nil
		})
		return is
	}
	bothReach := func() {
		t.Helper()
		for from, to := range ways {
			until(t, from+" reaches "+to, func() bool { return reaches(from) })
		}
	}
	bothReach()
	w.api.Put(deny("a"))
	w.isolated(t, 1)
	for from, to := range ways {
		if reaches(from) {
			t.Errorf("%s reaches %s", from, to)
		}
	}
	w.remove(t, deny("a"))
	w.isolated(t, 0)
	bothReach()
}
