package main

import (
	"iter"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
)

// TestIsNode has the addresses of Nodes and of the host known as they change, and not looked up anew for each question.
func TestIsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
			{Type: corev1.NodeExternalIP, Address: "192.0.2.9"}}}}
		own := &net.IPNet{IP: net.ParseIP("192.0.2.2"), Mask: net.CIDRMask(24, 32)}
		changed, scans, dumps := api.Revision(0), 0, 0
		n := &nodeAddresses{
			nodes: func() (api.Revision, iter.Seq[*corev1.Node]) {
				return changed, func(yield func(*corev1.Node) bool) { scans++; slices.Values([]*corev1.Node{node})(yield) }
			},
			own: func() ([]net.Addr, error) { dumps++; return []net.Addr{own}, nil },
		}
		are := func(want map[string]bool, wantScans, wantDumps int) {
			t.Helper()
			for range 100 {
				for a, want := range want {
					if n.has(netip.MustParseAddr(a)) != want {
						t.Errorf("%s is not known for %v", a, want)
					}
				}
			}
			if scans != wantScans || dumps != wantDumps {
				t.Errorf("%d scans, %d dumps, want %d, %d", scans, dumps, wantScans, wantDumps)
			}
		}
		are(map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "192.0.2.9": false, "192.0.2.3": false}, 1, 1)
		node = node.DeepCopy()
		node.Status.Addresses[0].Address = "192.0.2.3"
		changed++
		are(map[string]bool{"192.0.2.1": false, "192.0.2.3": true}, 2, 1)
		own.IP = net.ParseIP("192.0.2.4")
		time.Sleep(2 * ownFor)
		are(map[string]bool{"192.0.2.2": false, "192.0.2.4": true}, 2, 2)
	})
}
