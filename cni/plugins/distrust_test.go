package plugins

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
)

// advertisement is an IPv6 packet to all nodes: its sender is a router, and everybody may have an address of 2001:db8:<n>::/64.
func advertisement(n byte) []byte {
	prefix := netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 0, n}).AsSlice()
	icmp := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // router for half an hour
	icmp = append(icmp, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
	icmp = append(icmp, prefix...)
	from, to := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	sum := uint32(unix.IPPROTO_ICMPV6 + len(icmp))
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum>>16+sum))
	head := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}
	head = append(append(head, from.AsSlice()...), to.AsSlice()...)
	return append(head, icmp...)
}

// advertiser returns what sends an advertisement by eth0 of a namespace, past the namespace's own IPv6.
func (w *world) advertiser(t testing.TB, ns string) func(n byte) {
	t.Helper()
	proto := uint16(unix.ETH_P_IPV6)
	proto = proto<<8 | proto>>8
	to := unix.SockaddrLinklayer{Protocol: proto, Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}}
	var fd int
	w.in(t, ns, func() error {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		to.Ifindex = l.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func(n byte) {
		t.Helper()
		if err := unix.Sendto(fd, advertisement(n), 0, &to); err != nil {
			t.Error(err)
		}
	}
}

// learnt lists what the host knows by IPv6 of a link that is neither the link's own nor a pod's.
func (w *world) learnt(t testing.TB, name string) (list []string) {
	t.Helper()
	w.in(t, w.host, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, unix.AF_INET6) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				list = append(list, "address "+a.IPNet.String())
			}
		}
		routes, err := link.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(l, unix.AF_INET6) })
		for _, r := range routes {
			ones, _ := r.Dst.Mask.Size()
			if !r.Dst.IP.IsLinkLocalUnicast() && ones < 128 {
				list = append(list, "route "+r.Dst.String())
			}
		}
		return err
	})
	return list
}

// TestRouterAdvertisement has pods say that they are routers (CVE-2020-10749), to a host that believes its uplink.
func TestRouterAdvertisement(t *testing.T) {
	t.Parallel()
	v4, v6 := netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd00:42::/112")
	for name, ranges := range map[string][]netip.Prefix{"IPv4": {v4}, "both": {v4, v6}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.in(t, w.host, func() error { // as a router does that has its own default route by an advertisement
				for _, name := range []string{"eth0", "default"} {
					if err := link.Sysctl("net/ipv6/conf/"+name+"/accept_ra", "2"); err != nil {
						return err
					}
				}
				return nil
			})
			n := w.network(t, func(c *Config) { c.Ranges = ranges })
			attempt := w.believer(t)
			p, _ := attach(t, n, cni.Pod{ID: "p"})
			a, err := n.load(p.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got := attempt(p.NetNS, a.HostLink); len(got) > 0 {
				t.Errorf("the host learnt from a pod: %q", got)
			}

			// A link as an earlier version left it.
			w.in(t, w.host, func() error {
				for key, value := range map[string]string{"disable_ipv6": "0", "accept_ra": "2", "autoconf": "1"} {
					if err := link.Sysctl("net/ipv6/conf/"+a.HostLink+"/"+key, value); err != nil {
						return err
					}
				}
				return nil
			})
			ctx, cancel := context.WithCancel(t.Context())
			if err := netns.Do(w.host, func() error { return n.Run(ctx, cancel) }); err != nil {
				t.Error(err)
			}
			if got := attempt(p.NetNS, a.HostLink); len(got) > 0 {
				t.Errorf("the host learnt from a pod of before: %q", got)
			}
			detach(t, n, p)
			w.empty(t, n)
		})
	}
}

// believer returns what sends an advertisement from a namespace and says what the host learnt from it by a link. The outside sends one too:
// when the host has taken that, it has looked at the other.
func (w *world) believer(t testing.TB) func(ns, name string) []string {
	outside := w.advertiser(t, w.outside)
	round := byte(0)
	return func(ns, name string) []string {
		t.Helper()
		round++
		pod := w.advertiser(t, ns)
		// What is sent on one processor is received in that order.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var all, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			t.Fatal(err)
		}
		for cpu := 0; one.Count() == 0; cpu++ {
			if all.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Fatal(err)
		}
		pod(0x10 + round)
		outside(round)
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			t.Fatal(err)
		}
		until(t, "the uplink is believed", func() bool {
			for _, l := range w.learnt(t, "eth0") {
				if l == fmt.Sprintf("route 2001:db8:%x::/64", round) {
					return true
				}
			}
			return false
		})
		return w.learnt(t, name)
	}
}
