package cluster

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// SetDeviceClass takes in a class, or that it is gone. What local plugins said of nodes may be true no more: a class can stand for an extended resource.
func (c *Cluster) SetDeviceClass(class *resourcev1.DeviceClass, deleted bool) {
	c.Devices.SetClass(class, deleted)
	if !deleted {
		c.resource(corev1.ResourceName(resourcev1.ResourceDeviceClassPrefix + class.Name))
		if own := class.Spec.ExtendedResourceName; own != nil {
			c.resource(corev1.ResourceName(*own))
		}
	}
	for slot := range c.Changed {
		c.Changed[slot]++
	}
}

// ByClass says whether an extended resource is to be had on a node as devices of a class (KEP-5004): where the node offers none itself.
func (c *Cluster) ByClass(column, slot int) bool {
	return column >= fixed && c.Alloc[column][slot] == 0 && c.Devices.ClassOf(c.names[column]) != nil
}

// ClassOf returns the class whose devices serve an extended resource, nil if none does: under the name that the class gives them or under the one that every
// class has. Of two that give the same name it is the younger one, as while devices move to a new class; of the same age the first by name.
func (d *Devices) ClassOf(name corev1.ResourceName) *resourcev1.DeviceClass {
	if d.serving == nil {
		d.serving = map[corev1.ResourceName]*resourcev1.DeviceClass{}
		for _, class := range d.Classes {
			d.serving[corev1.ResourceName(resourcev1.ResourceDeviceClassPrefix+class.Name)] = class
			if own := class.Spec.ExtendedResourceName; own != nil {
				if other := d.serving[corev1.ResourceName(*own)]; other == nil || before(class, other) {
					d.serving[corev1.ResourceName(*own)] = class
				}
			}
		}
	}
	return d.serving[name]
}

func before(a, b *resourcev1.DeviceClass) bool {
	if at := a.CreationTimestamp; !at.Equal(&b.CreationTimestamp) {
		return b.CreationTimestamp.Before(&at)
	}
	return a.Name < b.Name
}

// SpecialFor returns the pod for whose extended resources a claim was made, "" if it is none of that kind.
func SpecialFor(c *resourcev1.ResourceClaim) types.UID {
	if c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" {
		return ""
	}
	if ref := metav1.GetControllerOfNoCopy(c); ref != nil && ref.Kind == "Pod" && ref.APIVersion == "v1" {
		return ref.UID
	}
	return ""
}

// Special returns the claim that was made for a pod's extended resources. Of several, of attempts that ended halfway, it is any, the same each time.
func (d *Devices) Special(pod types.UID) *resourcev1.ResourceClaim {
	var first *resourcev1.ResourceClaim
	for key := range d.special[pod] {
		if c := d.Claims[key]; c != nil && (first == nil || c.Name < first.Name) {
			first = c
		}
	}
	return first
}

// Unmade is the UID of a claim of that name that is to be made: what is promised to it is promised to the claim that comes by that name.
func Unmade(key api.Key) types.UID { return types.UID("unmade " + key.String()) }

// come takes in that a claim is there that was not.
func (d *Devices) come(key api.Key, c *resourcev1.ResourceClaim) {
	if pod := SpecialFor(c); pod != "" {
		if d.special[pod] == nil {
			d.special[pod] = map[api.Key]bool{}
		}
		d.special[pod][key] = true
	}
	unmade := Unmade(key)
	if a := d.pending[unmade]; a != nil {
		d.pending[c.UID], d.counted[c.UID] = a, d.counted[unmade]
		delete(d.pending, unmade)
		delete(d.counted, unmade)
	}
}

// went takes in that a claim is there no more.
func (d *Devices) went(key api.Key, c *resourcev1.ResourceClaim) {
	pod := SpecialFor(c)
	if delete(d.special[pod], key); len(d.special[pod]) == 0 {
		delete(d.special, pod)
	}
}

// byClaim says whether a pod that has its node has the resource by a claim, not from the node.
func byClaim(p *corev1.Pod, name corev1.ResourceName) bool {
	s := p.Status.ExtendedResourceClaimStatus
	return s != nil && p.Spec.NodeName != "" && slices.ContainsFunc(s.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool {
		return m.ResourceName == string(name)
	})
}
