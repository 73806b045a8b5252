package plugins

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/conntrack"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/nft"
)

// forgetFlows has the kernel forget the UDP flows to the pod's host ports that do not go where those lead now, by the elements of all pods: a
// client that keeps its port would go on to a pod that is gone, or, when it spoke before there was one, to nowhere.
func (n *Network) forgetFlows(h *host, a *attachment, all *nft.Table) error {
	udp := slices.DeleteFunc(slices.Clone(a.Ports), func(m cni.PortMapping) bool { return m.Protocol != cni.UDP })
	if len(udp) == 0 {
		return nil
	}
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return h.links.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, l := range addrs {
		ip, _ := netip.AddrFromSlice(l.IP)
		local[ip.Unmap()] = true
	}
	stale := func(f conntrack.Flow) bool {
		if !slices.ContainsFunc(udp, func(m cni.PortMapping) bool {
			return m.HostPort == f.To.Port() && (m.HostIP.Unmap() == f.To.Addr() || !m.HostIP.IsValid() && local[f.To.Addr()])
		}) {
			return false
		}
		if to, ok := leadsTo(all, f.To, local[f.To.Addr()]); ok {
			return f.From != to
		}
		return slices.Contains(a.Addrs, f.From.Addr())
	}
	has := func(v4 bool) bool {
		return slices.ContainsFunc(a.Addrs, func(ip netip.Addr) bool { return ip.Is4() == v4 })
	}
	return conntrack.ForgetUDP(h.links, has(true), has(false), stale)
}

// leadsTo says where the elements lead UDP packets for an address, one of the host's or another.
func leadsTo(t *nft.Table, at netip.AddrPort, local bool) (to netip.AddrPort, ok bool) {
	f := nft.FamilyOf(at.Addr())
	set := t.Sets["ports-at-"+f.Name]
	if set == nil {
		return to, false
	}
	elem, ok := set.Elems[nft.Pack(at.Addr(), nft.UDP, at.Port())]
	if set = t.Sets["ports-"+f.Name]; !ok && local {
		elem, ok = set.Elems[nft.Pack(nft.UDP, at.Port())]
	}
	if !ok {
		return to, false
	}
	data, err := nft.Unpack(set.Data, elem)
	if err != nil {
		return to, false
	}
	return netip.AddrPortFrom(data[0].(netip.Addr), data[1].(uint16)), true
}
