package builtin

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func networkPolicies() *rest.Resource[*networkingv1.NetworkPolicy] {
	type policy = *networkingv1.NetworkPolicy
	return &rest.Resource[policy]{
		Default:        defaultNetworkPolicy,
		ValidateCreate: func(p policy) field.ErrorList { return networkPolicy(p, nil) },
		ValidateUpdate: func(now, old policy) field.ErrorList {
			// Blocks that an older release let in may stay, wherever they are.
			var had []string
			eachBlock(old, func(b *networkingv1.IPBlock, _ *field.Path) { had = append(append(had, b.CIDR), b.Except...) })
			return networkPolicy(now, had)
		},
		Warn: func(p, _ policy) (warnings []string) {
			eachBlock(p, func(b *networkingv1.IPBlock, at *field.Path) {
				warnings = append(warnings, validation.GetWarningsForCIDR(at.Child("cidr"), b.CIDR)...)
				for i, e := range b.Except {
					warnings = append(warnings, validation.GetWarningsForCIDR(at.Child("except").Index(i), e)...)
				}
			})
			return warnings
		},
		Columns: []rest.Column[policy]{
			{Name: "Pod-Selector", Description: networkingv1.NetworkPolicySpec{}.SwaggerDoc()["podSelector"], Cell: func(p policy) any { return selectorText(&p.Spec.PodSelector) }},
			{Name: "Age"},
		},
	}
}

func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	eachRule(p, func(ports []networkingv1.NetworkPolicyPort, _ []networkingv1.NetworkPolicyPeer, _ *field.Path, _ string) {
		for i := range ports {
			setPtr(&ports[i].Protocol, corev1.ProtocolTCP)
		}
	})
}

// eachRule visits the rules of both directions. Peers is the name of the field of the peers.
func eachRule(p *networkingv1.NetworkPolicy, visit func(ports []networkingv1.NetworkPolicyPort, to []networkingv1.NetworkPolicyPeer, at *field.Path, peers string)) {
	spec := field.NewPath("spec")
	for i, r := range p.Spec.Ingress {
		visit(r.Ports, r.From, spec.Child("ingress").Index(i), "from")
	}
	for i, r := range p.Spec.Egress {
		visit(r.Ports, r.To, spec.Child("egress").Index(i), "to")
	}
}

func eachBlock(p *networkingv1.NetworkPolicy, visit func(b *networkingv1.IPBlock, at *field.Path)) {
	eachRule(p, func(_ []networkingv1.NetworkPolicyPort, to []networkingv1.NetworkPolicyPeer, at *field.Path, peers string) {
		for i := range to {
			if b := to[i].IPBlock; b != nil {
				visit(b, at.Child(peers).Index(i).Child("ipBlock"))
			}
		}
	})
}

// networkPolicy checks p. Had are address blocks that are not looked at.
func networkPolicy(p *networkingv1.NetworkPolicy, had []string) field.ErrorList {
	spec := field.NewPath("spec")
	errs := podspec.Selector(&p.Spec.PodSelector, spec.Child("podSelector"))
	eachRule(p, func(ports []networkingv1.NetworkPolicyPort, to []networkingv1.NetworkPolicyPeer, at *field.Path, peers string) {
		for i := range ports {
			errs = append(errs, policyPort(&ports[i], at.Child("ports").Index(i))...)
		}
		for i := range to {
			errs = append(errs, policyPeer(&to[i], had, at.Child(peers).Index(i))...)
		}
	})
	types := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	if len(p.Spec.PolicyTypes) > len(types) {
		return append(errs, field.Invalid(spec.Child("policyTypes"), &p.Spec.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range p.Spec.PolicyTypes {
		if !slices.Contains(types, t) {
			errs = append(errs, field.NotSupported(spec.Child("policyTypes").Index(i), t, types))
		}
	}
	return errs
}

func policyPort(p *networkingv1.NetworkPolicyPort, at *field.Path) (errs field.ErrorList) {
	if t := p.Protocol; t != nil {
		if all := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}; !slices.Contains(all, *t) {
			errs = append(errs, field.NotSupported(at.Child("protocol"), *t, all))
		}
	}
	end := at.Child("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is not specified"))
		}
	case p.Port.Type == intstr.Int:
		errs = append(errs, texts(at.Child("port"), p.Port.IntVal, validation.IsValidPortNum(int(p.Port.IntVal)))...)
		if e := p.EndPort; e != nil {
			if *e < p.Port.IntVal {
				errs = append(errs, field.Invalid(end, *e, "must be greater than or equal to `port`"))
			}
			errs = append(errs, texts(end, *e, validation.IsValidPortNum(int(*e)))...)
		}
	default:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is non-numeric"))
		}
		errs = append(errs, texts(at.Child("port"), p.Port.StrVal, validation.IsValidPortName(p.Port.StrVal))...)
	}
	return errs
}

func policyPeer(p *networkingv1.NetworkPolicyPeer, had []string, at *field.Path) field.ErrorList {
	errs := podspec.Selector(p.PodSelector, at.Child("podSelector"))
	errs = append(errs, podspec.Selector(p.NamespaceSelector, at.Child("namespaceSelector"))...)
	if p.IPBlock != nil {
		errs = append(errs, ipBlock(p.IPBlock, had, at.Child("ipBlock"))...)
	}
	selects := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case !selects && p.IPBlock == nil:
		errs = append(errs, field.Required(at, "must specify a peer"))
	case selects && p.IPBlock != nil:
		errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer"))
	}
	return errs
}

func ipBlock(b *networkingv1.IPBlock, had []string, at *field.Path) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(at.Child("cidr"), "")}
	}
	errs := validation.IsValidCIDRForLegacyField(at.Child("cidr"), b.CIDR, true, had)
	whole, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return errs
	}
	for i, e := range b.Except {
		at := at.Child("except").Index(i)
		errs = append(errs, validation.IsValidCIDRForLegacyField(at, e, true, had)...)
		if part, err := netip.ParsePrefix(e); err == nil && (!whole.Contains(part.Addr()) || whole.Bits() >= part.Bits()) {
			errs = append(errs, field.Invalid(at, e, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}
