package proxy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/conntrack"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/nft"
)

// endpointSet are addresses and ports of endpoints.
type endpointSet map[netip.AddrPort]bool

// flows says where the UDP flows of one Service may go: by each of its addresses and ports, where a node port's address is unspecified,
// every endpoint that still serves. Whether new flows go there is not asked: a client is not torn from an endpoint that answers.
type flows map[netip.AddrPort]endpointSet

func flowsOf(f Facts, svc *corev1.Service, slices_ []*discoveryv1.EndpointSlice) flows {
	out := flows{}
	for w := range writers(f, svc) {
		if w.proto != nft.UDP {
			continue
		}
		serving := endpointSet{}
		for _, e := range endpointsOf(f, w.fam, w.port, slices_) {
			if e.ready || e.serving {
				serving[e.to] = true
			}
		}
		port := uint16(w.port.Port)
		out[netip.AddrPortFrom(w.clusterIP, port)] = serving
		if n := w.nodePort(); n != 0 {
			out[netip.AddrPortFrom(unspecified(w.clusterIP), n)] = serving
		}
		for _, ip := range slices.Concat(w.addresses(svc.Spec.ExternalIPs), w.balancers()) {
			out[netip.AddrPortFrom(ip, port)] = serving
		}
	}
	return out
}

// udpFlows are all Services' flows, and the addresses at which the kernel may have others: those are stale. A client that keeps its port would go
// on to an endpoint that is gone, or, when its first packet came before there was one, to nowhere.
type udpFlows struct {
	byService map[api.Key]flows
	claims    map[netip.AddrPort]map[api.Key]endpointSet // the same by address; two Services may claim one
	look      map[netip.AddrPort]bool                    // where there may be stale ones, until they are forgotten
}

func newUDPFlows() *udpFlows {
	return &udpFlows{map[api.Key]flows{}, map[netip.AddrPort]map[api.Key]endpointSet{}, map[netip.AddrPort]bool{}}
}

// set replaces a Service's flows; nil removes them. An address that is new is looked at too: flows may be left from before this process.
func (u *udpFlows) set(k api.Key, next flows) {
	old := u.byService[k]
	for vip, had := range old {
		if delete(u.claims[vip], k); len(u.claims[vip]) == 0 {
			delete(u.claims, vip)
		}
		for to := range had {
			if !next[vip][to] {
				u.look[vip] = true
			}
		}
	}
	for vip, has := range next {
		if u.claims[vip] == nil {
			u.claims[vip] = map[api.Key]endpointSet{}
		}
		u.claims[vip][k] = has
		if had, ok := old[vip]; !ok || len(had) == 0 && len(has) > 0 {
			u.look[vip] = true
		}
	}
	if delete(u.byService, k); len(next) > 0 {
		u.byService[k] = next
	}
}

// stale reports whether a flow to a Service's address, or to a node port as vip, goes where it should not.
func (u *udpFlows) stale(vip netip.AddrPort, f conntrack.Flow) bool {
	if !u.look[vip] {
		return false
	}
	for _, serving := range u.claims[vip] {
		if serving[f.From] {
			return false
		}
	}
	return len(u.claims[vip]) > 0 || f.From != f.To // to an address that is no Service's any more, what is not rewritten is right
}

// forget has the kernel forget what is stale. What it could not forget is looked at the next time.
func (k *kernel) forget(u *udpFlows, takesNodePorts func(netip.Addr) bool) error {
	if len(u.look) == 0 {
		return nil
	}
	v4, v6, local := false, false, map[netip.Addr]bool{}
	for vip := range u.look {
		v4, v6 = v4 || vip.Addr().Is4(), v6 || vip.Addr().Is6()
		if len(local) > 0 || !vip.Addr().IsUnspecified() {
			continue
		}
		addrs, err := link.Dump(func() ([]netlink.Addr, error) { return k.links.AddrList(nil, unix.AF_UNSPEC) })
		if err != nil {
			return fmt.Errorf("list the host's addresses: %w", err)
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			local[ip.Unmap()] = takesNodePorts(ip.Unmap())
		}
	}
	err := conntrack.ForgetUDP(k.links, v4, v6, func(f conntrack.Flow) bool {
		return u.stale(f.To, f) || local[f.To.Addr()] && u.stale(netip.AddrPortFrom(unspecified(f.To.Addr()), f.To.Port()), f)
	})
	if err == nil {
		clear(u.look)
	}
	return err
}

// unspecified is the address that stands for all of an address's family.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
