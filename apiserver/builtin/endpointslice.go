package builtin

import (
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of EndpointSlices.
const (
	maxEndpoints      = 1000
	maxSlicePorts     = 20000
	maxSliceAddresses = 100
	maxZoneHints      = 8
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
		Prepare: func(s slice) { s.Generation = 1 },
		PrepareUpdate: func(now, old slice) {
			if !equality.Semantic.DeepEqual(now.Endpoints, old.Endpoints) || !equality.Semantic.DeepEqual(now.Ports, old.Ports) ||
				!equality.Semantic.DeepEqual(now.Labels, old.Labels) {
				now.Generation = old.Generation + 1
			}
		},
		Validate: validateSlice,
		ValidateUpdate: func(now, old slice) field.ErrorList {
			return immutable(now.AddressType, old.AddressType, field.NewPath("addressType"))
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

func validateSlice(s *discoveryv1.EndpointSlice) (errs field.ErrorList) {
	errs = oneOf(field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	at := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		errs = append(errs, field.TooMany(at, len(s.Endpoints), maxEndpoints))
		return errs
	}
	for i := range s.Endpoints {
		errs = append(errs, sliceEndpoint(&s.Endpoints[i], s.AddressType, at.Index(i))...)
	}
	return append(errs, slicePorts(s.Ports, field.NewPath("ports"))...)
}

func sliceEndpoint(e *discoveryv1.Endpoint, t discoveryv1.AddressType, at *field.Path) (errs field.ErrorList) {
	addresses := at.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
	case n > maxSliceAddresses:
		errs = append(errs, field.TooMany(addresses, n, maxSliceAddresses))
	}
	for i, a := range e.Addresses {
		errs = append(errs, sliceAddress(a, t, addresses.Index(i))...)
	}
	if n := e.NodeName; n != nil {
		errs = append(errs, texts(at.Child("nodeName"), *n, isName(*n))...)
	}
	for _, k := range sortedKeys(e.DeprecatedTopology) {
		errs = append(errs, metavalidation.ValidateLabelName(k, at.Child("deprecatedTopology").Key(k))...)
	}
	if h := e.Hostname; h != nil {
		errs = append(errs, texts(at.Child("hostname"), *h, validation.IsDNS1123Label(*h))...)
	}
	if e.Hints != nil {
		if n := len(e.Hints.ForZones); n > maxZoneHints {
			errs = append(errs, field.TooMany(at.Child("hints", "forZones"), n, maxZoneHints))
		}
		seen := map[string]bool{}
		for i, z := range e.Hints.ForZones {
			p := at.Child("hints", "forZones").Index(i).Child("name")
			if seen[z.Name] {
				errs = append(errs, field.Duplicate(p, z.Name))
			}
			seen[z.Name] = true
			errs = append(errs, texts(p, z.Name, validation.IsValidLabelValue(z.Name))...)
		}
	}
	return errs
}

func sliceAddress(a string, t discoveryv1.AddressType, at *field.Path) (errs field.ErrorList) {
	if t == discoveryv1.AddressTypeFQDN {
		return validation.IsFullyQualifiedDomainName(at, a)
	}
	if errs = endpointAddress(a, at); len(errs) > 0 {
		return errs
	}
	addr, err := netip.ParseAddr(a)
	switch {
	case err != nil:
		return nil // an old form, which the check above accepts
	case t == discoveryv1.AddressTypeIPv4 && !addr.Is4():
		errs = append(errs, field.Invalid(at, a, "must be an IPv4 address"))
	case t == discoveryv1.AddressTypeIPv6 && !addr.Is6():
		errs = append(errs, field.Invalid(at, a, "must be an IPv6 address"))
	}
	return errs
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
		if p.Port != nil {
			errs = append(errs, texts(q.Child("port"), *p.Port, validation.IsValidPortNum(int(*p.Port)))...)
		}
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
