package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/linux/nft"
)

// endpoint is one address behind a Service port.
type endpoint struct {
	to                          netip.AddrPort
	local                       bool
	ready, serving, terminating bool
	hints                       *discoveryv1.EndpointHints
}

// endpointsOf collects the endpoints of a Service port from the Service's slices,
// each address once, in order.
func endpointsOf(f Facts, fam nft.Family, port *corev1.ServicePort, slices_ []*discoveryv1.EndpointSlice) []endpoint {
	var out []endpoint
	for _, slice := range slices_ {
		if (slice.AddressType == discoveryv1.AddressTypeIPv4) != (fam.Name == nft.IP4.Name) ||
			slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		number, ok := portNumber(slice, port)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			if e, ok := endpointOf(f, &slice.Endpoints[i], number); ok {
				out = append(out, e)
			}
		}
	}
	// An address may be in two slices while it moves: the ready one wins.
	slices.SortStableFunc(out, func(a, b endpoint) int {
		return cmp.Or(a.to.Compare(b.to), cmp.Compare(rank(a), rank(b)))
	})
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.to == b.to })
}

func rank(e endpoint) int {
	switch {
	case e.ready:
		return 0
	case e.serving:
		return 1
	}
	return 2
}

func endpointOf(f Facts, e *discoveryv1.Endpoint, port uint16) (endpoint, bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	ip, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return endpoint{}, false
	}
	ready := e.Conditions.Ready == nil || *e.Conditions.Ready
	serving := ready
	if e.Conditions.Serving != nil {
		serving = *e.Conditions.Serving
	}
	return endpoint{
		to: netip.AddrPortFrom(ip.Unmap(), port), ready: ready, serving: serving, hints: e.Hints,
		terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
		local:       e.NodeName != nil && *e.NodeName == f.NodeName,
	}, true
}

// portNumber finds the Service port in a slice, by name and protocol.
func portNumber(s *discoveryv1.EndpointSlice, port *corev1.ServicePort) (uint16, bool) {
	for _, p := range s.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if p.Port != nil && name == port.Name && proto == protocol(port) {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func protocol(p *corev1.ServicePort) corev1.Protocol { return cmp.Or(p.Protocol, corev1.ProtocolTCP) }

// usable returns the ready endpoints, or those that terminate but still serve
// when none is ready.
func usable(es []endpoint) []endpoint {
	if ready := filter(es, func(e endpoint) bool { return e.ready }); len(ready) > 0 {
		return ready
	}
	return filter(es, func(e endpoint) bool { return e.serving && e.terminating })
}

// near returns the endpoints that topology hints give to this node: those for
// the node itself, else those for its zone; all, as soon as one has no hint.
func near(f Facts, es []endpoint) []endpoint {
	forNode := func(e endpoint) bool {
		return slices.ContainsFunc(e.hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == f.NodeName })
	}
	forZone := func(e endpoint) bool {
		return slices.ContainsFunc(e.hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == f.Zone })
	}
	all := func(has func(e endpoint) bool) bool {
		return !slices.ContainsFunc(es, func(e endpoint) bool { return e.hints == nil || !has(e) })
	}
	if all(func(e endpoint) bool { return len(e.hints.ForNodes) > 0 }) {
		if es := filter(es, forNode); len(es) > 0 {
			return es
		}
	}
	if f.Zone != "" && all(func(e endpoint) bool { return len(e.hints.ForZones) > 0 }) {
		if es := filter(es, forZone); len(es) > 0 {
			return es
		}
	}
	return es
}

func filter(es []endpoint, keep func(endpoint) bool) []endpoint {
	var out []endpoint
	for _, e := range es {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// choice is what the policies of a Service make of its endpoints.
type choice struct {
	cluster []endpoint // for the policy Cluster, and what is short-cut to it
	local   []endpoint // this node's
}

func choose(f Facts, es []endpoint) choice {
	return choice{
		cluster: near(f, usable(es)),
		local:   usable(filter(es, func(e endpoint) bool { return e.local })),
	}
}
