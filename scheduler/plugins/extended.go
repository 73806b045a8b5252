package plugins

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// Devices in place of extended resources (KEP-5004): a container asks for a number of a resource as of a device plugin's, and where the node has none of it,
// devices of the class that stands for it do. For that the pod gets a claim of its own, the special one, which the scheduler makes. Which
// resources are to be in it depends on the node: a variant.

// promised is why a node is not had that has the resources itself: the pod's status names a claim, which its kubelet would look for, and the API lets
// nobody take it out again.
const promised = "extended resources are promised by status.extendedResourceClaimStatus and cannot be the node's own"

// variant is what is to be allocated where certain extended resources have to come from classes.
type variant struct {
	open     []*resourcev1.ResourceClaim // d.open, and the special one last if there is one to be allocated
	special  *resourcev1.ResourceClaim   // nil: nothing has to come from classes
	mappings []corev1.ContainerExtendedResourceRequest
	wants    string               // what is open, encoded
	slow     bool                 // it took too long lately
	barren   map[int]*corev1.Node // by slot, known from other pods
}

// extras returns the columns of the resources that p asks for and that classes serve.
func extras(c *cluster.Cluster, p *cluster.Pod) (columns []int) {
	for _, r := range p.Requests {
		if r.Column > cluster.Pods && c.Devices.ClassOf(r.Name) != nil {
			columns = append(columns, r.Column)
		}
	}
	return columns
}

// variantOn returns the variant for a node.
func (d *demands) variantOn(slot int) (*variant, error) {
	var lacks []corev1.ResourceName
	for _, column := range d.extras {
		if d.c.ByClass(column, slot) {
			lacks = append(lacks, d.c.Resource(column))
		}
	}
	slices.Sort(lacks)
	id := fmt.Sprint(lacks)
	v := d.variants[id]
	if v == nil {
		v = &variant{open: d.open}
		if len(lacks) > 0 {
			v.special, v.mappings = Special(d.c, d.pod.Pod, lacks)
			if d.made == nil {
				v.open = append(slices.Clip(d.open), v.special)
			}
		}
		if len(v.open) > 0 {
			if err := d.recall(v); err != nil {
				return nil, err
			}
		}
		d.variants[id] = v
	}
	return v, nil
}

// unfit says why the claim that was made for the pod before, or that its status names, does not do on a node of this variant; "" if it does.
func (d *demands) unfit(v *variant) string {
	status := d.pod.Status.ExtendedResourceClaimStatus
	switch {
	case d.made == nil && (v.special != nil || status == nil):
		return ""
	case d.made == nil:
		return promised
	case v.special != nil && d.made.Status.Allocation != nil && equality.Semantic.DeepEqual(d.made.Spec.Devices.Requests, v.special.Spec.Devices.Requests):
		return ""
	}
	if !slices.Contains(d.elsewhere, d.made) {
		d.elsewhere = append(d.elsewhere, d.made) // it goes, and the pod gets another one
	}
	return claimElsewhere
}

// said says whether the pod's status tells of the special claim already.
func (d *demands) said(v *variant) bool {
	s := d.pod.Status.ExtendedResourceClaimStatus
	return s != nil && s.ResourceClaimName == d.made.Name && slices.Equal(s.RequestMappings, v.mappings)
}

// Special returns the claim for some extended resources of a pod, without a name, and which of its requests each container has.
func Special(c *cluster.Cluster, p *corev1.Pod, names []corev1.ResourceName) (*resourcev1.ResourceClaim, []corev1.ContainerExtendedResourceRequest) {
	claim := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, GenerateName: p.Name + "-extended-resources-",
		Annotations:     map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: new(true)}},
	}}
	var mappings []corev1.ContainerExtendedResourceRequest
	for _, name := range names {
		rs, ms := requests(p, name, c.Devices.ClassOf(name).Name)
		claim.Spec.Devices.Requests = append(claim.Spec.Devices.Requests, rs...)
		mappings = append(mappings, ms...)
	}
	slices.SortFunc(claim.Spec.Devices.Requests, func(a, b resourcev1.DeviceRequest) int { return strings.Compare(a.Name, b.Name) })
	return claim, mappings
}

// requests returns the requests for one resource, by upstream's names, and which container has which. A container that runs on, sidecars too, has one of its
// own. Init containers that end run one after the other, before later ones: each has what the containers after it will have, and what it
// asks for beyond that is asked for once for all of them.
func requests(p *corev1.Pod, name corev1.ResourceName, class string) (all []resourcev1.DeviceRequest, mappings []corev1.ContainerExtendedResourceRequest) {
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers)
	passes := func(i int) bool { return i < len(p.Spec.InitContainers) && !api.Sidecar(&containers[i]) }
	amount := func(i int) int64 {
		q := containers[i].Resources.Requests[name]
		return q.Value()
	}
	called := func(i int) string {
		sorted := slices.Sorted(maps.Keys(containers[i].Resources.Requests))
		return fmt.Sprintf("container-%d-request-%d", i, slices.Index(sorted, name))
	}
	have := func(i int, request string) {
		mappings = append(mappings, corev1.ContainerExtendedResourceRequest{ContainerName: containers[i].Name, ResourceName: string(name), RequestName: request})
	}
	ask := func(request string, n int64) {
		all = append(all, resourcev1.DeviceRequest{Name: request, Exactly: &resourcev1.ExactDeviceRequest{
			DeviceClassName: class, AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: n}})
	}
	for i := range containers {
		if n := amount(i); n > 0 && !passes(i) {
			ask(called(i), n)
			have(i, called(i))
		}
	}
	// What an init container lacks that ends, beyond what later ones have.
	most, shared := int64(0), ""
	lacks := func(i int) (int64, []int) {
		left := amount(i)
		var from []int
		for j := i + 1; j < len(containers) && left > 0; j++ {
			if n := amount(j); n > 0 && !passes(j) {
				from = append(from, j)
				left -= n
			}
		}
		return left, from
	}
	for i := range p.Spec.InitContainers {
		if n, _ := lacks(i); passes(i) && n > most {
			most, shared = n, called(i)
		}
	}
	if most > 0 {
		ask(shared, most)
	}
	for i := range p.Spec.InitContainers {
		if !passes(i) {
			continue
		}
		left, from := lacks(i)
		for _, j := range from {
			have(i, called(j))
		}
		if left > 0 {
			have(i, shared)
		}
	}
	return all, mappings
}
