package builtin

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// affinitySeconds is for how long a client stays with its endpoint by default.
const affinitySeconds int32 = 10800

// services get their cluster address and node ports from allocation.go, after validation and before they are stored.
func services(d Deps) *rest.Resource[*corev1.Service] {
	alloc, families := newAllocator(d), rangeFamilies(d.Services)
	settle := func(now, old *corev1.Service) {
		bothNames(now)
		settleFamilies(now, old, families) // validation tells what does not fit together
	}
	return &rest.Resource[*corev1.Service]{
		Default: defaultService,
		Name:    apivalidation.NameIsDNSLabel,
		Prepare: func(s *corev1.Service) { settle(s, nil) },
		// The type has no generation upstream.
		NoGeneration:   true,
		CreateOnUpdate: true,
		PrepareUpdate: func(now, old *corev1.Service) {
			keepAllocated(now, old)
			dropUnused(now, old)
			settle(now, old)
		},
		ValidateCreate: func(s *corev1.Service) fieldErrors {
			if errs := unsettled(s, nil, families); len(errs) > 0 {
				return errs
			}
			return validateService(s, new(corev1.Service))
		},
		ValidateUpdate: func(now, old *corev1.Service) fieldErrors {
			if errs := unsettled(now, old, families); len(errs) > 0 {
				return errs
			}
			return append(validateService(now, old), updateService(now, old)...)
		},
		ValidateStatus: balancerStatus,
		Hold:           alloc.hold,
		AnswerDeleted:  true,
		Warn:           serviceWarnings,
		Fields: func(s *corev1.Service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		},
		Columns: serviceColumns(),
		Sub:     maps.Clone(d.ServiceStreams),
	}
}

func headless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// external says whether traffic from outside the cluster can reach s.
func external(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	setDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	setDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			seconds := affinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	for i := range spec.Ports {
		setDefault(&spec.Ports[i].Protocol, corev1.ProtocolTCP)
		podspec.TargetPort(&spec.Ports[i].TargetPort, spec.Ports[i].Port)
	}
	if external(s) {
		setDefault(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		setPtr(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				setPtr(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	setPtr(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
}

// bothNames makes the singular address the first of the list, whichever a client sets.
func bothNames(s *corev1.Service) {
	spec := &s.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
}

// keepAllocated carries over what was allocated and the client, who may not know of it, left out.
func keepAllocated(now, old *corev1.Service) {
	if now.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if len(now.Spec.ClusterIPs) == 0 && (now.Spec.ClusterIP == "" || now.Spec.ClusterIP == old.Spec.ClusterIP) {
		now.Spec.ClusterIP, now.Spec.ClusterIPs = old.Spec.ClusterIP, append([]string(nil), old.Spec.ClusterIPs...)
	}
	// A client that changed one of the two names of the address means both.
	if len(now.Spec.ClusterIPs) > 0 && now.Spec.ClusterIP != old.Spec.ClusterIP && now.Spec.ClusterIPs[0] == old.Spec.ClusterIP {
		now.Spec.ClusterIPs = []string{now.Spec.ClusterIP}
	}
	if needsNodePorts(now) && needsNodePorts(old) {
		keepNodePorts(now, old)
	}
	if needsHealthPort(now) && needsHealthPort(old) && now.Spec.HealthCheckNodePort == 0 {
		now.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// keepNodePorts gives ports that name no node port the one that they had.
func keepNodePorts(now, old *corev1.Service) {
	id := func(p *corev1.ServicePort) string { return string(p.Protocol) + strconv.Itoa(int(p.Port)) }
	had, taken := map[string]int32{}, map[string]bool{}
	for i := range old.Spec.Ports {
		p := &old.Spec.Ports[i]
		had[id(p)] = p.NodePort
	}
	key := func(p *corev1.ServicePort, n int32) string { return string(p.Protocol) + strconv.Itoa(int(n)) }
	for i := range now.Spec.Ports {
		p := &now.Spec.Ports[i]
		taken[key(p, p.NodePort)] = true
	}
	for i := range now.Spec.Ports {
		p := &now.Spec.Ports[i]
		if n := had[id(p)]; p.NodePort == 0 && n != 0 && !taken[key(p, n)] {
			p.NodePort = n
			taken[key(p, n)] = true
		}
	}
}

// dropUnused clears what the old type had and the new one cannot, where the client left it as it was: a change of
// type needs not name every field that goes with it.
func dropUnused(now, old *corev1.Service) {
	if !needsClusterIP(now) && needsClusterIP(old) && now.Spec.ClusterIP == old.Spec.ClusterIP {
		now.Spec.ClusterIP, now.Spec.ClusterIPs = "", nil
	}
	if now.Spec.Type == corev1.ServiceTypeExternalName && old.Spec.Type != now.Spec.Type {
		now.Spec.IPFamilies, now.Spec.IPFamilyPolicy = nil, nil
		now.Spec.InternalTrafficPolicy = nil
	}
	if !needsNodePorts(now) && needsNodePorts(old) {
		had := map[int32]bool{}
		for _, p := range old.Spec.Ports {
			had[p.NodePort] = true
		}
		for i := range now.Spec.Ports {
			if had[now.Spec.Ports[i].NodePort] {
				now.Spec.Ports[i].NodePort = 0
			}
		}
	}
	if !needsHealthPort(now) && needsHealthPort(old) && now.Spec.HealthCheckNodePort == old.Spec.HealthCheckNodePort {
		now.Spec.HealthCheckNodePort = 0
	}
	if now.Spec.Type != corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer {
		now.Spec.AllocateLoadBalancerNodePorts = nil
		if deref(now.Spec.LoadBalancerClass) == deref(old.Spec.LoadBalancerClass) {
			now.Spec.LoadBalancerClass = nil
		}
		now.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	if !external(now) && external(old) && now.Spec.ExternalTrafficPolicy == old.Spec.ExternalTrafficPolicy {
		now.Spec.ExternalTrafficPolicy = ""
	}
}

func needsClusterIP(s *corev1.Service) bool { return s.Spec.Type != corev1.ServiceTypeExternalName }

func needsNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeLoadBalancer && (s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts)
}

func needsHealthPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func serviceWarnings(now, old *corev1.Service) (warnings []string) {
	if old != nil && now.Spec.SessionAffinity == old.Spec.SessionAffinity && headless(now) == headless(old) {
		return nil
	}
	if headless(now) && now.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		warnings = append(warnings, "spec.SessionAffinity is ignored for headless services")
	}
	return warnings
}

func serviceColumns() []rest.Column[*corev1.Service] {
	type svc = *corev1.Service
	doc := corev1.ServiceSpec{}.SwaggerDoc()
	return []rest.Column[svc]{
		{Name: "Type", Description: doc["type"], Cell: func(s svc) any { return string(s.Spec.Type) }},
		{Name: "Cluster-IP", Description: doc["clusterIP"], Cell: func(s svc) any { return or(s.Spec.ClusterIP, none) }},
		{Name: "External-IP", Description: doc["externalIPs"], Cell: func(s svc) any { return externalText(s) }},
		{Name: "Port(s)", Description: doc["ports"], Cell: func(s svc) any { return portsText(s.Spec.Ports) }},
		{Name: "Age"},
		{Name: "Selector", Wide: true, Description: doc["selector"], Cell: func(s svc) any { return mapText(s.Spec.Selector) }},
	}
}

func externalText(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var all []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			all = append(all, or(in.IP, in.Hostname))
		}
		all = append(all, s.Spec.ExternalIPs...)
		return or(strings.Join(all, ","), "<pending>")
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return or(strings.Join(s.Spec.ExternalIPs, ","), none)
	}
	return unknown
}

func portsText(ports []corev1.ServicePort) string {
	pieces := make([]string, len(ports))
	for i, p := range ports {
		pieces[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			pieces[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return or(strings.Join(pieces, ","), none)
}
