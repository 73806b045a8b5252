package servicelb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
)

// world is what decides about addresses.
type world struct {
	services  []*corev1.Service
	nodes     []*corev1.Node
	pods      []*corev1.Pod
	endpoints map[api.Key][]string // by Services with externalTrafficPolicy: Local, the nodes of their endpoints
}

// gift is what a Service gets, or why it gets nothing.
type gift struct {
	service *corev1.Service
	ingress []corev1.LoadBalancerIngress
	why     string
}

// mine says whether s gets its addresses here.
func (c Config) mine(s *corev1.Service) bool {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return false
	}
	if s.Spec.LoadBalancerClass == nil {
		return !c.OnlyClass
	}
	return *s.Spec.LoadBalancerClass == Class
}

// spot is a port of an address, of all addresses of a node (ip is not valid), or of those of all nodes (neither is given).
type spot struct {
	node  string
	ip    netip.Addr
	proto corev1.Protocol
	port  int32
}

// nameOf is how s is called among those who have ports.
func nameOf(s *corev1.Service) string { return "Service " + api.KeyOf(s).String() }

// give decides: those that have addresses come before those that have none, and then the older ones, so that nobody loses what he has to another.
func (w world) give(c Config) (gifts []gift) {
	taken := w.taken()
	var mine []*corev1.Service
	for _, s := range w.services {
		if c.mine(s) {
			mine = append(mine, s)
		}
	}
	none := func(s *corev1.Service) int { return min(1, len(s.Status.LoadBalancer.Ingress)) }
	slices.SortFunc(mine, func(a, b *corev1.Service) int {
		return cmp.Or(cmp.Compare(none(b), none(a)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(w.nodes, func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range mine {
		gifts = append(gifts, w.giveTo(s, c, taken))
	}
	return gifts
}

// taken are the ports that nodes do not have for a load balancer, with who has them.
func (w world) taken() map[spot]string {
	taken := map[spot]string{}
	for _, p := range w.pods {
		if p.Spec.NodeName == "" || api.PodTerminal(p) {
			continue
		}
		for _, port := range hostPorts(p) {
			ip, _ := netip.ParseAddr(port.HostIP)
			if ip.IsUnspecified() {
				ip = netip.Addr{}
			}
			taken[spot{p.Spec.NodeName, ip, cmp.Or(port.Protocol, corev1.ProtocolTCP), port.HostPort}] = "pod " + api.KeyOf(p).String()
		}
	}
	for _, s := range w.services {
		for _, port := range s.Spec.Ports {
			proto := cmp.Or(port.Protocol, corev1.ProtocolTCP)
			for _, text := range s.Spec.ExternalIPs {
				if ip, err := netip.ParseAddr(text); err == nil {
					taken[spot{"", ip, proto, port.Port}] = nameOf(s)
				}
			}
			taken[spot{"", netip.Addr{}, proto, port.NodePort}] = nameOf(s)
		}
		taken[spot{"", netip.Addr{}, corev1.ProtocolTCP, s.Spec.HealthCheckNodePort}] = nameOf(s)
	}
	return taken
}

// giveTo gives s the addresses of the nodes that can have all of its ports, and notes those as taken.
func (w world) giveTo(s *corev1.Service, c Config, taken map[spot]string) gift {
	for _, p := range s.Spec.Ports {
		if slices.Contains(c.Reserved, p.Port) {
			return gift{service: s, why: fmt.Sprintf("port %d is reserved for the nodes themselves (serviceLoadBalancer.reservedPorts of the settings)", p.Port)}
		}
	}
	g := gift{service: s, why: "no node is ready"}
	vip := corev1.LoadBalancerIPModeVIP
	for _, family := range s.Spec.IPFamilies {
		for _, n := range w.nodes {
			ip, why := w.addressOf(s, n, family, taken)
			if why != "" {
				g.why = why
			}
			if !ip.IsValid() {
				continue
			}
			for _, p := range s.Spec.Ports {
				taken[spot{"", ip, cmp.Or(p.Protocol, corev1.ProtocolTCP), p.Port}] = nameOf(s)
			}
			g.ingress = append(g.ingress, corev1.LoadBalancerIngress{IP: ip.String(), IPMode: &vip})
		}
	}
	return g
}

// addressOf returns the address of a node that s can have, or why there is none. A node that takes nothing from outside is not worth a word.
func (w world) addressOf(s *corev1.Service, n *corev1.Node, family corev1.IPFamily, taken map[spot]string) (netip.Addr, string) {
	if !takes(n) {
		return netip.Addr{}, ""
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && !slices.Contains(w.endpoints[api.KeyOf(s)], n.Name) {
		return netip.Addr{}, "no ready endpoint is on a node that takes traffic from outside, which externalTrafficPolicy: Local asks for"
	}
	ip := addressIn(n, family)
	if !ip.IsValid() {
		return ip, fmt.Sprintf("node %s has no address of %s", n.Name, family)
	}
	if want := s.Spec.LoadBalancerIP; want != "" && want != ip.String() { // deprecated, and of one family alone
		if a, err := netip.ParseAddr(want); err != nil || a.Is4() == ip.Is4() {
			return netip.Addr{}, fmt.Sprintf("spec.loadBalancerIP %s is not the address of a node that takes traffic from outside", want)
		}
		return netip.Addr{}, ""
	}
	for _, p := range s.Spec.Ports {
		proto := cmp.Or(p.Protocol, corev1.ProtocolTCP)
		for _, at := range []spot{{n.Name, netip.Addr{}, proto, p.Port}, {n.Name, ip, proto, p.Port}, {"", ip, proto, p.Port}, {"", netip.Addr{}, proto, p.Port}} {
			if who := taken[at]; who != "" && who != nameOf(s) {
				return netip.Addr{}, fmt.Sprintf("port %d/%s of node %s is taken by %s", p.Port, proto, n.Name, who)
			}
		}
	}
	return ip, ""
}

// takes says whether a node is one for load balancers to send to (KEP-1143 has the label).
func takes(n *corev1.Node) bool {
	_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
	return !excluded && n.DeletionTimestamp == nil && api.NodeReady(n)
}

// addressIn returns the node's address of the family: the one by which the outside knows it, if it has one.
func addressIn(n *corev1.Node, family corev1.IPFamily) (best netip.Addr) {
	for _, t := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		i := slices.IndexFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
			return a.Type == t && strings.Contains(a.Address, ":") == (family == corev1.IPv6Protocol)
		})
		if i >= 0 {
			if ip, err := netip.ParseAddr(n.Status.Addresses[i].Address); err == nil {
				best = ip
			}
		}
	}
	return best
}

// hostPorts are the ports of its node that a pod has, those of sidecars too.
func hostPorts(p *corev1.Pod) (ports []corev1.ContainerPort) {
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				ports = append(ports, port)
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; api.Sidecar(c) {
			add(c)
		}
	}
	return ports
}
