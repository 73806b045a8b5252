package endpointslice

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/reconcile"
)

// perSlice is how many endpoints a slice holds.
const perSlice = 100

// group is the endpoints of one family with the same ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// plan is what to do to the slices of a Service.
type plan struct {
	create []*discoveryv1.EndpointSlice
	update []change
	remove []*discoveryv1.EndpointSlice
}

// change makes a stored slice like next.
type change struct{ now, next *discoveryv1.EndpointSlice }

// desired returns the groups of svc; each family of svc has at least one, if only an empty one.
func desired(svc *corev1.Service, pods []*corev1.Pod, zones map[string]string) []*group {
	var out []*group
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	for _, family := range families(svc) {
		byPorts := map[string]*group{}
		for _, p := range pods {
			ip := address(p, family)
			if ip == "" || api.PodTerminal(p) {
				continue
			}
			ports := portsOf(svc, p)
			id := portsID(ports)
			if byPorts[id] == nil {
				byPorts[id] = &group{family: family, ports: ports}
			}
			byPorts[id].endpoints = append(byPorts[id].endpoints, endpoint(svc, p, ip, zones))
		}
		if len(byPorts) == 0 {
			byPorts[""] = &group{family: family, ports: []discoveryv1.EndpointPort{}}
		}
		for _, id := range slices.Sorted(maps.Keys(byPorts)) {
			out = append(out, byPorts[id])
		}
	}
	return out
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out = append(out, discoveryv1.AddressTypeIPv6)
		} else {
			out = append(out, discoveryv1.AddressTypeIPv4)
		}
	}
	if len(out) == 0 {
		if strings.Contains(svc.Spec.ClusterIP, ":") {
			return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv6}
		}
		return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	}
	return out
}

func address(p *corev1.Pod, family discoveryv1.AddressType) string {
	for _, ip := range p.Status.PodIPs {
		if strings.Contains(ip.IP, ":") == (family == discoveryv1.AddressTypeIPv6) {
			return ip.IP
		}
	}
	return ""
}

func portsOf(svc *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		n, ok := reconcile.TargetPort(p, sp)
		if !ok {
			continue
		}
		name, protocol := sp.Name, sp.Protocol
		ports = append(ports, discoveryv1.EndpointPort{Name: &name, Port: &n, Protocol: &protocol, AppProtocol: sp.AppProtocol})
	}
	return ports
}

// portsID is equal for equal lists of ports, in any order.
func portsID(ports []discoveryv1.EndpointPort) string {
	var parts []string
	for _, p := range ports {
		part := []string{"", "", "", ""}
		if p.Name != nil {
			part[0] = *p.Name
		}
		if p.Port != nil {
			part[1] = strconv.Itoa(int(*p.Port))
		}
		if p.Protocol != nil {
			part[2] = string(*p.Protocol)
		}
		if p.AppProtocol != nil {
			part[3] = *p.AppProtocol
		}
		parts = append(parts, strings.Join(part, "|"))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func endpoint(svc *corev1.Service, p *corev1.Pod, ip string, zones map[string]string) discoveryv1.Endpoint {
	serving, terminating := api.PodReady(p), p.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		e.NodeName = &p.Spec.NodeName
	}
	if z := zones[p.Spec.NodeName]; z != "" {
		e.Zone = &z
	}
	if h := reconcile.PodHostname(p, svc); h != "" {
		e.Hostname = &h
	}
	if ready {
		e.Hints = hints(svc, &e)
	}
	return e
}

// hints says who should prefer the endpoint, as the Service's trafficDistribution asks: who is on its node, or in its zone. As
// upstream's, it does not count where the Service asks for topology-aware routing, by which endpoints would be given to zones in
// proportion to their processors, and which is not done.
func hints(svc *corev1.Service, e *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if svc.Spec.TrafficDistribution == nil || topologyAware(svc) {
		return nil
	}
	var h discoveryv1.EndpointHints
	switch *svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		if e.NodeName != nil {
			h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
		}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if h.ForNodes == nil && h.ForZones == nil {
		return nil
	}
	return &h
}

func topologyAware(svc *corev1.Service) bool {
	mode, ok := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		mode = svc.Annotations[corev1.AnnotationTopologyMode]
	}
	return mode == "Auto" || mode == "auto"
}

// arrange spreads groups over slices, touching as few of the existing ones as it can.
func arrange(svc *corev1.Service, groups []*group, existing []*discoveryv1.EndpointSlice) plan {
	var out plan
	id := func(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
		return string(family) + " " + portsID(ports)
	}
	have := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		if s.DeletionTimestamp == nil {
			k := id(s.AddressType, s.Ports)
			have[k] = append(have[k], s)
		}
	}
	for _, g := range groups {
		k := id(g.family, g.ports)
		if len(have[k]) == 0 { // take over slices whose ports nobody wants any more, rather than delete and create
			for _, other := range slices.Sorted(maps.Keys(have)) {
				ss := have[other]
				if !wanted(groups, other, id) && ss[0].AddressType == g.family && len(g.endpoints) <= perSlice {
					have[k] = ss[:1]
					have[other] = ss[1:]
					if len(have[other]) == 0 {
						delete(have, other)
					}
					break
				}
			}
		}
		fill(svc, g, have[k], &out)
		delete(have, k)
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		out.remove = append(out.remove, have[k]...)
	}
	return out
}

func wanted(groups []*group, k string, id func(discoveryv1.AddressType, []discoveryv1.EndpointPort) string) bool {
	return slices.ContainsFunc(groups, func(g *group) bool { return id(g.family, g.ports) == k })
}

// fill puts g into existing slices and new ones.
func fill(svc *corev1.Service, g *group, existing []*discoveryv1.EndpointSlice, out *plan) {
	todo := map[string]*discoveryv1.Endpoint{} // by pod
	for i := range g.endpoints {
		todo[podOf(&g.endpoints[i])] = &g.endpoints[i]
	}
	kept := make([][]discoveryv1.Endpoint, len(existing))
	for i, s := range existing {
		for j := range s.Endpoints {
			pod := podOf(&s.Endpoints[j])
			if e := todo[pod]; e != nil && len(kept[i]) < perSlice {
				kept[i] = append(kept[i], *e)
				delete(todo, pod)
			}
		}
	}
	var rest []discoveryv1.Endpoint
	for i := range g.endpoints {
		if e := &g.endpoints[i]; todo[podOf(e)] == e {
			rest = append(rest, *e)
		}
	}
	// New endpoints go where a write is due anyway, the fullest slice first, then where there is room.
	order := make([]int, len(existing))
	for i := range order {
		order[i] = i
	}
	due := func(i int) int {
		if sameEndpoints(kept[i], existing[i].Endpoints) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(due(a), due(b)), cmp.Compare(len(kept[b]), len(kept[a])))
	})
	for _, i := range order {
		n := min(len(rest), perSlice-len(kept[i]))
		kept[i] = append(kept[i], rest[:n]...)
		rest = rest[n:]
	}
	used := 0
	for i, s := range existing {
		last := i == len(existing)-1 && used == 0 && len(rest) == 0 // an empty group keeps one slice
		if len(kept[i]) == 0 && !last {
			out.remove = append(out.remove, s)
			continue
		}
		used++
		if next := slice(svc, g, kept[i]); !same(s, next) {
			out.update = append(out.update, change{s, next})
		}
	}
	for len(rest) > 0 || used == 0 {
		n := min(len(rest), perSlice)
		out.create = append(out.create, slice(svc, g, rest[:n]))
		rest = rest[n:]
		used++
	}
}

// podOf tells endpoints apart: a pod whose address changed is another one.
func podOf(e *discoveryv1.Endpoint) string {
	id := strings.Join(e.Addresses, ",")
	if e.TargetRef != nil {
		id += " " + string(e.TargetRef.UID)
	}
	return id
}

func slice(svc *corev1.Service, g *group, es []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	if es == nil {
		es = []discoveryv1.Endpoint{}
	}
	prefix := svc.Name + "-"
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace, GenerateName: prefix, Labels: labelsOf(svc),
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(svc)},
		},
		AddressType: g.family, Ports: g.ports, Endpoints: es,
	}
}

// labelsOf returns the Service's labels and ours, which nobody can set otherwise.
func labelsOf(svc *corev1.Service) map[string]string {
	out := map[string]string{}
	for k, v := range svc.Labels {
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy && k != corev1.IsHeadlessService {
			out[k] = v
		}
	}
	out[discoveryv1.LabelServiceName] = svc.Name
	out[discoveryv1.LabelManagedBy] = manager
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out[corev1.IsHeadlessService] = ""
	}
	return out
}
