package builtin

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// rangeFamilies are the families that Services can have addresses of: those of the configured ranges, in their order, IPv4 where there
// are none.
func rangeFamilies(ranges []netip.Prefix) (out []corev1.IPFamily) {
	for _, p := range ranges {
		out = append(out, familyOf(p.Addr().String()))
	}
	if len(out) == 0 {
		out = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	return out
}

// familyOf is the family of an address, IPv4 where there is none.
func familyOf(ip string) corev1.IPFamily {
	if a, err := netip.ParseAddr(ip); err == nil && a.Is6() && !a.Is4In6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// settleFamilies fills in the policy and the families that go with s: after the ownership of fields is settled, as nobody asked for it.
// Of the families, the first of those of the cluster counts where s says nothing. What does not fit together is returned, in the order
// in which upstream tells it, and nothing is filled in from there on: done again, it says the same, and what is settled stays as it is.
func settleFamilies(s, old *corev1.Service, cluster []corev1.IPFamily) (errs fieldErrors) {
	if s.Spec.Type == corev1.ServiceTypeExternalName || sameWish(s, old) {
		return nil
	}
	settlePolicy(s, old)
	before := old
	if before == nil {
		before = new(corev1.Service)
	}
	if errs = serviceFamilies(s, before, field.NewPath("spec")); len(errs) > 0 {
		return errs
	}
	policy := *s.Spec.IPFamilyPolicy
	wrong := func(name string, i int, value any, why string) {
		at := field.NewPath("spec", name)
		if i >= 0 {
			at = at.Index(i)
		}
		errs = append(errs, field.Invalid(at, value, why))
	}
	refuse := func(why string) { wrong("ipFamilyPolicy", -1, policy, why) }
	if old != nil {
		s.Spec.ClusterIPs = released(policy, s.Spec.ClusterIPs, old.Spec.ClusterIPs, "cluster IP", refuse)
		s.Spec.IPFamilies = released(policy, s.Spec.IPFamilies, old.Spec.IPFamilies, "IP family", refuse)
	}
	several := func(n int, what string) {
		if n == 2 && policy == corev1.IPFamilyPolicySingleStack {
			refuse("must be 'RequireDualStack' or 'PreferDualStack' when multiple " + what + " are specified")
		}
	}
	several(len(s.Spec.ClusterIPs), "cluster IPs")
	several(len(s.Spec.IPFamilies), "IP families")
	inferred := slices.Clone(s.Spec.IPFamilies)
	for i, ip := range s.Spec.ClusterIPs {
		if ip == corev1.ClusterIPNone || i < len(inferred) {
			continue
		}
		f := familyOf(ip)
		if inferred = append(inferred, f); !slices.Contains(cluster, f) {
			wrong("clusterIPs", i, s.Spec.ClusterIPs, string(f)+" is not configured on this cluster")
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if headless(s) && len(s.Spec.Selector) == 0 { // whoever makes its endpoints knows which families they have
		s.Spec.IPFamilies = complete(s, inferred, cluster[0], true)
		return nil
	}
	if len(cluster) < 2 && policy == corev1.IPFamilyPolicyRequireDualStack {
		refuse("this cluster is not configured for dual-stack services")
	}
	for i, f := range inferred {
		if !slices.Contains(cluster, f) {
			wrong("ipFamilies", i, f, "not configured on this cluster")
		}
	}
	if len(errs) == 0 {
		s.Spec.IPFamilies = complete(s, inferred, cluster[0], len(cluster) == 2)
	}
	return errs
}

// released gives up what is of the second family where the policy alone was changed to one, and refuses to where it was not.
func released[T comparable](policy corev1.IPFamilyPolicy, is, was []T, what string, refuse func(why string)) []T {
	single := policy == corev1.IPFamilyPolicySingleStack
	switch {
	case single && slices.Equal(is, was) && len(is) > 1:
		return slices.Clone(is[:1])
	case !single && len(is) > 0 && len(is) < len(was):
		refuse("must be 'SingleStack' to release the secondary " + what)
	}
	return is
}

// complete returns the families with what the policy adds to them, where it can be had.
func complete(s *corev1.Service, families []corev1.IPFamily, first corev1.IPFamily, dual bool) []corev1.IPFamily {
	if len(families) == 0 {
		families = []corev1.IPFamily{first}
	}
	if dual && len(families) == 1 && *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		families = append(families, otherFamily(families[0]))
	}
	return families
}

// settlePolicy fills in the policy: that of before, or else one family, unless nobody can tell which families endpoints will have.
func settlePolicy(s, old *corev1.Service) {
	switch {
	case s.Spec.IPFamilyPolicy != nil:
	case old != nil && old.Spec.IPFamilyPolicy != nil:
		s.Spec.IPFamilyPolicy = new(*old.Spec.IPFamilyPolicy)
	case headless(s) && len(s.Spec.Selector) == 0:
		s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
	default:
		s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack)
	}
}

// sameWish says of a Service that prefers two families that nothing about them was changed: it keeps those that it has, also where
// the cluster has got, or lost, the other one.
func sameWish(s, old *corev1.Service) bool {
	prefers := func(s *corev1.Service) bool {
		p := s.Spec.IPFamilyPolicy
		return p != nil && *p == corev1.IPFamilyPolicyPreferDualStack
	}
	return old != nil && prefers(s) && prefers(old) && s.Spec.Type == old.Spec.Type && s.Spec.ClusterIP == old.Spec.ClusterIP &&
		slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(s.Spec.IPFamilies, old.Spec.IPFamilies)
}

// unsettled says what does not fit together of the families of s, which settleFamilies has seen. Upstream looks at these before anything else,
// as addresses are given after them, and where there is something it tells of nothing else.
func unsettled(s, old *corev1.Service, cluster []corev1.IPFamily) fieldErrors {
	again := *s
	return settleFamilies(&again, old, cluster)
}
