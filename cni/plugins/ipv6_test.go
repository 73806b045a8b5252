package plugins

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
)

// newWorld6 is a world of a kernel that has IPv6.
func newWorld6(t *testing.T) *world {
	t.Helper()
	if err := link.CheckIPv6(); err != nil {
		t.Skip(err)
	}
	return newWorld(t)
}

// TestPaths6 checks the same for the addresses of IPv6 of pods that have both.
func TestPaths6(t *testing.T) {
	t.Parallel()
	w := newWorld6(t)
	n := w.network(t, dual)
	// At once: no address waits for the kernel to look for another of its kind.
	a, addrsA := attachAll(t, n, cni.Pod{ID: "a", PortMappings: []cni.PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 8053, ContainerPort: 53, Protocol: cni.UDP},
		{HostPort: 8081, ContainerPort: 80, HostIP: netip.MustParseAddr("2001:db8::2")},
		{HostPort: 8082, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.2")},
		{HostPort: 8083, ContainerPort: 80, HostIP: netip.IPv6Unspecified()},
	}})
	b, addrsB := attachAll(t, n, cni.Pod{ID: "b"})
	for _, addrs := range [][]netip.Addr{addrsA, addrsB} {
		if len(addrs) != 2 || !n.c.Ranges[0].Contains(addrs[0]) || !n.c.Ranges[1].Contains(addrs[1]) {
			t.Fatalf("a pod has %v", addrs)
		}
	}
	w.serve(t, a.NetNS, "tcp", ":80")
	w.serve(t, a.NetNS, "udp", ":53")
	w.serve(t, w.outside, "tcp", ":80")
	A, B := "["+addrsA[1].String()+"]", addrsB[1].String()
	const host, outside = "2001:db8::2", "2001:db8::1"
	for _, test := range []struct{ name, from, proto, to, want string }{
		{"pod to itself", a.NetNS, "tcp", A + ":80", addrsA[1].String()},
		{"pod to its loopback", a.NetNS, "tcp", "[::1]:80", "::1"},
		{"pod to pod", b.NetNS, "tcp", A + ":80", B},
		{"pod to pod, udp", b.NetNS, "udp", A + ":53", B},
		{"pod to pod, the other family", b.NetNS, "tcp", addrsA[0].String() + ":80", addrsB[0].String()},
		{"host to pod", w.host, "tcp", A + ":80", host},
		{"pod to outside", b.NetNS, "tcp", "[2001:db8::1]:80", host},
		{"outside to host port", w.outside, "tcp", "[2001:db8::2]:8080", outside},
		{"outside to host port, the other family", w.outside, "tcp", "192.0.2.2:8080", "192.0.2.1"},
		{"outside to host port, udp", w.outside, "udp", "[2001:db8::2]:8053", outside},
		{"outside to host port of an address", w.outside, "tcp", "[2001:db8::2]:8081", outside},
		{"outside to host port of an address of the other family", w.outside, "tcp", "192.0.2.2:8082", "192.0.2.1"},
		{"outside to host port of all addresses", w.outside, "tcp", "[2001:db8::2]:8083", outside},
		{"host to host port", w.host, "tcp", "[2001:db8::2]:8080", host},
		{"pod to host port", b.NetNS, "tcp", "[2001:db8::2]:8080", B},
		{"pod to its own host port", a.NetNS, "tcp", "[2001:db8::2]:8080", host},
	} {
		if got := w.ask(t, test.from, test.proto, test.to); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	for _, to := range []string{"[2001:db8::1]:8080", "[2001:db8::2]:8082", "192.0.2.2:8081"} {
		if got := w.ask(t, w.outside, "tcp", to); !strings.Contains(got, "refused") {
			t.Errorf("connection to %s: %s", to, got)
		}
	}
	w.leave(t, n, "[2001:db8::2]:8080", a, b)
}

// TestForwarding6 finds the default route that a router told the host still there when it has begun to pass packets on, and all as it was when
// that is taken back.
func TestForwarding6(t *testing.T) {
	t.Parallel()
	w := newWorld6(t)
	w.in(t, w.host, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		told := func() (n int) {
			routes, err := netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				t.Error(err)
			}
			return len(routes)
		}
		if err := link.Sysctl("net/ipv6/conf/eth0/accept_ra", "1"); err != nil {
			return err
		}
		advertise := w.advertiser(t, w.outside)
		until(t, "the router is believed", func() bool { advertise(1); return told() > 0 })
		had := told()
		before, err := link.Advertised()
		if err != nil || !slices.Equal(before, []string{l.Attrs().Name}) || link.Forwarding6() != "0" {
			t.Errorf("before: %v, %v, forwarding %s", before, err, link.Forwarding6())
		}
		if err := link.Forward6(); err != nil {
			return err
		}
		if told() != had || link.Forwarding6() != "1" {
			t.Errorf("%d routes of a router, had %d; forwarding %s", told(), had, link.Forwarding6())
		}
		if err := link.RestoreForward6("0", before); err != nil {
			return err
		}
		if after, err := link.Advertised(); err != nil || !slices.Equal(after, before) || link.Forwarding6() != "0" {
			t.Errorf("after: %v, %v, forwarding %s", after, err, link.Forwarding6())
		}
		return nil
	})
}

// TestSpoofing6 is the same by IPv6, for which the kernel has no rp_filter: without the guard's rule the receiver hears from the victim first.
func TestSpoofing6(t *testing.T) {
	t.Parallel()
	w := newWorld6(t)
	n := w.network(t, dual)
	addrs, paths := map[string]netip.Addr{}, map[string]string{}
	for _, name := range []string{"sender", "receiver", "victim"} {
		p, all := attachAll(t, n, cni.Pod{ID: name})
		addrs[name], paths[name] = all[1], p.NetNS
		t.Cleanup(func() { detach(t, n, p) })
	}
	var in, out int
	w.in(t, paths["receiver"], func() (err error) {
		in, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return errors.Join(err, unix.Bind(in, &unix.SockaddrInet6{Port: 9}))
	})
	t.Cleanup(func() { unix.Close(in) })
	w.in(t, paths["sender"], func() (err error) {
		out, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	t.Cleanup(func() { unix.Close(out) })
	to := addrs["receiver"]
	send := func(from netip.Addr, port uint16) {
		t.Helper()
		if err := unix.Sendto(out, datagram6(from, to, port, 9), 0, &unix.SockaddrInet6{Addr: to.As16()}); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() (from netip.AddrPort, ok bool) {
		_, sa, err := unix.Recvfrom(in, make([]byte, 100), unix.MSG_DONTWAIT)
		if err != nil {
			return from, false
		}
		a := sa.(*unix.SockaddrInet6)
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), true
	}
	// A link passes nothing on until the kernel has noticed that both of its ends are up.
	until(t, "the way is open", func() bool { send(addrs["sender"], 1); _, ok := receive(); return ok })
	for _, from := range []netip.Addr{addrs["victim"], netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), addrs["sender"]} {
		send(from, 2)
	}
	until(t, "the last has come", func() bool {
		for {
			from, ok := receive()
			if ok && from.Addr() != addrs["sender"] {
				t.Errorf("%s sent as %s", addrs["sender"], from)
			}
			if !ok || from == netip.AddrPortFrom(addrs["sender"], 2) {
				return ok
			}
		}
	})
}

// datagram6 is a packet of UDP without content.
func datagram6(from, to netip.Addr, source, port uint16) []byte {
	p := make([]byte, 40+8)
	p[0], p[5], p[6], p[7] = 0x60, 8, unix.IPPROTO_UDP, 64
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	binary.BigEndian.PutUint16(p[40:], source)
	binary.BigEndian.PutUint16(p[42:], port)
	binary.BigEndian.PutUint16(p[44:], 8)
	sum := uint32(8 + unix.IPPROTO_UDP) // of the pseudo-header, which has the addresses too
	for i := 8; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[46:], ^uint16(sum))
	return p
}
