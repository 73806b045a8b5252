package netpol

import (
	"net/netip"
	"testing"
)

// TestDNS has pods whom policies allow nothing, or one peer, ask for names: of a node, and of a pod that the Service leads to.
func TestDNS(t *testing.T) {
	t.Parallel()
	t.Run("IPv4", func(t *testing.T) { t.Parallel(); testDNS(t, newWorld(t), 0, netip.MustParseAddr("192.0.2.1")) })
	t.Run("IPv6", func(t *testing.T) { t.Parallel(); testDNS(t, newDual(t), 1, netip.MustParseAddr("2001:db8::1")) })
}

func testDNS(t *testing.T, w *world, family int, outside netip.Addr) {
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
	at := netip.AddrPortFrom(w.config.DNS[family], 53).String()
	lead := func(to netip.Addr) {
		svc, slice := service("dns", w.config.DNS[family].String(), 30053, to)
		for i := range svc.Spec.Ports {
			svc.Spec.Ports[i].Port = 53
		}
		w.api.Put(svc)
		w.api.Put(slice)
	}
	lead(outside)
	until(t, "the Service is served", func() bool { return w.ask(t, "locked", "udp", at, silent) == "yes" })
	w.expect(t, "yes", "locked", at)
	names := w.addrs
	if family > 0 {
		names = w.addrs6
	}
	lead(names["names"])
	until(t, "the Service leads to the pod", func() bool { return w.ask(t, "locked", "udp", at, silent) == "silence" })
	w.expect(t, "silence", "locked", at)
	w.expect(t, "yes", "allowed", at)
}
