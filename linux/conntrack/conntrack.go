// Package conntrack has the kernel forget flows of UDP: one that it was told where to lead is led there for as long as its client speaks, whatever
// rules say meanwhile. No policy is here.
package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is where packets of one client and port go.
type Flow struct {
	To   netip.AddrPort // what they are sent to
	From netip.AddrPort // what answers them: To, unless they are rewritten
}

// ForgetUDP forgets the flows of the families that are stale, in the network namespace of the handle, which must have a socket of netfilter.
func ForgetUDP(h *netlink.Handle, v4, v6 bool, stale func(Flow) bool) error {
	var errs []error
	for family, wanted := range map[netlink.InetFamily]bool{unix.AF_INET: v4, unix.AF_INET6: v6} {
		if !wanted {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter(stale)); err != nil {
			errs = append(errs, fmt.Errorf("forget flows: %w", err))
		}
	}
	return errors.Join(errs...)
}

type filter func(Flow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.Protocol == unix.IPPROTO_UDP && f(Flow{
		To: addrPort(flow.Forward.DstIP, flow.Forward.DstPort), From: addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)})
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
