package reconcile

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// ServicesOfPods wakes the Services that select a pod, when something changed that their endpoints show.
func ServicesOfPods() Source {
	return Changed(func(ctx context.Context, d Deps, before, after *corev1.Pod) []api.Key {
		if before != nil && after != nil && sameEndpoint(before, after) {
			return nil
		}
		var namespace string
		for _, p := range []*corev1.Pod{before, after} {
			if p != nil {
				namespace = p.Namespace
			}
		}
		all, err := client.List[*corev1.Service](ctx, d.Client, client.Query{Namespace: namespace})
		if err != nil {
			d.Log.Warn("list services", "err", err)
			return nil
		}
		var keys []api.Key
		for _, s := range all {
			if selectsPod(s, before) || selectsPod(s, after) {
				keys = append(keys, api.KeyOf(s))
			}
		}
		return keys
	}, api.ServiceKind)
}

// selectsPod is asked for every Service of a namespace at every change of a pod: hence no labels.Selector.
func selectsPod(s *corev1.Service, p *corev1.Pod) bool {
	if p == nil || len(s.Spec.Selector) == 0 {
		return false
	}
	for k, v := range s.Spec.Selector {
		if have, ok := p.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func sameEndpoint(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName && a.Spec.Hostname == b.Spec.Hostname &&
		a.Spec.Subdomain == b.Spec.Subdomain && api.PodTerminal(a) == api.PodTerminal(b) && api.PodReady(a) == api.PodReady(b) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		slices.Equal(a.Status.PodIPs, b.Status.PodIPs) && a.Status.PodIP == b.Status.PodIP && maps.Equal(a.Labels, b.Labels)
}

// TargetPort returns the port of p's containers that the Service port sp leads to. A name that no container
// has leads nowhere.
func TargetPort(p *corev1.Pod, sp *corev1.ServicePort) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		if n := sp.TargetPort.IntVal; n != 0 {
			return n, true
		}
		return sp.Port, true
	}
	of := func(c *corev1.Container) (int32, bool) {
		for _, port := range c.Ports {
			if port.Name == sp.TargetPort.StrVal && port.Protocol == sp.Protocol {
				return port.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range p.Spec.Containers {
		if n, ok := of(&p.Spec.Containers[i]); ok {
			return n, true
		}
	}
	for i := range p.Spec.InitContainers { // sidecars serve too
		c := &p.Spec.InitContainers[i]
		if n, ok := of(c); ok && api.Sidecar(c) {
			return n, true
		}
	}
	return 0, false
}

// PodHostname returns the name that p has below the Service s in DNS, empty if none.
func PodHostname(p *corev1.Pod, s *corev1.Service) string {
	if p.Spec.Subdomain == s.Name && p.Namespace == s.Namespace {
		return p.Spec.Hostname
	}
	return ""
}
