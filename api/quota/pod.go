package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
)

// podNames are the names that pods use, beside huge pages and extended resources.
var podNames = []corev1.ResourceName{
	corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
}

func podName(name corev1.ResourceName) bool {
	s := string(name)
	requested, isRequest := strings.CutPrefix(s, corev1.DefaultResourceRequestsPrefix)
	return slices.Contains(podNames, name) || strings.HasPrefix(s, corev1.ResourceHugePagesPrefix) || strings.HasPrefix(s, corev1.ResourceRequestsHugePagesPrefix) ||
		isRequest && api.Extended(corev1.ResourceName(requested))
}

// podUsage adds what a pod uses. One that has ended, or should have, is only counted as an object.
func podUsage(use corev1.ResourceList, p *corev1.Pod, now time.Time) {
	if api.PodTerminal(p) {
		return
	}
	if t, g := p.DeletionTimestamp, p.DeletionGracePeriodSeconds; t != nil && g != nil && now.After(t.Add(time.Duration(*g)*time.Second)) {
		return
	}
	opts := resource.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	for name, q := range amounts(resource.PodRequests(p, opts), resource.PodLimits(p, opts)) {
		use[name] = q
	}
	use[corev1.ResourcePods] = *one()
}

// amounts spells requests and limits in the names of quotas.
func amounts(requests, limits corev1.ResourceList) corev1.ResourceList {
	use := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := requests[name]; ok {
			use[name], use[corev1.DefaultResourceRequestsPrefix+name] = q, q
		}
		if q, ok := limits[name]; ok {
			use["limits."+name] = q
		}
	}
	for name, q := range requests {
		huge := strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if huge {
			use[name] = q
		}
		if huge || api.Extended(name) {
			use[corev1.DefaultResourceRequestsPrefix+name] = q
		}
	}
	return use
}

// required are the names that each container of a pod has to say an amount of, where a quota limits them. That holds
// for no others: it was a mistake once.
var required = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceMemory,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory}

// Unspecified says which of the names, limited by a quota, containers of o say no amount of.
func Unspecified(names []corev1.ResourceName, o api.Object) error {
	p, ok := o.(*corev1.Pod)
	if !ok || resource.IsPodLevelResourcesSet(p) {
		return nil
	}
	var missing []string
	for _, name := range required {
		if !slices.Contains(names, name) {
			continue
		}
		var who []string
		for _, cs := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
			for i := range cs {
				if _, ok := amounts(cs[i].Resources.Requests, cs[i].Resources.Limits)[name]; !ok {
					who = append(who, cs[i].Name)
				}
			}
		}
		if len(who) > 0 {
			slices.Sort(who)
			missing = append(missing, fmt.Sprintf("%s for: %s", name, strings.Join(slices.Compact(who), ",")))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("must specify %s", strings.Join(missing, "; "))
}
