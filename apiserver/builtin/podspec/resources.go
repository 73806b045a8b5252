package podspec

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	podresource "k8s.io/component-helpers/resource"
)

// Requirements checks the limits and requests of a container.
func Requirements(r *corev1.ResourceRequirements, path *field.Path) field.ErrorList {
	return requirements(r, path, ContainerResource)
}

// requirements checks limits and requests whose names are as name has it.
func requirements(r *corev1.ResourceRequirements, path *field.Path, check func(corev1.ResourceName, *field.Path) field.ErrorList) (errs field.ErrorList) {
	lim, req := path.Child("limits"), path.Child("requests")
	huge, main := false, false
	note := func(name corev1.ResourceName) {
		huge = huge || isHuge(name)
		main = main || name == corev1.ResourceCPU || name == corev1.ResourceMemory
	}
	for _, name := range sortedNames(r.Limits) {
		q := r.Limits[name]
		note(name)
		errs = append(errs, check(name, lim.Key(string(name)))...)
		errs = append(errs, Quantity(name, &q, lim.Key(string(name)))...)
	}
	for _, name := range sortedNames(r.Requests) {
		q, at := r.Requests[name], req.Key(string(name))
		note(name)
		errs = append(errs, check(name, at)...)
		errs = append(errs, Quantity(name, &q, at)...)
		limit, limited := r.Limits[name]
		switch {
		case limited && q.Cmp(limit) != 0 && !MayOvercommit(name):
			errs = append(errs, field.Invalid(req, q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && q.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(req, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !limited && !MayOvercommit(name):
			errs = append(errs, field.Required(lim, "Limit must be set for non overcommitable resources"))
		}
	}
	if huge && !main {
		errs = append(errs, field.Forbidden(path, "HugePages require cpu or memory"))
	}
	return errs
}

func sortedNames(l corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(l))
	for name := range l {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ResourceName checks the form of the name of a resource.
func ResourceName(name corev1.ResourceName, at *field.Path) field.ErrorList {
	errs := texts(at, name, validation.IsQualifiedName(string(name)))
	if len(errs) == 0 && !strings.Contains(string(name), "/") && !standard(name) {
		errs = append(errs, field.Invalid(at, name, "must be a standard resource type or fully qualified"))
	}
	return errs
}

// ContainerResource checks the name of a resource that containers can ask for.
func ContainerResource(name corev1.ResourceName, at *field.Path) field.ErrorList {
	errs := ResourceName(name, at)
	if strings.Contains(string(name), "/") {
		if !Native(name) && !Extended(name) {
			errs = append(errs, field.Invalid(at, name, "doesn't follow extended resource name standard"))
		}
		return errs
	}
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return errs
	}
	if isHuge(name) {
		return errs
	}
	return append(errs, field.Invalid(at, name, "must be a standard resource for containers"))
}

// podResource checks the name of a resource that pods as a whole can ask for.
func podResource(name corev1.ResourceName, at *field.Path) field.ErrorList {
	errs := ResourceName(name, at)
	if len(errs) == 0 && !podresource.IsSupportedPodLevelResource(name) {
		errs = append(errs, field.NotSupported(at, name, sets.List(podresource.SupportedPodLevelResources())))
	}
	return errs
}

// whole checks the resources of the pod as a whole (KEP-2837), into which those of its containers must fit.
func (v *check) whole(path *field.Path) (errs field.ErrorList) {
	s, r := v.spec, v.spec.Resources
	switch {
	case r == nil:
		return nil
	case s.OS != nil && s.OS.Name == corev1.Windows:
		return field.ErrorList{field.Forbidden(path, "may not be set for a windows pod")}
	}
	if len(r.Claims) > 0 {
		errs = append(errs, field.Forbidden(path.Child("claims"), "claims may not be set for Resources at pod-level"))
	}
	errs = append(errs, v.usedClaims(r.Claims, path.Child("claims"))...)
	errs = append(errs, requirements(r, path, podResource)...)
	pod := &corev1.Pod{Spec: *s}
	requests := podresource.AggregateContainerRequests(pod, podresource.PodResourcesOptions{})
	for _, name := range sortedNames(requests) {
		all, q := requests[name], r.Requests[name]
		if _, ok := r.Requests[name]; ok && all.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(path.Child("requests").Key(string(name)), q.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", all.String())))
		}
	}
	limits := podresource.AggregateContainerLimits(pod, podresource.PodResourcesOptions{})
	for _, name := range sortedNames(limits) {
		all, q := limits[name], r.Limits[name]
		if _, ok := r.Limits[name]; ok && isHuge(name) && all.Cmp(q) > 0 { // which are not shared
			errs = append(errs, field.Invalid(path.Child("limits").Key(string(name)), q.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", all.String())))
		}
	}
	for i := range s.Containers { // at the path that upstream gives
		own := s.Containers[i].Resources.Limits
		for _, name := range sortedNames(own) {
			limit, q := own[name], r.Limits[name]
			if _, ok := r.Limits[name]; ok && limit.Cmp(q) > 0 {
				errs = append(errs, field.Invalid(path.Child("containers").Index(i).Key(string(name)).Child("limits"), limit.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", q.String())))
			}
		}
	}
	return errs
}

// Quantity checks the amount of a resource.
func Quantity(name corev1.ResourceName, q *resource.Quantity, at *field.Path) (errs field.ErrorList) {
	if q.Sign() < 0 {
		errs = append(errs, field.Invalid(at, q.String(), "must be greater than or equal to 0"))
	}
	if (Extended(name) || isHuge(name)) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
	}
	return errs
}

// Extended says whether name is a resource that Kubernetes itself does not know, such as a device.
func Extended(name corev1.ResourceName) bool {
	if Native(name) || strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

// Native says whether name has no domain, or kubernetes.io.
func Native(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

func isHuge(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// MayOvercommit says whether more of the resource can be promised than there is.
func MayOvercommit(name corev1.ResourceName) bool { return Native(name) && !isHuge(name) }

func standard(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceStorage, corev1.ResourcePods,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage, corev1.ResourceRequestsStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage, corev1.ResourceQuotas,
		corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets, corev1.ResourceConfigMaps,
		corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return isHuge(name) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

// resizePolicies checks what happens to a container of a pod with that restart policy when its resources change.
func resizePolicies(c *corev1.Container, pod corev1.RestartPolicy, path *field.Path) (errs field.ErrorList) {
	seen := map[corev1.ResourceName]bool{}
	for _, p := range c.ResizePolicy {
		if seen[p.ResourceName] {
			errs = append(errs, field.Duplicate(path, p.ResourceName))
		}
		seen[p.ResourceName] = true
		errs = append(errs, oneOf(path, p.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)...)
		errs = append(errs, oneOf(path, p.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)...)
		if pod == corev1.RestartPolicyNever && p.RestartPolicy != corev1.NotRequired {
			errs = append(errs, field.Invalid(path, p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"))
		}
	}
	return errs
}
