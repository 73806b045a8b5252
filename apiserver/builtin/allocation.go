package builtin

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/apiserver/rest"
)

// allocator gives Services their cluster addresses and node ports.
//
// What is in use is not stored anywhere but in the Services themselves: the allocator derives it from the store, at
// start from a snapshot and then from each change, so that no crash can leak an address and there is nothing to repair.
// An address that was promised to a write under way is in pending until the write's end, when the store, whose writers
// return after publication, shows it in the Service or it is free again. Everything happens under one lock.
//
// One API server allocates: two of them over one etcd could promise the same address at the same moment.
type allocator struct {
	prefix   netip.Prefix
	reserved map[netip.Addr]bool
	first    int32 // node ports
	last     int32

	mu      sync.Mutex
	follow  *follow.Follower
	used    map[claim]int // how many Services have it: foreign data may name one twice
	pending map[claim]int
}

// claim is one address or one port of one protocol. Ports are claimed for a Service as a whole.
type claim struct {
	addr  netip.Addr
	port  int32
	proto corev1.Protocol
}

func newAllocator(d Deps) *allocator {
	a := &allocator{prefix: d.Services.Masked(), reserved: map[netip.Addr]bool{}, first: d.NodePorts[0], last: d.NodePorts[1],
		used: map[claim]int{}, pending: map[claim]int{}}
	if a.last == 0 {
		a.first, a.last = 30000, 32767
	}
	for _, addr := range d.Reserved {
		a.reserved[addr] = true
	}
	if d.Store != nil {
		a.follow = follow.New(d.Store, a, api.ServiceKind)
	}
	return a
}

// Reset implements follow.State.
func (a *allocator) Reset() { clear(a.used) }

// Change implements follow.State.
func (a *allocator) Change(_ *api.Kind, now, old api.Object) {
	if old != nil {
		for _, c := range claims(old.(*corev1.Service)) {
			if a.used[c]--; a.used[c] <= 0 {
				delete(a.used, c)
			}
		}
	}
	if now != nil {
		for _, c := range claims(now.(*corev1.Service)) {
			a.used[c]++
		}
	}
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
func (a *allocator) hold(_ context.Context, now, old *corev1.Service, _ bool) (*rest.Held, error) {
	if now == nil {
		return nil, nil // what a deleted Service had is free with its deletion
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.follow.CatchUp(); err != nil {
		return nil, fmt.Errorf("allocate for service %s: %w", api.KeyOf(now), err)
	}
	t := &taking{allocator: a, own: map[claim]bool{}}
	if old != nil {
		for _, c := range claims(old) {
			t.own[c] = true
		}
	}
	errs := append(t.clusterIP(now), t.nodePorts(now)...)
	if len(errs) > 0 {
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
	// Committed or not, the promise ends: the store knows by now.
	return &rest.Held{Commit: end, Abort: end}, nil
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

func (t *taking) clusterIP(s *corev1.Service) fieldErrors {
	if !needsClusterIP(s) || headless(s) {
		return nil
	}
	at := field.NewPath("spec", "clusterIPs").Index(0)
	if s.Spec.ClusterIP != "" {
		addr, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err == nil && t.own[claim{addr: addr}] {
			return nil
		}
		if err != nil || !t.prefix.Contains(addr) {
			return fieldErrors{field.Invalid(at, s.Spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", s.Spec.ClusterIP, s.Spec.ClusterIP, t.prefix))}
		}
		if !t.take(claim{addr: addr}) {
			return fieldErrors{field.Invalid(at, []string{s.Spec.ClusterIP}, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", s.Spec.ClusterIP))}
		}
		return nil
	}
	addr, ok := t.freeAddress()
	if !ok {
		return fieldErrors{field.Forbidden(at, "failed to allocate a serviceIP: range is full")}
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = addr.String(), []string{addr.String()}
	return nil
}

// freeAddress takes a free address of the range's upper part, then of the lower one, which is left to those who choose
// their addresses themselves as long as there is another (as upstream does): 16 to 256 addresses.
func (t *taking) freeAddress() (netip.Addr, bool) {
	bits := t.prefix.Addr().BitLen() - t.prefix.Bits()
	size := uint64(1) << min(bits, 16)
	low := min(max(size/16, min(16, size/2)), 256)
	try := func(from, to uint64) (netip.Addr, bool) {
		if to <= from {
			return netip.Addr{}, false
		}
		start := rand.Uint64N(to - from)
		for i := range to - from {
			addr := nth(t.prefix.Addr(), from+(start+i)%(to-from))
			if !t.reserved[addr] && t.take(claim{addr: addr}) {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	last := size
	if t.prefix.Addr().Is4() {
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
