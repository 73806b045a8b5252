package endpointslicemirroring

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/reconcile"
)

// perSubset is how many addresses of a subset are mirrored at most.
const perSubset = 1000

// plan is the difference to the slices that there are.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
	invalid, skipped       int // addresses that are not mirrored
}

// mirrors returns one slice for each family and set of ports that the same addresses have.
func mirrors(e *corev1.Endpoints) (all []*discoveryv1.EndpointSlice, invalid, skipped int) {
	type group struct {
		addresses string // what they are, in order
		slice     *discoveryv1.EndpointSlice
	}
	var groups []*group
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		for _, p := range portsOf(e) {
			endpoints, bad, more := endpointsOf(e, family, p)
			invalid, skipped = max(invalid, bad), max(skipped, more)
			if len(endpoints) == 0 {
				continue
			}
			text := fmt.Sprintf("%s %v %s", family, p == (port{}), idOf(endpoints))
			at := slices.IndexFunc(groups, func(g *group) bool { return g.addresses == text })
			if at < 0 {
				groups = append(groups, &group{text, newSlice(e, family, endpoints)})
				at = len(groups) - 1
			}
			if p != (port{}) {
				groups[at].slice.Ports = append(groups[at].slice.Ports, p.slice())
			}
		}
	}
	for _, g := range groups {
		all = append(all, g.slice)
	}
	return all, invalid, skipped
}

// port is one of a subset's; the zero port stands for subsets without any.
type port struct {
	corev1.EndpointPort
	app string
}

func portOf(p *corev1.EndpointPort) port {
	out := port{EndpointPort: *p}
	if p.AppProtocol != nil {
		out.app = *p.AppProtocol
	}
	out.AppProtocol = nil
	return out
}

func (p port) slice() discoveryv1.EndpointPort {
	out := discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol}
	if p.app != "" {
		out.AppProtocol = &p.app
	}
	return out
}

// portsOf returns the different ports, in order.
func portsOf(e *corev1.Endpoints) (all []port) {
	for i := range e.Subsets {
		if len(e.Subsets[i].Ports) == 0 {
			all = append(all, port{})
		}
		for j := range e.Subsets[i].Ports {
			all = append(all, portOf(&e.Subsets[i].Ports[j]))
		}
	}
	slices.SortFunc(all, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Name, b.Name), cmp.Compare(a.app, b.app))
	})
	return slices.Compact(all)
}

// endpointsOf returns the endpoints of a family that have the port, ordered by address. One that is ready somewhere is ready.
func endpointsOf(e *corev1.Endpoints, family discoveryv1.AddressType, p port) (all []discoveryv1.Endpoint, invalid, skipped int) {
	for i := range e.Subsets {
		s := &e.Subsets[i]
		if !slices.ContainsFunc(s.Ports, func(q corev1.EndpointPort) bool { return portOf(&q) == p }) && (len(s.Ports) > 0 || p != (port{})) {
			continue
		}
		room := perSubset
		add := func(as []corev1.EndpointAddress, ready bool) {
			for _, a := range as {
				ip, err := netip.ParseAddr(a.IP)
				switch {
				case err != nil:
					invalid++
				case room == 0:
					skipped++
				default:
					room--
					if ip.Unmap().Is4() == (family == discoveryv1.AddressTypeIPv4) {
						all = append(all, endpoint(&a, ip.Unmap(), ready))
					}
				}
			}
		}
		add(s.Addresses, true)
		add(s.NotReadyAddresses, false)
	}
	slices.SortStableFunc(all, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
	return slices.CompactFunc(all, func(a, b discoveryv1.Endpoint) bool {
		return idOf([]discoveryv1.Endpoint{a}) == idOf([]discoveryv1.Endpoint{b})
	}), invalid, skipped
}

func endpoint(a *corev1.EndpointAddress, ip netip.Addr, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
	if a.Hostname != "" {
		e.Hostname = &a.Hostname
	}
	return e
}

// idOf says which endpoints these are.
func idOf(es []discoveryv1.Endpoint) string {
	var b strings.Builder
	for i := range es {
		b.WriteString(es[i].Addresses[0])
		if t := es[i].TargetRef; t != nil {
			b.WriteString("/" + string(t.UID))
		}
		b.WriteByte(' ')
	}
	return b.String()
}

func newSlice(e *corev1.Endpoints, family discoveryv1.AddressType, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, GenerateName: e.Name + "-", Labels: map[string]string{}, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(e)}},
		AddressType: family, Endpoints: endpoints,
	}
	maps.Copy(s.Labels, e.Labels)
	maps.Copy(s.Annotations, e.Annotations)
	delete(s.Annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(s.Annotations, corev1.LastAppliedConfigAnnotation)
	s.Labels[discoveryv1.LabelServiceName], s.Labels[discoveryv1.LabelManagedBy] = e.Name, manager
	return s
}

// arrange compares what there shall be with what there is. A slice is taken for the group with its ports or, failing that,
// for any of its family: its family alone cannot change.
func arrange(e *corev1.Endpoints, existing []*discoveryv1.EndpointSlice) (p plan) {
	var want []*discoveryv1.EndpointSlice
	want, p.invalid, p.skipped = mirrors(e)
	free := slices.Clone(existing)
	take := func(fits func(have *discoveryv1.EndpointSlice) bool) *discoveryv1.EndpointSlice {
		at := slices.IndexFunc(free, fits)
		if at < 0 {
			return nil
		}
		have := free[at]
		free = slices.Delete(free, at, at+1)
		return have
	}
	var rest []*discoveryv1.EndpointSlice
	for _, w := range want {
		if have := take(func(h *discoveryv1.EndpointSlice) bool {
			return h.AddressType == w.AddressType && equality.Semantic.DeepEqual(h.Ports, w.Ports)
		}); have != nil {
			p.change(have, w)
		} else {
			rest = append(rest, w)
		}
	}
	for _, w := range rest {
		if have := take(func(h *discoveryv1.EndpointSlice) bool { return h.AddressType == w.AddressType }); have != nil {
			p.change(have, w)
		} else {
			p.create = append(p.create, w)
		}
	}
	p.remove = free
	return p
}

// change makes have what w is, if it is not.
func (p *plan) change(have, w *discoveryv1.EndpointSlice) {
	next := have.DeepCopy()
	next.Labels, next.Annotations, next.OwnerReferences, next.Ports, next.Endpoints = w.Labels, w.Annotations, w.OwnerReferences, w.Ports, w.Endpoints
	if !equality.Semantic.DeepEqual(next, have) {
		p.update = append(p.update, next)
	}
}
