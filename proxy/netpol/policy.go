package netpol

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/linux/nft"
)

// way is a direction that a pod can be isolated in.
type way int

const (
	in  way = iota // ingress
	out            // egress
	ways
)

func (w way) String() string { return [...]string{"in", "out"}[w] }

// policy is what a NetworkPolicy says.
type policy struct {
	pods     labels.Selector // whom it isolates
	isolates [ways]bool
	rules    [ways][]rule // what is allowed nevertheless
}

// rule allows connections with any of the peers, to any of the ports.
type rule struct {
	anyPeer bool
	pods    []selector
	blocks  []nft.Range // merged

	anyPort bool
	ports   []port
}

// port is a range of numbers, or the name of a pod's port.
type port struct {
	proto     uint8
	name      string
	nft.Ports // without a name
}

func (p port) compare(o port) int {
	return cmp.Or(cmp.Compare(p.proto, o.proto), cmp.Compare(p.name, o.name), cmp.Compare(p.First, o.First), cmp.Compare(p.Last, o.Last))
}

func allPorts() nft.Ports { return nft.Ports{First: 0, Last: 1<<16 - 1} }

// names are the ports that have names, sorted and each once.
func (r rule) names() (names []namedPort) {
	for _, p := range r.ports {
		if p.name != "" {
			names = append(names, namedPort{p.proto, p.name})
		}
	}
	slices.SortFunc(names, namedPort.compare)
	return slices.Compact(names)
}

// selector selects pods by their labels: of a namespace, or of the namespaces that have labels too.
type selector struct {
	namespace  string          // where namespaces is nil
	namespaces labels.Selector // of a namespace's labels
	pods       labels.Selector
}

// id is the same for selectors that select alike by the same words.
func (s selector) id() string {
	if s.namespaces == nil {
		return s.namespace + "/" + text(s.pods)
	}
	return "{" + text(s.namespaces) + "}/" + text(s.pods)
}

// text spells a selector; that of nothing is like that of everything otherwise.
func text(s labels.Selector) string {
	if _, some := s.Requirements(); !some {
		return "!"
	}
	return s.String()
}

// everyPod selects all pods.
func everyPod() selector { return selector{namespaces: labels.Everything(), pods: labels.Everything()} }

// parsePolicy reads a policy that the API server has validated. What cannot be read all the same allows nothing.
func parsePolicy(o *networkingv1.NetworkPolicy) *policy {
	p := &policy{pods: selectorOf(&o.Spec.PodSelector)}
	for _, t := range o.Spec.PolicyTypes {
		p.isolates[in] = p.isolates[in] || t == networkingv1.PolicyTypeIngress
		p.isolates[out] = p.isolates[out] || t == networkingv1.PolicyTypeEgress
	}
	if len(o.Spec.PolicyTypes) == 0 {
		p.isolates = [ways]bool{in: true, out: len(o.Spec.Egress) > 0}
	}
	for _, r := range o.Spec.Ingress {
		p.rules[in] = append(p.rules[in], parseRule(o.Namespace, r.From, r.Ports))
	}
	for _, r := range o.Spec.Egress {
		p.rules[out] = append(p.rules[out], parseRule(o.Namespace, r.To, r.Ports))
	}
	return p
}

func parseRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) rule {
	r := rule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	for i := range peers {
		p := &peers[i]
		if p.IPBlock != nil {
			r.blocks = append(r.blocks, blockRanges(p.IPBlock)...)
			continue
		}
		s := selector{namespace: namespace, pods: labels.Everything()}
		if p.NamespaceSelector != nil {
			s.namespace, s.namespaces = "", selectorOf(p.NamespaceSelector)
		}
		if p.PodSelector != nil {
			s.pods = selectorOf(p.PodSelector)
		}
		r.pods = append(r.pods, s)
	}
	r.blocks = nft.Merge(r.blocks)
	all := nft.RangeOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	r.anyPeer = r.anyPeer || slices.Contains(r.blocks, all)
	for i := range ports {
		r.ports = append(r.ports, parsePort(&ports[i]))
	}
	return r
}

func parsePort(p *networkingv1.NetworkPolicyPort) port {
	out := port{proto: protocol(p.Protocol)}
	switch {
	case p.Port == nil:
		out.Ports = allPorts()
	case p.Port.Type == intstr.String:
		out.name = p.Port.StrVal
	default:
		out.First = uint16(p.Port.IntVal)
		out.Last = out.First
		if p.EndPort != nil {
			out.Last = uint16(*p.EndPort)
		}
	}
	return out
}

func protocol(p *corev1.Protocol) uint8 {
	if p == nil {
		return nft.TCP
	}
	return protocolNumber(*p)
}

func protocolNumber(p corev1.Protocol) uint8 {
	switch cmp.Or(p, corev1.ProtocolTCP) {
	case corev1.ProtocolUDP:
		return nft.UDP
	case corev1.ProtocolSCTP:
		return nft.SCTP
	}
	return nft.TCP
}

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}

// blockRanges are the IPv4 addresses of a block: pods have no others.
func blockRanges(b *networkingv1.IPBlock) []nft.Range {
	whole, ok := parsePrefix(b.CIDR)
	if !ok {
		return nil
	}
	var holes []nft.Range
	for _, text := range b.Except {
		hole, ok := parsePrefix(text)
		if !ok {
			return nil // it might be all of it
		}
		holes = append(holes, hole)
	}
	return whole.Except(holes)
}

// parsePrefix reads also the spellings that API servers took long ago.
func parsePrefix(text string) (nft.Range, bool) {
	_, n, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return nft.Range{}, false
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits != 32 || !a.Unmap().Is4() {
		return nft.Range{}, false
	}
	return nft.RangeOf(netip.PrefixFrom(a.Unmap(), ones)), true
}
