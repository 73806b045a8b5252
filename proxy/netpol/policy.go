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

// direction is one that a pod can be isolated in.
type direction int

const (
	ingress direction = iota
	egress
	directions
)

// way is a direction of what is of one family.
type way int

const (
	in way = iota
	out
	in6
	out6
	ways
)

func (w way) direction() direction { return direction(w) % directions }

func (w way) family() nft.Family { return [...]nft.Family{nft.IP4, nft.IP6}[w/2] }

// waysOf are those of a family.
func waysOf(f nft.Family) []way {
	if f.Name == nft.IP6.Name {
		return []way{in6, out6}
	}
	return []way{in, out}
}

func (w way) String() string { return [...]string{"in", "out", "in6", "out6"}[w] }

// six ends the names of what is of IPv6.
func six(f nft.Family) string {
	if f.Name == nft.IP6.Name {
		return "6"
	}
	return ""
}

// policy is what a NetworkPolicy says.
type policy struct {
	pods     labels.Selector // whom it isolates
	isolates [directions]bool
	rules    [directions][]rule // what is allowed nevertheless
}

// rule allows connections with any of the peers, to any of the ports.
type rule struct {
	anyPeer bool
	pods    []selector
	blocks  map[string][]nft.Range // by family, merged

	anyPort bool
	ports   []port
}

// everyAddress is the block of all of a family.
func everyAddress(f nft.Family) nft.Range {
	all := netip.IPv4Unspecified()
	if f.Name == nft.IP6.Name {
		all = netip.IPv6Unspecified()
	}
	return nft.RangeOf(netip.PrefixFrom(all, 0))
}

// of is what the rule says of one family: a block of all of its addresses is everybody.
func (r rule) of(f nft.Family) rule {
	r.anyPeer = r.anyPeer || slices.Contains(r.blocks[f.Name], everyAddress(f))
	return r
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
		p.isolates[ingress] = p.isolates[ingress] || t == networkingv1.PolicyTypeIngress
		p.isolates[egress] = p.isolates[egress] || t == networkingv1.PolicyTypeEgress
	}
	if len(o.Spec.PolicyTypes) == 0 {
		p.isolates = [directions]bool{ingress: true, egress: len(o.Spec.Egress) > 0}
	}
	for _, r := range o.Spec.Ingress {
		p.rules[ingress] = append(p.rules[ingress], parseRule(o.Namespace, r.From, r.Ports))
	}
	for _, r := range o.Spec.Egress {
		p.rules[egress] = append(p.rules[egress], parseRule(o.Namespace, r.To, r.Ports))
	}
	return p
}

func parseRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) rule {
	r := rule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0, blocks: map[string][]nft.Range{}}
	for i := range peers {
		p := &peers[i]
		if p.IPBlock != nil {
			for _, b := range blockRanges(p.IPBlock) {
				f := nft.FamilyOf(b.First).Name
				r.blocks[f] = append(r.blocks[f], b)
			}
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
	for f, blocks := range r.blocks {
		r.blocks[f] = nft.Merge(blocks)
	}
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

// blockRanges are the addresses of a block.
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
	if a = a.Unmap(); a.BitLen() != bits {
		return nft.Range{}, false // ::ffff:10.0.0.0/104
	}
	return nft.RangeOf(netip.PrefixFrom(a, ones)), true
}
