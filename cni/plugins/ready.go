package plugins

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
)

// defaultInterface is the name of a pod's link, unless the pod asks for another.
const defaultInterface = "eth0"

// ready is a namespace with everything in it that does not depend on the pod's
// address.
type ready struct {
	path   string
	ifname string
	index  int             // of the pod's link
	pod    *netlink.Handle // socket inside; it keeps the namespace alive
	mac    net.HardwareAddr

	link      string // the host's end
	linkIndex int
}

// close closes the socket inside.
func (r *ready) close() {
	if r.pod != nil {
		r.pod.Close()
	}
}

// gateway is the next hop that pods see; it is on no link.
func gateway(v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.MustParseAddr("fe80::1")
}

// hostMAC is the address of every link on the host's side: each is alone on its
// wire.
func hostMAC() net.HardwareAddr {
	return net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
}

// prepare makes a namespace and fills it. It is known from before it is made until
// Setup takes it or it is deleted, so that Prune spares it.
func (n *Network) prepare(h *host) (*ready, error) {
	path := filepath.Join(n.c.Dir, "netns", rand.Text()[:16])
	r := n.newReady(path, defaultInterface)
	n.mu.Lock()
	n.known[path] = r
	n.mu.Unlock()
	err := netns.New(path, nil)
	if err == nil {
		if err = n.fill(h, r); err != nil {
			err = errors.Join(err, netns.Delete(path))
		}
	}
	if err != nil {
		n.take(path)
		return nil, err
	}
	return r, nil
}

// newReady gives a namespace its random names.
func (n *Network) newReady(path, ifname string) *ready {
	id := make([]byte, 8)
	rand.Read(id) // never fails
	return &ready{path: path, ifname: ifname, link: n.c.linkPrefix() + hex.EncodeToString(id[:4]),
		mac: net.HardwareAddr{0x02, id[4], id[5], id[6], id[7], id[0]}}
}

// fill makes the links, routes and neighbours of a namespace. A link of that name
// that is already there, from a set-up that was cut short, is replaced.
func (n *Network) fill(h *host, r *ready) (err error) {
	path, ifname := r.path, r.ifname
	if err := netns.Do(path, func() (err error) { r.pod, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, link.Delete(h.links, r.link))
			r.close()
		}
	}()
	if err := r.pod.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	pair := link.Pair{Name: r.link, MAC: hostMAC(), Peer: ifname, PeerMAC: r.mac, PeerNS: path, MTU: h.mtu}
	err = link.AddPair(h.links, pair)
	if errors.Is(err, unix.EEXIST) {
		if err = link.Delete(r.pod, ifname); err == nil {
			err = link.AddPair(h.links, pair)
		}
	}
	if err != nil {
		return err
	}
	near, err := h.links.LinkByName(r.link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", r.link, err)
	}
	// The ends of a pair name each other's index.
	r.linkIndex, r.index = near.Attrs().Index, near.Attrs().ParentIndex
	// While the pod's end is down nothing comes.
	if err := n.distrust(h, r.link); err != nil {
		return err
	}
	return n.furnish(h, r)
}

// furnish sets up the pod's end.
func (n *Network) furnish(h *host, r *ready) error {
	if err := r.pod.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: r.index, Name: r.ifname}}); err != nil {
		return fmt.Errorf("set %s up: %w", r.ifname, err)
	}
	for _, cidr := range n.c.Ranges {
		gw := gateway(cidr.Addr().Is4())
		family, any4 := unix.AF_INET6, netip.IPv6Unspecified()
		if gw.Is4() {
			family, any4 = unix.AF_INET, netip.IPv4Unspecified()
		}
		if err := r.pod.NeighSet(&netlink.Neigh{LinkIndex: r.index, Family: family, State: netlink.NUD_PERMANENT,
			IP: gw.AsSlice(), HardwareAddr: hostMAC()}); err != nil {
			return fmt.Errorf("set gateway's neighbour entry: %w", err)
		}
		if err := r.pod.RouteReplace(&netlink.Route{LinkIndex: r.index, Scope: netlink.SCOPE_LINK, Dst: single(gw)}); err != nil {
			return fmt.Errorf("set route to gateway: %w", err)
		}
		all := &net.IPNet{IP: any4.AsSlice(), Mask: net.CIDRMask(0, any4.BitLen())}
		if err := r.pod.RouteReplace(&netlink.Route{LinkIndex: r.index, Dst: all, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("set default route: %w", err)
		}
	}
	return nil
}

// single is the prefix of one address.
func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}
