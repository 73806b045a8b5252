package quota

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Others are the objects on which it depends what another one uses. A function that is nil finds nothing.
type Others struct {
	// Class returns a class of devices by name, Pod a pod; nil: there is none.
	Class func(name string) *resourcev1.DeviceClass
	Pod   func(api.Key) *corev1.Pod
}

// deviceName says whether claims of devices use the name: that of a class's devices, or that of an extended resource for which a class stands (KEP-5004),
// so that one quota limits devices however they are asked for.
func deviceName(name corev1.ResourceName) bool {
	requested, isRequest := strings.CutPrefix(string(name), corev1.DefaultResourceRequestsPrefix)
	return strings.HasSuffix(string(name), corev1.ResourceClaimsPerClass) || isRequest && api.Extended(corev1.ResourceName(requested))
}

// named returns the names under which devices of a class count, without the one that counted is spelled: a pod uses that much of it already.
func (o Others) named(class string, counted corev1.ResourceName) []corev1.ResourceName {
	names := []corev1.ResourceName{corev1.ResourceName(class + corev1.ResourceClaimsPerClass), requested(corev1.ResourceName(resourcev1.ResourceDeviceClassPrefix + class))}
	if o.Class != nil {
		if c := o.Class(class); c != nil && c.Spec.ExtendedResourceName != nil {
			names = append(names, requested(corev1.ResourceName(*c.Spec.ExtendedResourceName)))
		}
	}
	return slices.DeleteFunc(names, func(n corev1.ResourceName) bool { return n == counted })
}

func requested(name corev1.ResourceName) corev1.ResourceName {
	return corev1.DefaultResourceRequestsPrefix + name
}

// counted returns, by request of a claim that was made for a pod's extended resources, under which name that pod counts for it.
func (o Others) counted(c *resourcev1.ResourceClaim) map[string]corev1.ResourceName {
	ref := metav1.GetControllerOfNoCopy(c)
	if c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" || ref == nil || ref.Kind != "Pod" || o.Pod == nil {
		return nil
	}
	p := o.Pod(api.Key{Namespace: c.Namespace, Name: ref.Name})
	if p == nil || p.UID != ref.UID {
		return nil // whoever says so is not believed
	}
	out := map[string]corev1.ResourceName{}
	for i, container := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for j, name := range slices.Sorted(maps.Keys(container.Resources.Requests)) {
			if api.Extended(name) {
				out[fmt.Sprintf("container-%d-request-%d", i, j)] = requested(name)
			}
		}
	}
	return out
}

func deviceUsage(use corev1.ResourceList, c *resourcev1.ResourceClaim, among Others) {
	devices := func(mode resourcev1.DeviceAllocationMode, count int64) int64 {
		switch mode {
		case resourcev1.DeviceAllocationModeExactCount:
			return count
		case resourcev1.DeviceAllocationModeAll: // as many as a claim can have
			return resourcev1.AllocationResultsMaxSize
		}
		return 0
	}
	add := func(name corev1.ResourceName, n int64) {
		q := use[name]
		q.Add(*resource.NewQuantity(n, resource.DecimalSI))
		use[name] = q
	}
	counted := among.counted(c)
	for i := range c.Spec.Devices.Requests {
		r := &c.Spec.Devices.Requests[i]
		if e := r.Exactly; e != nil {
			for _, name := range among.named(e.DeviceClassName, counted[r.Name]) {
				add(name, devices(e.AllocationMode, e.Count))
			}
			continue
		}
		most := map[corev1.ResourceName]int64{} // one of them will be had: the largest of each class is kept free
		for j := range r.FirstAvailable {
			s := &r.FirstAvailable[j]
			for _, name := range among.named(s.DeviceClassName, "") {
				most[name] = max(most[name], devices(s.AllocationMode, s.Count))
			}
		}
		for name, n := range most {
			if n > 0 {
				add(name, n)
			}
		}
	}
}
