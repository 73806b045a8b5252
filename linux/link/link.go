// Package link is the thin layer over rtnetlink and /proc/sys/net that pod networks
// need and vishvananda/netlink has no single call for. No policy is here.
package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair describes a veth pair.
type Pair struct {
	Name string
	MAC  net.HardwareAddr
	// Peer is the other end, made inside the network namespace at PeerNS, so
	// that no link is ever moved.
	Peer    string
	PeerMAC net.HardwareAddr
	PeerNS  string
	MTU     int
}

// AddPair makes the pair. The near end is up, the peer is down.
func AddPair(h *netlink.Handle, p Pair) error {
	ns, err := unix.Open(p.PeerNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", p.PeerNS, err)
	}
	defer unix.Close(ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Flags = p.Name, p.MTU, p.MAC, net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU, veth.PeerNamespace = p.Peer, p.PeerMAC, uint32(p.MTU), netlink.NsFd(ns)
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s with peer %s: %w", p.Name, p.Peer, err)
	}
	return nil
}

// Delete deletes the link of that name. One that is gone is no error.
func Delete(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if IsGone(err) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !IsGone(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// IsGone reports whether err says that a link, route or address is not there.
func IsGone(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOENT)
}

// dumps is how often a listing is begun anew that others' changes interrupt.
const dumps = 50

// Dump lists kernel objects, again when a change in the middle made the listing incomplete, which on a busy host is
// common. After many such changes it takes the last listing as it is.
func Dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumps {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil
}

// WithPrefix lists the names of the links that start with prefix.
func WithPrefix(h *netlink.Handle, prefix string) ([]string, error) {
	links, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// DefaultMTU returns the MTU of the link of the default route, 1500 if there is none.
func DefaultMTU(h *netlink.Handle) (int, error) {
	routes, err := Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		if l, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return l.Attrs().MTU, nil
		}
	}
	return 1500, nil
}

// Sysctl writes /proc/sys/<path> of the calling thread's network namespace if it
// has another value.
func Sysctl(path, value string) error {
	file := "/proc/sys/" + path
	if old, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}
