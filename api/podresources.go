package api

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
)

// CompleteResources fills in what the resources of the pod as a whole leave out, where it has any (KEP-2837). Huge pages are limited as all
// containers together; what the containers request together, the pod requests, else as much as it is limited to; and it is limited where every
// container is. Containers have their own defaults by then.
func CompleteResources(s *corev1.PodSpec) {
	r := s.Resources
	if r == nil || len(r.Requests)+len(r.Limits) == 0 {
		return
	}
	containers := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: s.InitContainers, Containers: s.Containers}}
	requests := podresource.AggregateContainerRequests(containers, podresource.PodResourcesOptions{})
	limits := podresource.AggregateContainerLimits(containers, podresource.PodResourcesOptions{})
	for name, q := range limits {
		if _, requested := r.Requests[name]; !requested && hugePages(name) {
			setAbsent(&r.Limits, name, q)
		}
	}
	for name, q := range requests {
		if !hugePages(name) { // which are requested as they are limited
			setAbsent(&r.Requests, name, q)
		}
	}
	for name, q := range r.Limits {
		setAbsent(&r.Requests, name, q)
	}
	for name, q := range r.Requests {
		if !everyLimited(s, name) {
			continue
		}
		limit := limits[name]
		if limit.Cmp(q) < 0 {
			limit = q
		}
		setAbsent(&r.Limits, name, limit)
	}
}

// setAbsent sets the amount of a resource that pods as a whole can have, unless the list says one.
func setAbsent(l *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if _, ok := (*l)[name]; ok || !podresource.IsSupportedPodLevelResource(name) {
		return
	}
	if *l == nil {
		*l = corev1.ResourceList{}
	}
	(*l)[name] = q.DeepCopy()
}

func everyLimited(s *corev1.PodSpec, name corev1.ResourceName) bool {
	for _, cs := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range cs {
			if _, ok := cs[i].Resources.Limits[name]; !ok {
				return false
			}
		}
	}
	return true
}

func hugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}
