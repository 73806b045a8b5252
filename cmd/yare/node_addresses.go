package main

import (
	"iter"
	"net"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
)

// ownFor is how long this host's addresses are taken for the same: they are asked for with every name that another node's pods ask of.
const ownFor = time.Second

// nodeAddresses knows whether a Node, or this host, has an address: what its pods ask of names comes from there, where its network hides their
// addresses from hosts.
type nodeAddresses struct {
	nodes func() (changed api.Revision, all iter.Seq[*corev1.Node])
	own   func() ([]net.Addr, error)

	mu      sync.Mutex
	changed api.Revision // of the Nodes that ofNodes are of
	ofNodes map[netip.Addr]bool
	asked   time.Time // when ofHost were
	ofHost  map[netip.Addr]bool
}

// nodeAddresses are of the Nodes as they are published here: that is new enough, and there without a majority too.
func (s *server) nodeAddresses() *nodeAddresses {
	return &nodeAddresses{own: net.InterfaceAddrs, nodes: func() (api.Revision, iter.Seq[*corev1.Node]) {
		snapshot := s.store.Snapshot(api.NodeKind)
		return snapshot.Changed(), func(yield func(*corev1.Node) bool) {
			for e := range snapshot.All("", api.Key{}) {
				if n, ok := e.Object.(*corev1.Node); ok && !yield(n) {
					return
				}
			}
		}
	}}
}

func (n *nodeAddresses) has(a netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if changed, all := n.nodes(); n.ofNodes == nil || changed != n.changed {
		n.changed, n.ofNodes = changed, map[netip.Addr]bool{}
		for node := range all {
			for _, have := range node.Status.Addresses {
				if ip, err := netip.ParseAddr(have.Address); err == nil && have.Type == corev1.NodeInternalIP {
					n.ofNodes[ip] = true
				}
			}
		}
	}
	if n.ofNodes[a] {
		return true
	}
	if now := time.Now(); n.ofHost == nil || now.Sub(n.asked) > ownFor {
		n.asked, n.ofHost = now, map[netip.Addr]bool{}
		own, _ := n.own() // without an answer it has none
		for _, have := range own {
			if p, ok := have.(*net.IPNet); ok {
				n.ofHost[addrOf(p.IP)] = true
			}
		}
	}
	return n.ofHost[a]
}
