package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/link"
)

// nodeAddresses are the addresses by which pods and other hosts reach this one, one of the family of each range: those of the settings, or
// else the host's own.
func (c Config) nodeAddresses(ranges []netip.Prefix) (as []netip.Addr, err error) {
	given := c.NodeIPs
	if len(given) == 0 && c.AdvertiseAddress.IsValid() {
		given = []netip.Addr{c.AdvertiseAddress}
	}
	for i, p := range ranges {
		four := p.Addr().Is4()
		switch {
		case i >= len(given):
			a, err := hostAddress(four)
			if err != nil {
				return nil, err
			}
			as = append(as, a)
		case given[i].Is4() != four:
			field := "nodeIPs"
			if len(c.NodeIPs) == 0 {
				field = "advertiseAddress"
			}
			return nil, fmt.Errorf("%s: %s is not of the family of %s: addresses have those of the cluster's ranges, in their order", field, given[i], p)
		default:
			as = append(as, given[i])
		}
	}
	return as, nil
}

// hostAddress returns the address of a family by which pods and other hosts reach this one: that of the default route's link, or else the
// first global address of any link that is up.
func hostAddress(four bool) (netip.Addr, error) {
	family, name := netlink.FAMILY_V4, "IPv4"
	if !four {
		family, name = netlink.FAMILY_V6, "IPv6"
	}
	routes, err := link.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if a, ok := global(r.Src); ok {
			return a, nil
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue
		}
		if a, ok := globalAddress(l, family); ok {
			return a, nil
		}
	}
	links, err := link.Dump(netlink.LinkList)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if a, ok := globalAddress(l, family); ok && l.Attrs().OperState != netlink.OperDown {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("this host has no %s address but loopback and link-local: give one to a link, or set nodeIPs", name)
}

// fleeting are the addresses of IPv6 that are not to stay, or not there yet.
const fleeting = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

func globalAddress(l netlink.Link, family int) (netip.Addr, bool) {
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, family) })
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		if ip, ok := global(a.IP); ok && (ip.Is4() || a.Flags&fleeting == 0) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func global(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok && ip.IsGlobalUnicast()
}
