package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/yare-dev/yare/linux/link"
)

// hostAddress returns the address by which pods and other hosts reach this one: that of the default route's link, or else the
// first global address of any link that is up.
func hostAddress() (netip.Addr, error) {
	routes, err := link.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Src.To4()); ok {
			return a, nil
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue
		}
		if a, ok := globalAddress(l); ok {
			return a, nil
		}
	}
	links, err := link.Dump(netlink.LinkList)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if a, ok := globalAddress(l); ok && l.Attrs().OperState != netlink.OperDown {
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("this host has no IPv4 address but loopback: give one to a link, or set advertiseAddress")
}

func globalAddress(l netlink.Link) (netip.Addr, bool) {
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip.IsGlobalUnicast() {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
