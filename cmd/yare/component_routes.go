package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/link"
)

// routes lets this node's pods reach those of other nodes: a route to each other Node's range of pod addresses by way of the
// Node's address, where that is on a link of this host. Nodes behind a router are left to whoever runs that router.
//
// A route into the cluster's ranges that bears our origin is ours: there is no record that could differ from the kernel.
// Routes go when the component ends.
type routes struct {
	node    string
	cluster []netip.Prefix // all pods' addresses
	client  client.Reader
	log     *slog.Logger

	nodes map[string]*corev1.Node
	told  map[netip.Addr]bool // of which nodes was said that they are out of reach, once
}

// routeOrigin marks our routes. Nobody else's program has this number in /etc/iproute2/rt_protos.
const routeOrigin = netlink.RouteProtocol(121)

// routesEvery is how often the kernel is compared although no Node changed: a link that goes down takes its routes along.
const routesEvery = 30 * time.Second

func newRoutes(node string, cluster []netip.Prefix, c client.Reader, log *slog.Logger) *routes {
	return &routes{node: node, cluster: cluster, client: c, log: log, nodes: map[string]*corev1.Node{}, told: map[netip.Addr]bool{}}
}

// Name is the component's.
func (*routes) Name() string { return "routes" }

// Run keeps the routes until ctx ends. It is ready when those of all Nodes are there.
func (r *routes) Run(ctx context.Context, ready func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, failed := make(chan client.Event), make(chan error, 1)
	go func() { failed <- client.Follow(ctx, r.client, api.NodeKind, client.Query{}, events) }()
	defer func() { err = errors.Join(err, r.apply(nil)) }()
	tick := time.NewTicker(routesEvery)
	defer tick.Stop()
	synced := false
	for {
		select {
		case e := <-events:
			if e.Op != client.Synced {
				r.note(e)
			} else if !synced {
				synced = true
				r.sync()
				ready()
			}
		case <-tick.C:
		case err := <-failed:
			return err
		}
		if synced {
			r.sync()
		}
	}
}

func (r *routes) note(e client.Event) {
	if e.Op == client.Deleted {
		delete(r.nodes, e.Object.GetName())
	} else {
		r.nodes[e.Object.GetName()] = e.Object.(*corev1.Node)
	}
}

// sync brings the kernel to what the Nodes say. What fails now is tried again at the next change or tick.
func (r *routes) sync() {
	if err := r.apply(r.wanted()); err != nil {
		r.log.Warn("routes to other nodes' pods incomplete", "err", err)
	}
}

// wanted returns, for every other Node's range, the address that it is behind.
func (r *routes) wanted() map[netip.Prefix]netip.Addr {
	want := map[netip.Prefix]netip.Addr{}
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		if name == r.node {
			continue
		}
		for _, p := range podCIDRs(r.nodes[name]) {
			if !slices.ContainsFunc(r.cluster, func(c netip.Prefix) bool { return c.Contains(p.Addr()) && p.Bits() >= c.Bits() }) {
				continue // a Node that claims addresses that are not pods'
			}
			for _, a := range r.nodes[name].Status.Addresses {
				ip, err := netip.ParseAddr(a.Address)
				if _, twice := want[p]; err == nil && !twice && a.Type == corev1.NodeInternalIP && ip.Is4() == p.Addr().Is4() {
					want[p] = ip
				}
			}
		}
	}
	return want
}

// apply adds and changes routes to those of want, and removes others of ours.
func (r *routes) apply(want map[netip.Prefix]netip.Addr) error {
	have, err := link.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeOrigin}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	there := map[netip.Prefix]bool{}
	for _, route := range have {
		dst, via := prefixOf(route.Dst), addrOf(route.Gw)
		switch {
		case !slices.ContainsFunc(r.cluster, dst.Overlaps):
		case want[dst] == via && via.IsValid():
			there[dst] = true
		case want[dst].IsValid(): // is replaced
		default:
			if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route to %s: %w", dst, err))
			}
		}
	}
	for dst, via := range want {
		if there[dst] {
			continue
		}
		if err := r.add(dst, via); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s via %s: %w", dst, via, err))
		}
	}
	return errors.Join(errs...)
}

// add makes one route, if its next hop is on a link.
func (r *routes) add(dst netip.Prefix, via netip.Addr) error {
	found, err := netlink.RouteGet(via.AsSlice())
	if err != nil {
		return fmt.Errorf("look up: %w", err)
	}
	if len(found) == 0 || found[0].Gw != nil || found[0].Type != unix.RTN_UNICAST {
		if !r.told[via] {
			r.told[via] = true
			r.log.Info("node is not on a link of this host: its pods are reached only if somebody else routes to them", "addr", via, "pods", dst)
		}
		return nil
	}
	r.log.Info("route to another node's pods", "pods", dst, "via", via)
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: found[0].LinkIndex, Protocol: routeOrigin, Gw: via.AsSlice(),
		Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
	})
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
