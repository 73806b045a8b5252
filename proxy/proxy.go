package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/nft"
)

// serviceProxyName is the label of Services that another proxy serves.
const serviceProxyName = "service.kubernetes.io/service-proxy-name"

// DefaultMark is the packet mark bit that upstream's proxy uses too.
const DefaultMark = 0x4000

// Config says how Services are served on this node.
type Config struct {
	// Table is the nftables table, of the inet family and nobody else's. It
	// distinguishes the clusters of a host.
	Table    string
	NodeName string
	// ClusterCIDRs are the pods' addresses.
	ClusterCIDRs []netip.Prefix
	// NodePortAddresses restricts node ports to the host's addresses in these
	// prefixes; empty means all of them but the loopback's.
	NodePortAddresses []netip.Prefix
	// MasqueradeMark is one bit of the packet mark; 0 means DefaultMark.
	MasqueradeMark uint32
}

// Validate returns all problems at once.
func (c Config) Validate() error {
	var errs []error
	if c.Table == "" {
		errs = append(errs, errors.New("table: is empty"))
	}
	if c.NodeName == "" {
		errs = append(errs, errors.New("nodeName: is empty"))
	}
	if c.MasqueradeMark&(c.MasqueradeMark-1) != 0 {
		errs = append(errs, fmt.Errorf("masqueradeMark: %#x is not one bit", c.MasqueradeMark))
	}
	for _, p := range append(c.ClusterCIDRs[:len(c.ClusterCIDRs):len(c.ClusterCIDRs)], c.NodePortAddresses...) {
		if !p.IsValid() {
			errs = append(errs, errors.New("clusterCIDRs, nodePortAddresses: a prefix is not valid"))
		}
	}
	return errors.Join(errs...)
}

// Deps are what a Proxy needs.
type Deps struct {
	Client client.Reader
	Log    *slog.Logger
}

// Proxy serves Services on this node. It implements run.Component.
type Proxy struct {
	c Config
	d Deps
}

// New returns a proxy.
func New(c Config, d Deps) (*Proxy, error) {
	if c.MasqueradeMark == 0 {
		c.MasqueradeMark = DefaultMark
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return &Proxy{c, d}, nil
}

// Name implements run.Component.
func (p *Proxy) Name() string { return "proxy" }

// Run implements run.Component, in the network namespace of the calling thread. It
// is ready when the kernel has every Service that existed at the start. The table stays when it returns,
// and connections with it: Remove removes it.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	k, err := newKernel(p.c.Table, p.d.Log)
	if err != nil {
		return err
	}
	defer k.close()
	k.routed(p.c.ClusterCIDRs)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &loop{p: p, kernel: k, ready: ready, health: newHealth(p.c.NodePortAddresses, p.d.Log),
		services: map[api.Key]*corev1.Service{}, slices: map[api.Key]map[string]*discoveryv1.EndpointSlice{}, dirty: map[api.Key]bool{}, flows: newUDPFlows()}
	l.state = newState(Facts{Table: p.c.Table, NodeName: p.c.NodeName, PodCIDRs: p.c.ClusterCIDRs,
		NodePortAddresses: p.c.NodePortAddresses, Mark: p.c.MasqueradeMark})
	defer l.health.close()
	events := make(chan client.Event, 256)
	errs := make(chan error, 4)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	node := client.Query{Fields: fields.OneTermEqualSelector("metadata.name", p.c.NodeName)}
	for _, w := range []struct {
		kind  *api.Kind
		query client.Query
	}{{api.ServiceKind, client.Query{}}, {api.EndpointSliceKind, client.Query{}}, {api.NodeKind, node}} {
		wg.Go(func() { errs <- client.Follow(ctx, p.d.Client, w.kind, w.query, events) })
	}
	wg.Go(func() { errs <- k.mon.Signal(ctx, k.foreign) })
	return l.run(ctx, events, errs)
}

// Remove removes the table, and with it every trace of the proxy.
func Remove(table string) error { return nft.Remove(table) }

// loop is the state of Run; only its goroutine touches it.
type loop struct {
	p      *Proxy
	kernel *kernel
	health *health
	ready  func()
	state  *state
	flows  *udpFlows

	services map[api.Key]*corev1.Service
	slices   map[api.Key]map[string]*discoveryv1.EndpointSlice
	dirty    map[api.Key]bool
	synced   int  // kinds whose objects are all known
	applied  bool // the kernel has had the whole table once
	again    bool // the last transaction failed
}

func (l *loop) run(ctx context.Context, events <-chan client.Event, errs <-chan error) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errs:
			if ctx.Err() != nil {
				return nil
			}
			return cmp.Or(err, errors.New("a watch ended"))
		case e := <-events:
			l.take(e)
			for drained := false; !drained; {
				select {
				case e := <-events:
					l.take(e)
				default:
					drained = true
				}
			}
		case <-l.kernel.foreign:
			l.again = true
		case <-retry.C:
		}
		if l.synced < 3 {
			continue
		}
		if err := l.sync(); err != nil {
			l.p.d.Log.Error("services not applied, trying again", "err", err)
			retry.Reset(time.Second)
		}
	}
}

// take notes what an event changes.
func (l *loop) take(e client.Event) {
	if e.Op == client.Synced {
		l.synced++
		return
	}
	switch o := e.Object.(type) {
	case *corev1.Service:
		k := api.KeyOf(o)
		_, foreign := o.Labels[serviceProxyName]
		if delete(l.services, k); e.Op != client.Deleted && !foreign {
			l.services[k] = o
		}
		l.dirty[k] = true
	case *discoveryv1.EndpointSlice:
		k := api.Key{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}
		if old, ok := e.Old.(*discoveryv1.EndpointSlice); ok && e.Op == client.Modified {
			l.drop(api.Key{Namespace: old.Namespace, Name: old.Labels[discoveryv1.LabelServiceName]}, old.Name)
		}
		l.drop(k, o.Name)
		if e.Op != client.Deleted && k.Name != "" {
			if l.slices[k] == nil {
				l.slices[k] = map[string]*discoveryv1.EndpointSlice{}
			}
			l.slices[k][o.Name] = o
		}
		l.dirty[k] = true
	case *corev1.Node:
		zone, ips := o.Labels[corev1.LabelTopologyZone], nodeIPs(o)
		if f := &l.state.f; e.Op != client.Deleted && (zone != f.Zone || !slices.Equal(ips, f.NodeIPs)) {
			f.Zone, f.NodeIPs = zone, ips
			for k := range l.services {
				l.dirty[k] = true
			}
		}
	}
}

func nodeIPs(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}

func (l *loop) drop(k api.Key, slice string) {
	if m := l.slices[k]; m != nil {
		if delete(m, slice); len(m) == 0 {
			delete(l.slices, k)
		}
		l.dirty[k] = true
	}
}

// partOf computes what a Service has in the table now, nil for one that is gone.
func (l *loop) partOf(k api.Key) *nft.Table {
	svc := l.services[k]
	if svc == nil {
		l.flows.set(k, nil)
		return nil
	}
	var own []*discoveryv1.EndpointSlice
	for _, s := range l.slices[k] {
		own = append(own, s)
	}
	l.health.set(k, svc, l.state.f, own)
	l.flows.set(k, flowsOf(l.state.f, svc, own))
	return part(l.state.f, svc, own)
}

// sync hands what is dirty to the kernel in one transaction, and has it forget the flows that go on to where they went before.
func (l *loop) sync() error {
	if len(l.dirty) > 0 || !l.applied || l.again {
		if err := l.apply(); err != nil {
			l.again = true
			return err
		}
	}
	return l.kernel.forget(l.flows, func(a netip.Addr) bool { return takesNodePorts(l.state.f, a) })
}

// apply makes the kernel's table what is wanted now.
func (l *loop) apply() error {
	start, count := time.Now(), len(l.dirty)
	batch := &nft.Batch{}
	whole := l.again || !l.applied
	for k := range l.dirty {
		next := l.partOf(k)
		if next == nil {
			l.health.drop(k)
		}
		if whole || next == nil && l.state.parts[k] == nil {
			if next != nil {
				l.state.parts[k] = next
			} else {
				delete(l.state.parts, k)
			}
			continue
		}
		old, now, ok := l.state.replace(k, next)
		if !ok {
			whole = true
			continue
		}
		batch.Update(old, now)
	}
	clear(l.dirty)
	l.health.apply()
	if whole {
		l.state.rebuild()
		if err := l.kernel.makeWhole(l.state.table); err != nil {
			return err
		}
	} else if err := l.kernel.conn.Commit(batch); err != nil {
		return err
	}
	l.again = false
	if !l.applied {
		l.applied = true
		l.ready()
	}
	l.p.d.Log.Debug("services applied", "services", count, "whole", whole, "messages", batch.Messages(), "took", time.Since(start))
	return nil
}

// kernel is the proxy's hold on the host.
type kernel struct {
	table   string
	conn    *nft.Conn
	mon     *nft.Monitor
	links   *netlink.Handle
	log     *slog.Logger
	foreign chan struct{}
}

func newKernel(table string, log *slog.Logger) (*kernel, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	mon, err := conn.Watch(table)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	links, err := netlink.NewHandle(unix.NETLINK_NETFILTER, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), mon.Close(), conn.Close())
	}
	k := &kernel{table: table, conn: conn, mon: mon, links: links, log: log, foreign: make(chan struct{}, 1)}
	return k, nil
}

// routed tells where the host's own connections to Services would find no way, by the families of pods.
func (k *kernel) routed(pods []netip.Prefix) {
	four, six := len(pods) == 0, false
	for _, p := range pods {
		four, six = four || p.Addr().Is4(), six || p.Addr().Is6()
	}
	for family, wanted := range map[int]bool{netlink.FAMILY_V4: four, netlink.FAMILY_V6: six} {
		if routes, err := k.links.RouteList(nil, family); wanted && err == nil && !hasDefault(routes) {
			k.log.Warn("no default route: the host's own connections to service addresses need a route to them", "ipv6", family == netlink.FAMILY_V6)
		}
	}
}

func hasDefault(routes []netlink.Route) bool {
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			return true
		}
	}
	return false
}

func (k *kernel) close() {
	k.links.Close()
	_, _ = k.mon.Close(), k.conn.Close() // nothing is in flight
}

// makeWhole makes the kernel's table equal to want, whatever it was.
func (k *kernel) makeWhole(want *nft.Table) error {
	because, err := k.conn.MakeWhole(k.table, want)
	if because != nil {
		k.log.Warn("replaced the whole table", "table", k.table, "err", because)
	}
	return err
}
