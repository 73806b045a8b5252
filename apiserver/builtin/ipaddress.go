package builtin

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// ipAddresses say which addresses are taken. Those of Services are written by package bootstrap as the Services have them;
// those that others write keep an address from being given to a Service.
func ipAddresses() *rest.Resource[*networkingv1.IPAddress] {
	type address = *networkingv1.IPAddress
	ref := field.NewPath("spec", "parentRef")
	return &rest.Resource[address]{
		NoGeneration: true,
		Name: func(name string, _ bool) (messages []string) {
			for _, e := range validation.IsValidIP(&field.Path{}, name) {
				messages = append(messages, e.Detail)
			}
			return messages
		},
		Validate: func(a address) (errs field.ErrorList) {
			p := a.Spec.ParentRef
			if p == nil {
				return field.ErrorList{field.Required(ref, "")}
			}
			if p.Group != "" {
				errs = append(errs, texts(ref.Child("group"), p.Group, validation.IsDNS1123Subdomain(p.Group))...)
			}
			errs = append(errs, pathSegment(ref.Child("resource"), p.Resource)...)
			errs = append(errs, pathSegment(ref.Child("name"), p.Name)...)
			if p.Namespace != "" {
				errs = append(errs, pathSegment(ref.Child("namespace"), p.Namespace)...)
			}
			return errs
		},
		ValidateUpdate: func(now, old address) field.ErrorList { return immutable(now.Spec.ParentRef, old.Spec.ParentRef, ref) },
		Columns: []rest.Column[address]{
			{Name: "ParentRef", Description: networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"], Cell: func(a address) any {
				p := a.Spec.ParentRef
				if p == nil {
					return none
				}
				parts := []string{strings.ToLower(schema.GroupResource{Group: p.Group, Resource: p.Resource}.String())}
				if p.Namespace != "" {
					parts = append(parts, p.Namespace)
				}
				return strings.Join(append(parts, p.Name), "/")
			}},
		},
	}
}

func serviceCIDRs(d Deps) *rest.Resource[*networkingv1.ServiceCIDR] {
	type cidr = *networkingv1.ServiceCIDR
	at := field.NewPath("spec", "cidrs")
	return &rest.Resource[cidr]{
		NoGeneration:   true,
		StrictStatus:   true,
		ValidateCreate: func(c cidr) field.ErrorList { return serviceRanges(&c.Spec, at) },
		ValidateUpdate: func(now, old cidr) (errs field.ErrorList) {
			is, was := now.Spec.CIDRs, old.Spec.CIDRs
			if len(is) != len(was) && (len(was) != 1 || len(is) != 2) { // a second family may be added
				return field.ErrorList{field.Invalid(at, is, "field is immutable")}
			}
			for i := range was {
				if is[i] != was[i] {
					errs = append(errs, field.Invalid(at.Index(i), is[i], "field is immutable"))
				}
			}
			if len(is) > len(was) {
				errs = append(errs, serviceRanges(&now.Spec, at)...)
			}
			return errs
		},
		Warn: func(now, old cidr) (warnings []string) {
			for i, c := range now.Spec.CIDRs {
				if old == nil || i >= len(old.Spec.CIDRs) {
					warnings = append(warnings, d.overlapping(at.Index(i), c)...)
				}
			}
			return warnings
		},
		Columns: []rest.Column[cidr]{
			{Name: "CIDRs", Description: networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"], Cell: func(c cidr) any { return strings.Join(c.Spec.CIDRs, ",") }},
			{Name: "Age"},
		},
	}
}

// overlapping warns of a range for Services in which pods have their addresses: those of a Service and of a pod may be the same.
func (d Deps) overlapping(at *field.Path, cidr string) []string {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil
	}
	const mend = "the address of a Service may be a pod's, which is not reached then: choose a range that is nobody's"
	for _, pods := range d.Pods {
		if p.Overlaps(pods) {
			return []string{fmt.Sprintf("%s: %s overlaps %s, where pods have their addresses; %s", at, cidr, pods, mend)}
		}
	}
	if d.Store == nil {
		return nil
	}
	for e := range d.Store.Snapshot(api.NodeKind).All("", api.Key{}) {
		n, ok := e.Object.(*corev1.Node)
		if !ok {
			continue
		}
		for _, text := range n.Spec.PodCIDRs {
			if pods, err := netip.ParsePrefix(text); err == nil && p.Overlaps(pods) {
				return []string{fmt.Sprintf("%s: %s overlaps %s, where pods of node %s have their addresses; %s", at, cidr, text, n.Name, mend)}
			}
		}
	}
	return nil
}

func serviceRanges(s *networkingv1.ServiceCIDRSpec, at *field.Path) (errs field.ErrorList) {
	switch n := len(s.CIDRs); {
	case n == 0:
		return field.ErrorList{field.Required(at, "at least one CIDR required")}
	case n > 2:
		return field.ErrorList{field.Invalid(at, *s, "may only hold up to 2 values")}
	}
	var families []bool
	for i, c := range s.CIDRs {
		errs = append(errs, validation.IsValidCIDR(at.Index(i), c)...)
		if p, err := netip.ParsePrefix(c); err == nil {
			families = append(families, p.Addr().Is4())
		}
	}
	if len(families) == 2 && families[0] == families[1] {
		errs = append(errs, field.Invalid(at, s.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
	}
	return errs
}
