package builtin

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// allocator gives Services their cluster addresses and node ports.
//
// What is in use is not stored anywhere but in the Services themselves: the allocator derives it from the store, at
// start from a snapshot and then from each change, so that no crash can leak an address and there is nothing to repair.
// An address that was promised to a write under way is in pending until the write's end, when the store, whose writers
// return after publication, shows it in the Service or it is free again; where nobody knows how the write has ended, until it
// has settled. Everything happens under one lock.
//
// Addresses of a family come from the configured range and from those of further ServiceCIDRs, as long as they are ready. A family without a
// configured range has no addresses: which families there are is settled before, by servicefamilies.go. An IPAddress that
// somebody else made takes its address away from Services; those that package bootstrap writes say what Services have.
//
// Of several API servers over one etcd, each allocates. Their writes depend on no other one having taken anything since the state that the choice was
// made of (store.Allocated); who was overtaken chooses anew.
type allocator struct {
	store    *store.Store
	own      string         // names this server among others
	prefixes []netip.Prefix // configured, at most one of a family
	reserved map[netip.Addr]bool
	first    int32 // node ports
	last     int32

	mu      sync.Mutex
	follow  *follow.Follower
	used    map[claim]int // how many Services have it: foreign data may name one twice
	pending map[claim]int
	ranges  map[string][]netip.Prefix // of the ready ServiceCIDRs, by name
	closed  map[string]closed         // of the others
}

// closed are the ranges of a ServiceCIDR of which no new addresses can be taken.
type closed struct {
	ranges   []netip.Prefix
	deleting bool
}

// claim is one address or one port of one protocol. Ports are claimed for a Service as a whole.
type claim struct {
	addr  netip.Addr
	port  int32
	proto corev1.Protocol
}

func newAllocator(d Deps) *allocator {
	a := &allocator{store: d.Store, own: d.ServerName, reserved: map[netip.Addr]bool{}, first: d.NodePorts[0], last: d.NodePorts[1],
		used: map[claim]int{}, pending: map[claim]int{}, ranges: map[string][]netip.Prefix{}, closed: map[string]closed{}}
	if a.last == 0 {
		a.first, a.last = 30000, 32767
	}
	for _, p := range d.Services {
		a.prefixes = append(a.prefixes, p.Masked())
	}
	for _, addr := range d.Reserved {
		a.reserved[addr] = true
	}
	if d.Store != nil {
		a.follow = follow.New(d.Store, a, api.ServiceKind, api.IPAddressKind, api.ServiceCIDRKind)
	}
	return a
}

// Reset implements follow.State.
func (a *allocator) Reset() {
	clear(a.used)
	clear(a.ranges)
	clear(a.closed)
}

// Change implements follow.State.
func (a *allocator) Change(k *api.Kind, now, old api.Object) {
	if k == api.ServiceCIDRKind {
		if old != nil {
			delete(a.ranges, old.GetName())
			delete(a.closed, old.GetName())
		}
		if c, ok := now.(*networkingv1.ServiceCIDR); ok {
			if ready(c) {
				a.ranges[c.Name] = rangesOf(c)
			} else {
				a.closed[c.Name] = closed{rangesOf(c), c.DeletionTimestamp != nil}
			}
		}
		return
	}
	for _, c := range claimed(old) {
		if a.used[c]--; a.used[c] <= 0 {
			delete(a.used, c)
		}
	}
	for _, c := range claimed(now) {
		a.used[c]++
	}
}

// ready says whether new addresses can be taken from c: none from what is being deleted.
func ready(c *networkingv1.ServiceCIDR) bool {
	is := meta.FindStatusCondition(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
	return c.DeletionTimestamp == nil && (is == nil || is.Status == metav1.ConditionTrue)
}

func rangesOf(c *networkingv1.ServiceCIDR) (ranges []netip.Prefix) {
	for _, text := range c.Spec.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			ranges = append(ranges, p.Masked())
		}
	}
	return ranges
}

// AddressManager is the label's value of IPAddresses that say what Services have.
const AddressManager = "ipallocator.k8s.io"

// claimed is what a Service has, or an IPAddress that stands for no Service's. Nil claims nothing.
func claimed(o api.Object) []claim {
	switch o := o.(type) {
	case *corev1.Service:
		return claims(o)
	case *networkingv1.IPAddress:
		if addr, err := netip.ParseAddr(o.Name); err == nil && o.Labels[networkingv1.LabelManagedBy] != AddressManager {
			return []claim{{addr: addr}}
		}
	}
	return nil
}

// claims is what s has.
func claims(s *corev1.Service) (cs []claim) {
	for _, ip := range s.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			cs = append(cs, claim{addr: addr})
		}
	}
	for _, p := range s.Spec.Ports {
		if c := (claim{port: p.NodePort, proto: p.Protocol}); p.NodePort != 0 && !slices.Contains(cs, c) {
			cs = append(cs, c)
		}
	}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		if c := (claim{port: n, proto: corev1.ProtocolTCP}); !slices.Contains(cs, c) {
			cs = append(cs, c)
		}
	}
	return cs
}

// hold is the Hold of Services: it fills in what now needs and does not name, and refuses what is taken.
func (a *allocator) hold(ctx context.Context, now, old *corev1.Service, _ bool) (*rest.Held, error) {
	if now == nil {
		return nil, nil // what a deleted Service had is free with its deletion
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	since := a.store.Revision() // or later
	if err := a.follow.CatchUp(); err != nil {
		return nil, fmt.Errorf("allocate for service %s: %w", api.KeyOf(now), err)
	}
	t := &taking{allocator: a, own: map[claim]bool{}}
	if old != nil {
		for _, c := range claims(old) {
			t.own[c] = true
		}
	}
	if err := t.clusterIPs(now); err != nil {
		t.giveBackLocked()
		return nil, err
	}
	if errs := t.nodePorts(now); len(errs) > 0 {
		t.giveBackLocked()
		return nil, apierrors.NewInvalid(api.ServiceKind.GVK().GroupKind(), now.Name, errs)
	}
	if len(t.taken) == 0 {
		return nil, nil
	}
	end := func(context.Context) {
		a.mu.Lock()
		defer a.mu.Unlock()
		t.giveBackLocked()
	}
	// Committed or not, the promise ends: the store knows by then.
	return &rest.Held{Context: a.store.Allocated(ctx, "services", a.own, since), Commit: end, Abort: end}, nil
}

// taking is the allocation for one write.
type taking struct {
	*allocator
	own   map[claim]bool // what the Service had before
	taken []claim
}

// take claims c and says whether it was free. Preconditions: mu is held.
func (t *taking) take(c claim) bool {
	if t.own[c] || slices.Contains(t.taken, c) {
		return true
	}
	if t.used[c] > 0 || t.pending[c] > 0 {
		return false
	}
	t.pending[c]++
	t.taken = append(t.taken, c)
	return true
}

// giveBackLocked ends the promises. Preconditions: mu is held.
func (t *taking) giveBackLocked() {
	for _, c := range t.taken {
		if t.pending[c]--; t.pending[c] <= 0 {
			delete(t.pending, c)
		}
	}
	t.taken = nil
}

// clusterIPs gives s an address of each of its families, or checks those that it asks for.
func (t *taking) clusterIPs(s *corev1.Service) error {
	if !needsClusterIP(s) || headless(s) {
		return nil
	}
	ips := slices.Clone(s.Spec.ClusterIPs)
	for i, f := range s.Spec.IPFamilies {
		if i < len(ips) {
			if err := t.asked(s, ips[i], f); err != nil {
				return err
			}
			continue
		}
		addr, ok := t.freeAddress(f)
		if !ok {
			why := "range is full"
			if len(t.all(f)) == 0 {
				why = "no ServiceCIDR is ready: make one, or wait for one ('kubectl get servicecidrs')"
			}
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %s", s.Name, why))
		}
		ips = append(ips, addr.String())
	}
	if len(ips) > 0 {
		s.Spec.ClusterIPs, s.Spec.ClusterIP = ips, ips[0]
	}
	return nil
}

// asked takes the address that s asks for.
func (t *taking) asked(s *corev1.Service, ip string, f corev1.IPFamily) error {
	why := ""
	addr, err := netip.ParseAddr(ip)
	switch {
	case err == nil && t.own[claim{addr: addr}]:
		return nil
	case err != nil || !slices.ContainsFunc(t.all(f), func(p netip.Prefix) bool { return usable(p, addr) }):
		why = t.shut(addr)
	case !t.take(claim{addr: addr}):
		why = "provided IP is already allocated"
	default:
		return nil
	}
	return apierrors.NewInvalid(api.ServiceKind.GVK().GroupKind(), s.Name, fieldErrors{field.Invalid(
		field.NewPath("spec", "clusterIPs"), s.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %s", ip, why))})
}

// shut says why addr, which is in no range that gives addresses, cannot be had.
func (a *allocator) shut(addr netip.Addr) string {
	for _, name := range slices.Sorted(maps.Keys(a.closed)) {
		c := a.closed[name]
		switch {
		case !slices.ContainsFunc(c.ranges, func(p netip.Prefix) bool { return usable(p, addr) }):
		case c.deleting:
			return fmt.Sprintf("the ServiceCIDR %s that has it is being deleted: choose an address of another one, or leave it out", name)
		default:
			return fmt.Sprintf("the ServiceCIDR %s that has it is not ready", name)
		}
	}
	return "the provided network does not match the current range"
}

// all are the ranges of addresses of a family, the configured one first, unless its ServiceCIDR is not ready.
func (a *allocator) all(f corev1.IPFamily) (ps []netip.Prefix) {
	is := func(p netip.Prefix) bool { return p.Addr().Is4() == (f == corev1.IPv4Protocol) }
	for _, p := range a.prefixes {
		isClosed := false
		for _, c := range a.closed {
			isClosed = isClosed || slices.Contains(c.ranges, p)
		}
		if is(p) && !isClosed {
			ps = append(ps, p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.ranges)) {
		for _, p := range a.ranges[name] {
			if is(p) && !slices.Contains(ps, p) {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

// usable says whether addr of the range p can be given to a Service: neither the network's own nor the broadcast address can.
func usable(p netip.Prefix, addr netip.Addr) bool {
	bits := p.Addr().BitLen() - p.Bits()
	return p.Contains(addr) && addr != p.Addr() && (!p.Addr().Is4() || addr != nth(p.Addr(), uint64(1)<<bits-1))
}

// freeAddress takes a free address of the family's first range that has one.
func (t *taking) freeAddress(f corev1.IPFamily) (netip.Addr, bool) {
	for _, p := range t.all(f) {
		if addr, ok := t.freeIn(p); ok {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// freeIn takes a free address of the range's upper part, then of the lower one, which is left to those who choose
// their addresses themselves as long as there is another (as upstream does): 16 to 256 addresses.
func (t *taking) freeIn(p netip.Prefix) (netip.Addr, bool) {
	bits := p.Addr().BitLen() - p.Bits()
	size := uint64(1) << min(bits, 16)
	low := min(max(size/16, min(16, size/2)), 256)
	try := func(from, to uint64) (netip.Addr, bool) {
		if to <= from {
			return netip.Addr{}, false
		}
		start := rand.Uint64N(to - from)
		for i := range to - from {
			addr := nth(p.Addr(), from+(start+i)%(to-from))
			if !t.reserved[addr] && t.take(claim{addr: addr}) {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	last := size
	if p.Addr().Is4() {
		last-- // the broadcast address
	}
	if addr, ok := try(low, last); ok {
		return addr, true
	}
	return try(1, min(low, last))
}

// nth returns the address n after base. n fits what the mask leaves free.
func nth(base netip.Addr, n uint64) netip.Addr {
	b := base.As16()
	for i := 15; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a := netip.AddrFrom16(b)
	if base.Is4() {
		return a.Unmap()
	}
	return a
}

func (t *taking) nodePorts(s *corev1.Service) (errs fieldErrors) {
	if needsNodePorts(s) {
		ports := field.NewPath("spec", "ports")
		// Chosen ports first, so that none is given away to a port that does not care.
		for i, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				errs = append(errs, t.chosen(claim{port: p.NodePort, proto: p.Protocol}, ports.Index(i).Child("nodePort"))...)
			}
		}
		for i := range s.Spec.Ports {
			if p := &s.Spec.Ports[i]; p.NodePort == 0 {
				errs = append(errs, t.any(&p.NodePort, t.preferred(s, i), p.Protocol, ports.Index(i).Child("nodePort"))...)
			}
		}
	}
	if needsHealthPort(s) {
		at := field.NewPath("spec", "healthCheckNodePort")
		if n := s.Spec.HealthCheckNodePort; n != 0 {
			return append(errs, t.chosen(claim{port: n, proto: corev1.ProtocolTCP}, at)...)
		}
		errs = append(errs, t.any(&s.Spec.HealthCheckNodePort, 0, corev1.ProtocolTCP, at)...)
	}
	return errs
}

// preferred is the node port that the same port number has under another protocol, as for DNS.
func (t *taking) preferred(s *corev1.Service, i int) int32 {
	for j, p := range s.Spec.Ports {
		if j != i && p.Port == s.Spec.Ports[i].Port && p.NodePort != 0 && p.Protocol != s.Spec.Ports[i].Protocol {
			return p.NodePort
		}
	}
	return 0
}

func (t *taking) chosen(c claim, at *field.Path) fieldErrors {
	if t.own[c] {
		return nil
	}
	if c.port < t.first || c.port > t.last {
		return fieldErrors{field.Invalid(at, c.port, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", t.first, t.last))}
	}
	if !t.take(c) {
		return fieldErrors{field.Invalid(at, c.port, "provided port is already allocated")}
	}
	return nil
}

// any sets port to a free one: want if it can be had.
func (t *taking) any(port *int32, want int32, proto corev1.Protocol, at *field.Path) fieldErrors {
	try := func(n int32) bool {
		c := claim{port: n, proto: proto}
		// What the Service has already belongs to another of its ports.
		if n == 0 || t.own[c] || slices.Contains(t.taken, c) || !t.take(c) {
			return false
		}
		*port = n
		return true
	}
	if try(want) {
		return nil
	}
	size := t.last - t.first + 1
	start := rand.Int32N(size)
	for i := range size {
		if try(t.first + (start+i)%size) {
			return nil
		}
	}
	return fieldErrors{field.InternalError(at, fmt.Errorf("failed to allocate a nodePort: range is full"))}
}
