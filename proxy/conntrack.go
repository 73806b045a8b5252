package proxy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/nft"
)

// staleFlows are the UDP flows that conntrack must forget: a client that keeps its
// port would go on to a pod that is gone, or, when its first packet came before there was an
// endpoint, to nowhere. The key is the Service's address and port, of node ports with an
// unspecified address; the values are the endpoints that are gone, an invalid address for flows
// that were not rewritten.
type staleFlows map[netip.AddrPort]map[netip.Addr]bool

// add notes what goes stale when the elements of old become those of next.
func (s staleFlows) add(old, next *nft.Table) {
	for _, fam := range families() {
		was, is := udpLists(old, fam), udpLists(next, fam)
		for vip := range was {
			for to := range was[vip] {
				if !is[vip][to] {
					s.note(vip, to)
				}
			}
		}
		for vip := range is {
			if len(was[vip]) == 0 {
				s.note(vip, netip.Addr{})
			}
		}
	}
}

func (s staleFlows) note(vip netip.AddrPort, to netip.Addr) {
	if s[vip] == nil {
		s[vip] = map[netip.Addr]bool{}
	}
	s[vip][to] = true
}

// udpLists returns the endpoints of UDP Services by address and port.
func udpLists(t *nft.Table, fam nft.Family) map[netip.AddrPort]map[netip.Addr]bool {
	set := t.Sets["endpoints-"+fam.Name]
	out := map[netip.AddrPort]map[netip.Addr]bool{}
	udp := nft.Pack(nft.UDP)
	at := nft.Width([]nft.Type{fam.Addr})
	for k, v := range set.Elems {
		if !strings.HasPrefix(k[at:], udp) {
			continue
		}
		key, err := nft.Unpack(set.Key, k)
		if err != nil {
			continue
		}
		val, err := nft.Unpack(set.Data, v)
		if err != nil {
			continue
		}
		vip := netip.AddrPortFrom(key[0].(netip.Addr), key[2].(uint16))
		if out[vip] == nil {
			out[vip] = map[netip.Addr]bool{}
		}
		out[vip][val[0].(netip.Addr)] = true
	}
	return out
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	dst, src = dst.Unmap(), src.Unmap()
	if gone := s[netip.AddrPortFrom(dst, flow.Forward.DstPort)]; gone != nil {
		return gone[src] || dst == src && gone[netip.Addr{}]
	}
	// A node port may be any address of the host, so only rewritten flows are its.
	zero := netip.IPv4Unspecified()
	if dst.Is6() {
		zero = netip.IPv6Unspecified()
	}
	return dst != src && s[netip.AddrPortFrom(zero, flow.Forward.DstPort)][src]
}

// forget deletes the flows from conntrack.
func (k *kernel) forget(s staleFlows) error {
	v4, v6 := false, false
	for _, vip := range slices.Collect(maps.Keys(s)) {
		v4, v6 = v4 || vip.Addr().Is4(), v6 || vip.Addr().Is6()
	}
	for family, wanted := range map[netlink.InetFamily]bool{unix.AF_INET: v4, unix.AF_INET6: v6} {
		if !wanted {
			continue
		}
		if _, err := k.links.ConntrackDeleteFilters(netlink.ConntrackTable, family, s); err != nil {
			return fmt.Errorf("forget flows of endpoints that are gone: %w", err)
		}
	}
	return nil
}
