package builtin

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// fieldErrors is what validation returns.
type fieldErrors = field.ErrorList

const (
	maxAffinitySeconds = 86400
	kubeletPort        = 10250
)

func validateService(s *corev1.Service, clusterRange netip.Prefix) (errs fieldErrors) {
	spec := field.NewPath("spec")
	if len(s.Spec.Ports) == 0 && !headless(s) && s.Spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(spec.Child("ports"), ""))
	}
	errs = append(errs, oneOf(spec.Child("type"), s.Spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)...)
	errs = append(errs, serviceByType(s, spec)...)
	errs = append(errs, servicePorts(s, spec.Child("ports"))...)
	errs = append(errs, metavalidation.ValidateLabels(s.Spec.Selector, spec.Child("selector"))...)
	errs = append(errs, sessionAffinity(s, spec)...)
	errs = append(errs, serviceAddresses(s, spec, clusterRange)...)
	errs = append(errs, trafficPolicies(s, spec)...)
	return append(errs, loadBalancer(s, spec)...)
}

func serviceByType(s *corev1.Service, spec *field.Path) (errs fieldErrors) {
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		if headless(s) {
			errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), s.Spec.ClusterIP, "may not be set to 'None' for LoadBalancer services"))
		}
	case corev1.ServiceTypeNodePort:
		if headless(s) {
			errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), s.Spec.ClusterIP, "may not be set to 'None' for NodePort services"))
		}
	case corev1.ServiceTypeExternalName:
		if len(s.Spec.ClusterIPs) > 0 || s.Spec.ClusterIP != "" {
			errs = append(errs, field.Forbidden(spec.Child("clusterIPs"), "may not be set for ExternalName services"))
		}
		if len(s.Spec.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(spec.Child("ipFamilies"), "may not be set for ExternalName services"))
		}
		if s.Spec.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(spec.Child("ipFamilyPolicy"), "may not be set for ExternalName services"))
		}
		name := strings.TrimSuffix(s.Spec.ExternalName, ".")
		if name == "" {
			errs = append(errs, field.Required(spec.Child("externalName"), ""))
		} else {
			errs = append(errs, texts(spec.Child("externalName"), s.Spec.ExternalName, validation.IsDNS1123Subdomain(name))...)
		}
	}
	return errs
}

func servicePorts(s *corev1.Service, path *field.Path) (errs fieldErrors) {
	names, ports, nodes := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range s.Spec.Ports {
		p, at := &s.Spec.Ports[i], path.Index(i)
		switch {
		case p.Name == "" && len(s.Spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.Name != "":
			errs = append(errs, texts(at.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		errs = append(errs, texts(at.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))...)
		errs = append(errs, oneOf(at.Child("protocol"), p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		if p.TargetPort.Type == intstr.Int {
			errs = append(errs, texts(at.Child("targetPort"), p.TargetPort.IntVal, validation.IsValidPortNum(p.TargetPort.IntValue()))...)
		} else {
			errs = append(errs, texts(at.Child("targetPort"), p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal))...)
		}
		if p.AppProtocol != nil {
			errs = append(errs, texts(at.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
		}
		id := fmt.Sprintf("%s/%d", p.Protocol, p.Port)
		if ports[id] {
			errs = append(errs, field.Duplicate(at, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}))
		}
		ports[id] = true
		if p.NodePort == 0 {
			continue
		}
		if s.Spec.Type == corev1.ServiceTypeClusterIP || s.Spec.Type == corev1.ServiceTypeExternalName {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), "may not be used when `type` is '"+string(s.Spec.Type)+"'"))
		}
		if id = fmt.Sprintf("%s/%d", p.Protocol, p.NodePort); nodes[id] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
		}
		nodes[id] = true
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer && p.Port == kubeletPort {
			errs = append(errs, field.Invalid(at, p.Port, fmt.Sprintf("may not expose port %v externally since it is used by kubelet", kubeletPort)))
		}
	}
	return errs
}

func sessionAffinity(s *corev1.Service, spec *field.Path) (errs fieldErrors) {
	errs = oneOf(spec.Child("sessionAffinity"), s.Spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	at := spec.Child("sessionAffinityConfig")
	switch c := s.Spec.SessionAffinityConfig; {
	case s.Spec.SessionAffinity == corev1.ServiceAffinityNone && c != nil:
		errs = append(errs, field.Forbidden(at, "must not be set when session affinity is None"))
	case s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP:
	case c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil:
		errs = append(errs, field.Required(at, "when session affinity type is ClientIP"))
	case *c.ClientIP.TimeoutSeconds <= 0 || *c.ClientIP.TimeoutSeconds > maxAffinitySeconds:
		errs = append(errs, field.Invalid(at.Child("clientIP", "timeoutSeconds"), *c.ClientIP.TimeoutSeconds,
			fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds)))
	}
	return errs
}

// serviceAddresses checks cluster addresses and families. This release has one range, so that a second family is
// refused by name where it is required, and where it is preferred the first alone is given, as upstream does then.
func serviceAddresses(s *corev1.Service, spec *field.Path, clusterRange netip.Prefix) (errs fieldErrors) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	families := spec.Child("ipFamilies")
	for i, f := range s.Spec.IPFamilies {
		at := families.Index(i)
		if e := oneOf(at, f, corev1.IPv4Protocol, corev1.IPv6Protocol); len(e) > 0 {
			errs = append(errs, e...)
		} else if f != rangeFamily(clusterRange) && !(headless(s) && len(s.Spec.Selector) == 0) {
			errs = append(errs, field.Invalid(at, f, "not configured on this cluster"))
		}
	}
	if len(s.Spec.IPFamilies) == 2 && s.Spec.IPFamilies[0] == s.Spec.IPFamilies[1] {
		errs = append(errs, field.Duplicate(families.Index(1), s.Spec.IPFamilies[1]))
	}
	if p := s.Spec.IPFamilyPolicy; p != nil {
		at := spec.Child("ipFamilyPolicy")
		errs = append(errs, oneOf(at, *p, corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
		if *p == corev1.IPFamilyPolicyRequireDualStack && !(headless(s) && len(s.Spec.Selector) == 0) {
			errs = append(errs, field.Invalid(at, *p, "this cluster is not configured for dual-stack services"))
		}
	}
	ips := spec.Child("clusterIPs")
	if len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIP != s.Spec.ClusterIPs[0] {
		errs = append(errs, field.Invalid(ips, s.Spec.ClusterIPs, "first value must match `clusterIP`"))
	}
	if len(s.Spec.ClusterIPs) > 1 {
		errs = append(errs, field.Invalid(ips, s.Spec.ClusterIPs, "this cluster is not configured for dual-stack services"))
	}
	for i, ip := range s.Spec.ClusterIPs {
		if ip == corev1.ClusterIPNone && i == 0 {
			continue
		}
		errs = append(errs, validation.IsValidIPForLegacyField(ips.Index(i), ip, false, nil)...)
	}
	for i, ip := range s.Spec.ExternalIPs {
		at := spec.Child("externalIPs").Index(i)
		e := validation.IsValidIPForLegacyField(at, ip, false, nil)
		errs = append(errs, e...)
		if len(e) == 0 {
			errs = append(errs, reachable(ip, at)...)
		}
	}
	return errs
}

func rangeFamily(p netip.Prefix) corev1.IPFamily {
	if p.IsValid() && p.Addr().Is6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// reachable refuses addresses that mean something else on every host.
func reachable(ip string, at *field.Path) (errs fieldErrors) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil // another check says so
	}
	switch {
	case a.IsUnspecified():
		errs = append(errs, field.Invalid(at, ip, fmt.Sprintf("may not be unspecified (%v)", ip)))
	case a.IsLoopback():
		errs = append(errs, field.Invalid(at, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
	case a.IsLinkLocalUnicast():
		errs = append(errs, field.Invalid(at, ip, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
	case a.IsLinkLocalMulticast():
		errs = append(errs, field.Invalid(at, ip, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
	}
	return errs
}

func trafficPolicies(s *corev1.Service, spec *field.Path) (errs fieldErrors) {
	at := spec.Child("externalTrafficPolicy")
	if p := s.Spec.ExternalTrafficPolicy; p != "" {
		if !external(s) {
			errs = append(errs, field.Invalid(at, p, "may only be set for externally-accessible services"))
		}
		errs = append(errs, oneOf(at, p, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	} else if external(s) {
		errs = append(errs, field.Required(at, "may only be set for externally-accessible services"))
	}
	health := spec.Child("healthCheckNodePort")
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		if n < 0 || n > 65535 {
			errs = append(errs, texts(health, n, validation.IsValidPortNum(int(n)))...)
		}
		if !needsHealthPort(s) {
			errs = append(errs, field.Invalid(health, n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		errs = append(errs, oneOf(spec.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	} else if s.Spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(spec.Child("internalTrafficPolicy"), ""))
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		errs = append(errs, oneOf(spec.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

func loadBalancer(s *corev1.Service, spec *field.Path) (errs fieldErrors) {
	lb := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	ranges := spec.Child("LoadBalancerSourceRanges") // upstream's spelling, on the wire
	if len(s.Spec.LoadBalancerSourceRanges) > 0 && !lb {
		errs = append(errs, field.Forbidden(ranges, "may only be used when `type` is 'LoadBalancer'"))
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		errs = append(errs, validation.IsValidCIDRForLegacyField(ranges.Index(i), strings.TrimSpace(r), false, nil)...)
	}
	if a := s.Spec.AllocateLoadBalancerNodePorts; a != nil && !lb {
		errs = append(errs, field.Forbidden(spec.Child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'"))
	} else if a == nil && lb {
		errs = append(errs, field.Required(spec.Child("allocateLoadBalancerNodePorts"), ""))
	}
	if c := s.Spec.LoadBalancerClass; c != nil {
		at := spec.Child("loadBalancerClass")
		errs = append(errs, texts(at, *c, validation.IsQualifiedName(*c))...)
		if !lb {
			errs = append(errs, field.Forbidden(at, "may only be used when `type` is 'LoadBalancer'"))
		}
	}
	return errs
}

func updateService(now, old *corev1.Service) (errs fieldErrors) {
	spec := field.NewPath("spec")
	if !needsClusterIP(now) || !needsClusterIP(old) {
		return errs
	}
	if old.Spec.ClusterIP != "" {
		errs = append(errs, immutable(now.Spec.ClusterIP, old.Spec.ClusterIP, spec.Child("clusterIPs").Index(0))...)
	}
	if len(old.Spec.IPFamilies) > 0 && len(now.Spec.IPFamilies) > 0 && now.Spec.IPFamilies[0] != old.Spec.IPFamilies[0] {
		errs = append(errs, field.Invalid(spec.Child("ipFamilies").Index(0), now.Spec.IPFamilies[0], "primary ipFamily can not be changed"))
	}
	if now.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == now.Spec.Type {
		if a, b := now.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass; deref(a) != deref(b) || (a == nil) != (b == nil) {
			errs = append(errs, field.Invalid(spec.Child("loadBalancerClass"), a, "may not change once set"))
		}
	}
	if needsHealthPort(now) && needsHealthPort(old) && now.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(spec.Child("healthCheckNodePort"), "field is immutable"))
	}
	return errs
}
