package builtin

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of EndpointSlices.
const (
	maxEndpoints      = 1000
	maxSlicePorts     = 20000
	maxSliceAddresses = 100
	maxSliceTopology  = 16
	maxHints          = 8 // of zones, and of nodes
)

// endpointSlices count generations of what they hold, which is not in a spec.
func endpointSlices() *rest.Resource[*discoveryv1.EndpointSlice] {
	type slice = *discoveryv1.EndpointSlice
	return &rest.Resource[slice]{
		Default: func(s slice) {
			for i := range s.Ports {
				setPtr(&s.Ports[i].Name, "")
				setPtr(&s.Ports[i].Protocol, corev1.ProtocolTCP)
			}
		},
		Prepare: func(s slice) {
			s.Generation = 1
			noEndpoints(s)
		},
		PrepareUpdate: func(now, old slice) {
			noEndpoints(now)
			if !equality.Semantic.DeepEqual(now.Endpoints, old.Endpoints) || !equality.Semantic.DeepEqual(now.Ports, old.Ports) ||
				!equality.Semantic.DeepEqual(now.Labels, old.Labels) {
				now.Generation = old.Generation + 1
			}
		},
		Validate:       checkSlice,
		ValidateCreate: sliceEndpoints,
		ValidateUpdate: func(now, old slice) (errs field.ErrorList) {
			if !equality.Semantic.DeepEqual(now.Endpoints, old.Endpoints) { // older rules may have accepted the others
				errs = sliceEndpoints(now)
			}
			return append(errs, immutable(now.AddressType, old.AddressType, field.NewPath("addressType"))...)
		},
		Columns: []rest.Column[slice]{
			{Name: "AddressType", Description: discoveryv1.EndpointSlice{}.SwaggerDoc()["addressType"], Cell: func(s slice) any { return string(s.AddressType) }},
			{Name: "Ports", Description: discoveryv1.EndpointSlice{}.SwaggerDoc()["ports"], Cell: func(s slice) any { return slicePortsText(s.Ports) }},
			{Name: "Endpoints", Description: discoveryv1.EndpointSlice{}.SwaggerDoc()["endpoints"], Cell: func(s slice) any {
				var all []string
				for _, e := range s.Endpoints {
					all = append(all, e.Addresses...)
				}
				return orUnset(all)
			}},
			{Name: "Age"},
		},
	}
}

// noEndpoints makes an empty list of endpoints what it is read back as.
func noEndpoints(s *discoveryv1.EndpointSlice) {
	if len(s.Endpoints) == 0 {
		s.Endpoints = nil
	}
}

func orUnset(all []string) string {
	if len(all) == 0 {
		return unset
	}
	return limited(all)
}

func slicePortsText(ports []discoveryv1.EndpointPort) string {
	if len(ports) == 0 {
		return unset
	}
	var all []string
	for _, p := range ports {
		text := "*"
		if p.Port != nil {
			text = strconv.Itoa(int(*p.Port))
		} else if name := deref(p.Name); name != "" {
			text = name
		}
		all = append(all, text)
	}
	return limited(all)
}

func checkSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	errs := oneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	return append(errs, slicePorts(s.Ports, field.NewPath("ports"))...)
}

func sliceEndpoints(s *discoveryv1.EndpointSlice) (errs field.ErrorList) {
	at := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		return field.ErrorList{field.TooMany(at, len(s.Endpoints), maxEndpoints)}
	}
	for i := range s.Endpoints {
		errs = append(errs, sliceEndpoint(&s.Endpoints[i], s.AddressType, at.Index(i))...)
	}
	return errs
}

func sliceEndpoint(e *discoveryv1.Endpoint, t discoveryv1.AddressType, at *field.Path) (errs field.ErrorList) {
	addresses := at.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(addresses, ""))
	case n > maxSliceAddresses:
		errs = append(errs, field.TooMany(addresses, n, maxSliceAddresses))
	}
	for i, a := range e.Addresses {
		errs = append(errs, sliceAddress(a, t, addresses, i)...)
	}
	if n := e.NodeName; n != nil {
		errs = append(errs, texts(at.Child("nodeName"), *n, isName(*n))...)
	}
	topology := at.Child("deprecatedTopology")
	if n := len(e.DeprecatedTopology); n > maxSliceTopology {
		errs = append(errs, field.TooMany(topology, n, maxSliceTopology))
	}
	errs = append(errs, metavalidation.ValidateLabels(e.DeprecatedTopology, topology)...)
	if h := e.Hostname; h != nil {
		errs = append(errs, texts(at.Child("hostname"), *h, validation.IsDNS1123Label(*h))...)
	}
	if e.Hints != nil {
		errs = append(errs, sliceHints(e.Hints, at.Child("hints"))...)
	}
	return errs
}

func sliceHints(h *discoveryv1.EndpointHints, at *field.Path) (errs field.ErrorList) {
	zones, nodes := make([]string, len(h.ForZones)), make([]string, len(h.ForNodes))
	for i, z := range h.ForZones {
		zones[i] = z.Name
	}
	for i, n := range h.ForNodes {
		nodes[i] = n.Name
	}
	hints := func(names []string, check func(string) []string, at *field.Path) bool {
		if n := len(names); n > maxHints {
			errs = append(errs, field.TooMany(at, n, maxHints))
			return false
		}
		for i, name := range names {
			p := at.Index(i).Child("name")
			if slices.Contains(names[:i], name) {
				errs = append(errs, field.Duplicate(p, name))
			}
			errs = append(errs, texts(p, name, check(name))...)
		}
		return true
	}
	if hints(zones, validation.IsValidLabelValue, at.Child("forZones")) {
		hints(nodes, isName, at.Child("forNodes"))
	}
	return errs
}

// sliceAddress checks one of the addresses. Those of a type that nobody knows are not checked.
func sliceAddress(a string, t discoveryv1.AddressType, list *field.Path, i int) (errs field.ErrorList) {
	at, four := list.Index(i), t == discoveryv1.AddressTypeIPv4
	switch t {
	case discoveryv1.AddressTypeFQDN:
		return validation.IsFullyQualifiedDomainName(at, a)
	case discoveryv1.AddressTypeIPv4:
		errs = validation.IsValidIPForLegacyField(at, a, true, nil)
	case discoveryv1.AddressTypeIPv6:
		errs = validation.IsValidIP(at, a)
	default:
		return nil
	}
	if len(errs) > 0 {
		return errs
	}
	switch {
	case four && !netutils.IsIPv4String(a):
		errs = append(errs, field.Invalid(list, a, "must be an IPv4 address"))
	case !four && !netutils.IsIPv6String(a):
		errs = append(errs, field.Invalid(list, a, "must be an IPv6 address"))
	}
	return append(errs, reachable(a, at)...)
}

func slicePorts(ports []discoveryv1.EndpointPort, at *field.Path) (errs field.ErrorList) {
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(at, len(ports), maxSlicePorts)}
	}
	seen := map[string]bool{}
	for i, p := range ports {
		q := at.Index(i)
		name := deref(p.Name)
		if name != "" {
			errs = append(errs, texts(q.Child("name"), name, validation.IsDNS1123Label(name))...)
		}
		if seen[name] {
			errs = append(errs, field.Duplicate(q.Child("name"), name))
		}
		seen[name] = true
		if p.Protocol == nil {
			errs = append(errs, field.Required(q.Child("protocol"), ""))
		} else {
			errs = append(errs, oneOf(q.Child("protocol"), *p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
		if a := p.AppProtocol; a != nil {
			errs = append(errs, texts(q.Child("appProtocol"), *a, validation.IsQualifiedName(*a))...)
		}
	}
	return errs
}
