package builtin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// fieldErrors is what validation returns.
type fieldErrors = field.ErrorList

const (
	maxAffinitySeconds = 86400
	kubeletPort        = 10250
)

// validateService checks s, whose families are settled. Addresses that old has are accepted in whatever form older rules allowed.
func validateService(s, old *corev1.Service) (errs fieldErrors) {
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
	errs = append(errs, externalAddresses(s, old, spec)...)
	errs = append(errs, trafficPolicies(s, spec)...)
	errs = append(errs, sourceRanges(s, old, spec)...)
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

// serviceFamilies checks cluster addresses and families by themselves.
func serviceFamilies(s, old *corev1.Service, spec *field.Path) (errs fieldErrors) {
	ips, families := spec.Child("clusterIPs"), spec.Child("ipFamilies")
	given := s.Spec.ClusterIPs
	switch {
	case s.Spec.ClusterIP == "" && len(given) > 0:
		errs = append(errs, field.Invalid(ips, given, "must be empty when `clusterIP` is not specified"))
	case s.Spec.ClusterIP != "" && len(given) == 0:
		errs = append(errs, field.Required(ips, ""))
	case s.Spec.ClusterIP != "" && s.Spec.ClusterIP != given[0]:
		errs = append(errs, field.Invalid(ips, given, "first value must match `clusterIP`"))
	}
	for i, f := range s.Spec.IPFamilies {
		errs = append(errs, known(families.Index(i), f, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if slices.Contains(s.Spec.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(families.Index(i), f))
		}
	}
	if p := s.Spec.IPFamilyPolicy; p != nil {
		errs = append(errs, known(spec.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack,
			corev1.IPFamilyPolicySingleStack)...)
	}
	wrong := false
	for i, ip := range given {
		var e fieldErrors
		switch {
		case i > 0 || ip != corev1.ClusterIPNone:
			e = validation.IsValidIPForLegacyField(ips.Index(i), ip, true, old.Spec.ClusterIPs)
		case len(given) > 1:
			e = fieldErrors{field.Invalid(ips, given, "'None' must be the first and only value")}
		}
		errs, wrong = append(errs, e...), wrong || len(e) > 0
	}
	if len(given) > 2 {
		errs = append(errs, field.Invalid(ips, given, "may only hold up to 2 values"))
	}
	if wrong {
		return errs
	}
	if dual, err := netutils.IsDualStackIPStrings(given); len(given) > 1 && (err != nil || !dual) {
		errs = append(errs, field.Invalid(ips, given, "may specify no more than one IP for each IP family"))
	}
	for i := 0; i < min(len(given), len(s.Spec.IPFamilies)) && !headless(s); i++ {
		switch f, six := s.Spec.IPFamilies[i], netutils.IsIPv6String(given[i]); {
		case f == corev1.IPv4Protocol && six, f == corev1.IPv6Protocol && !six:
			errs = append(errs, field.Invalid(ips.Index(i), given[i], fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", f, i)))
		}
	}
	return errs
}

func externalAddresses(s, old *corev1.Service, spec *field.Path) (errs fieldErrors) {
	for i, ip := range s.Spec.ExternalIPs {
		at := spec.Child("externalIPs").Index(i)
		if e := validation.IsValidIPForLegacyField(at, ip, true, old.Spec.ExternalIPs); len(e) > 0 {
			errs = append(errs, e...)
			continue
		}
		errs = append(errs, reachable(ip, at)...)
	}
	return errs
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
	switch p := s.Spec.ExternalTrafficPolicy; {
	case !external(s) && p != "":
		errs = append(errs, field.Invalid(at, p, "may only be set for externally-accessible services"))
	case external(s):
		errs = append(errs, oneOf(at, p, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	}
	health := spec.Child("healthCheckNodePort")
	switch n := s.Spec.HealthCheckNodePort; {
	case needsHealthPort(s) && n != 0: // it is given after this
		errs = append(errs, texts(health, n, validation.IsValidPortNum(int(n)))...)
	case !needsHealthPort(s) && n != 0:
		errs = append(errs, field.Invalid(health, n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	}
	switch p, t := s.Spec.InternalTrafficPolicy, s.Spec.Type; {
	case p != nil:
		errs = append(errs, known(spec.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	case t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer || t == corev1.ServiceTypeClusterIP:
		errs = append(errs, field.Required(spec.Child("internalTrafficPolicy"), ""))
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		errs = append(errs, known(spec.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

// sourceRanges checks whom a load balancer lets in: a field, or the annotation that came before it.
func sourceRanges(s, old *corev1.Service, spec *field.Path) (errs fieldErrors) {
	at, had := spec.Child("LoadBalancerSourceRanges"), make([]string, len(old.Spec.LoadBalancerSourceRanges)) // upstream's spelling, on the wire
	for i, r := range old.Spec.LoadBalancerSourceRanges {
		had[i] = strings.TrimSpace(r)
	}
	text, annotated := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	given := len(s.Spec.LoadBalancerSourceRanges) > 0
	if !given {
		at = field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	}
	if (given || annotated) && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(at, "may only be used when `type` is 'LoadBalancer'"))
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		errs = append(errs, validation.IsValidCIDRForLegacyField(at.Index(i), strings.TrimSpace(r), true, had)...)
	}
	if before, was := old.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; given || was && before == text || strings.TrimSpace(text) == "" {
		return errs
	}
	for r := range strings.SplitSeq(text, ",") {
		errs = append(errs, validation.IsValidCIDRForLegacyField(at, strings.TrimSpace(r), true, nil)...)
	}
	return errs
}

func loadBalancer(s *corev1.Service, spec *field.Path) (errs fieldErrors) {
	lb := s.Spec.Type == corev1.ServiceTypeLoadBalancer
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
	switch at, is, was := spec.Child("clusterIPs"), now.Spec.ClusterIPs, old.Spec.ClusterIPs; {
	case len(was) == 0:
	case len(is) == 0:
		errs = append(errs, field.Invalid(at.Index(0), is, "primary clusterIP can not be unset"))
	default: // a second one comes and goes with the policy
		for i := range min(len(is), len(was)) {
			if is[i] != was[i] {
				errs = append(errs, field.Invalid(at.Index(i), is, "may not change once set"))
			}
		}
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

// balancerStatus checks the addresses that a load balancer has given a Service.
func balancerStatus(now, old *corev1.Service) (errs fieldErrors) {
	at := field.NewPath("status", "loadBalancer", "ingress")
	list := now.Status.LoadBalancer.Ingress
	if len(list) > 0 && now.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return fieldErrors{field.Forbidden(at, "may only be used when `spec.type` is \"LoadBalancer\"")}
	}
	var had []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		had = append(had, in.IP)
	}
	modes := []corev1.LoadBalancerIPMode{corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP}
	for i, in := range list {
		at := at.Index(i)
		errs = append(errs, balancerPoint(at, in.IP, in.Hostname, had)...)
		switch mode := at.Child("ipMode"); {
		case in.IPMode == nil && in.IP != "":
			errs = append(errs, field.Required(mode, "must be specified when `ip` is set"))
		case in.IPMode != nil && in.IP == "":
			errs = append(errs, field.Forbidden(mode, "may not be specified when `ip` is not set"))
		case in.IPMode != nil:
			errs = append(errs, known(mode, *in.IPMode, modes...)...)
		}
	}
	return errs
}
