// Package quota measures what objects use of the resources that a ResourceQuota can limit. The API server reserves by
// it before an object is stored, the quota controller counts by it what there is. It replaces upstream's pkg/quota
// evaluators. All functions are pure.
//
// Vocabulary: a name is that of a resource as a quota spells it: "requests.cpu", "count/jobs.batch",
// "gold.storageclass.storage.k8s.io/requests.storage". A kind tracks some names; an object of it uses an amount of each; a
// scope narrows a quota down to some objects.
package quota

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

// Ignored says that objects of k are never counted.
func Ignored(k *api.Kind) bool { return k.Plural == "events" || k.Prefix == "" }

// Count is the name that counts the objects of k: "count/pods", "count/jobs.batch".
func Count(k *api.Kind) corev1.ResourceName { return corev1.ResourceName("count/" + k.String()) }

// aliases are the names under which some kinds were counted before there was Count.
var aliases = map[string]corev1.ResourceName{
	"configmaps": corev1.ResourceConfigMaps, "resourcequotas": corev1.ResourceQuotas,
	"replicationcontrollers": corev1.ResourceReplicationControllers, "secrets": corev1.ResourceSecrets,
}

// Tracks says whether objects of k use the name.
func Tracks(k *api.Kind, name corev1.ResourceName) bool {
	if name == Count(k) {
		return true
	}
	switch {
	case k.Group == "resource.k8s.io" && k.Plural == "resourceclaims":
		return deviceName(name)
	case k.Group != "":
		return false
	}
	switch k.Plural {
	case "pods":
		return podName(name)
	case "services":
		return name == corev1.ResourceServices || name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case "persistentvolumeclaims":
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage ||
			strings.HasSuffix(string(name), storageClass+string(corev1.ResourcePersistentVolumeClaims)) ||
			strings.HasSuffix(string(name), storageClass+string(corev1.ResourceRequestsStorage))
	}
	return name == aliases[k.Plural] && name != ""
}

// Usage returns what o, of kind k, uses, among others. Names that are not in the list are not used.
func Usage(k *api.Kind, o api.Object, among Others, now time.Time) corev1.ResourceList {
	use := corev1.ResourceList{Count(k): *one()}
	switch o := o.(type) {
	case *corev1.Pod:
		podUsage(use, o, now)
	case *corev1.Service:
		serviceUsage(use, o)
	case *corev1.PersistentVolumeClaim:
		claimUsage(use, o)
	case *resourcev1.ResourceClaim:
		deviceUsage(use, o, among)
	default:
		if alias := aliases[k.Plural]; alias != "" && k.Group == "" {
			use[alias] = *one()
		}
	}
	return use
}

func one() *resource.Quantity { return number(1) }

func number(n int) *resource.Quantity { return resource.NewQuantity(int64(n), resource.DecimalSI) }

func serviceUsage(use corev1.ResourceList, s *corev1.Service) {
	ports, balancers := 0, 0
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		ports = len(s.Spec.Ports)
	case corev1.ServiceTypeLoadBalancer:
		ports, balancers = len(s.Spec.Ports), 1
		if a := s.Spec.AllocateLoadBalancerNodePorts; a != nil && !*a { // only those that were asked for
			ports = 0
			for i := range s.Spec.Ports {
				if s.Spec.Ports[i].NodePort != 0 {
					ports++
				}
			}
		}
	}
	use[corev1.ResourceServices] = *one()
	use[corev1.ResourceServicesNodePorts] = *number(ports)
	use[corev1.ResourceServicesLoadBalancers] = *number(balancers)
}

// storageClass joins the name of a class with what is limited of it.
const storageClass = ".storageclass.storage.k8s.io/"

func claimUsage(use corev1.ResourceList, c *corev1.PersistentVolumeClaim) {
	class := claim.Class(c)
	add := func(name corev1.ResourceName, q resource.Quantity) {
		use[name] = q
		if class != "" {
			use[corev1.ResourceName(class+storageClass)+name] = q
		}
	}
	add(corev1.ResourcePersistentVolumeClaims, *one())
	size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return
	}
	// An expansion that did not succeed may hold more than is asked for now.
	if held, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && held.Cmp(size) > 0 {
		size = held
	}
	if whole := size.DeepCopy(); !whole.RoundUp(0) {
		size = whole
	}
	add(corev1.ResourceRequestsStorage, size)
}

// Names returns the names of l, sorted.
func Names(l corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Changed says whether a write may change what its object uses, so that it has to be reserved or given back: every
// creation may, of updates those of some kinds.
func Changed(k *api.Kind, sub string, old, now api.Object) bool {
	if old == nil {
		return sub == ""
	}
	switch o := now.(type) {
	case *corev1.Pod:
		was, ok := old.(*corev1.Pod)
		return ok && (sub == "resize" || sub == "" && terminating(was) != terminating(o))
	case *corev1.PersistentVolumeClaim:
		was, ok := old.(*corev1.PersistentVolumeClaim)
		return ok && (sub == "" || sub == "status" && claimMoved(was, o))
	case *corev1.Service, *resourcev1.ResourceClaim:
		return sub == ""
	}
	return false
}

func claimMoved(old, now *corev1.PersistentVolumeClaim) bool {
	a, b := old.Status.AllocatedResources[corev1.ResourceStorage], now.Status.AllocatedResources[corev1.ResourceStorage]
	return a.Cmp(b) != 0 || !attributeClasses(old).Equal(attributeClasses(now))
}

// attributeClasses are the names of volume attributes classes that a claim has, had or is to have.
func attributeClasses(c *corev1.PersistentVolumeClaim) sets.Set[string] {
	names := sets.New[string]()
	add := func(n *string) {
		if n != nil && *n != "" {
			names.Insert(*n)
		}
	}
	add(c.Spec.VolumeAttributesClassName)
	add(c.Status.CurrentVolumeAttributesClassName)
	if m := c.Status.ModifyVolumeStatus; m != nil {
		add(&m.TargetVolumeAttributesClassName)
	}
	return names
}
