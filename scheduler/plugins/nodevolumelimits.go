package plugins

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// drivenVolume is a volume of a CSI driver: the handle of one that exists, the claim of one that is to be made.
type drivenVolume struct {
	driver, handle string
	claim          api.Key
}

// nodeVolumeLimits keeps nodes from more volumes of a driver than its CSINode says that they can have, and pods off nodes that lack a
// driver whose CSIDriver asks for that (preventPodSchedulingIfMissing). Volumes that are attached count though no pod uses them.
var nodeVolumeLimits = Filter{
	Name:  "NodeVolumeLimits",
	Wakes: NodeAdded | PodRemoved | Volumes | Attachments,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		wanted := map[drivenVolume]bool{}
		drivenBy(c, p, wanted)
		if len(wanted) == 0 {
			return nil, nil
		}
		why := func(slot int) string { return overLimit(c, c.Nodes[slot].Name, wanted) }
		return &Check{
			Pass: func(slot int) bool { return why(slot) == "" },
			Why:  func(slot int) []string { return []string{why(slot)} },
		}, nil
	},
}

// overLimit says why the node cannot have these volumes besides those that it has, "" when it can.
func overLimit(c *cluster.Cluster, node string, wanted map[drivenVolume]bool) string {
	limits, installed := map[string]int{}, map[string]bool{}
	if n := c.DriversOn[node]; n != nil {
		for _, d := range n.Spec.Drivers {
			installed[d.Name] = true
			if d.Allocatable != nil && d.Allocatable.Count != nil {
				limits[d.Name] = int(*d.Allocatable.Count)
			}
		}
	}
	limited := false
	for v := range wanted {
		if d := c.Drivers[v.driver]; d != nil && !installed[v.driver] && d.Spec.PreventPodSchedulingIfMissing != nil && *d.Spec.PreventPodSchedulingIfMissing {
			return "node(s) did not have CSI driver " + v.driver
		}
		_, has := limits[v.driver]
		limited = limited || has
	}
	if !limited {
		return ""
	}
	has := map[drivenVolume]bool{}
	for _, q := range c.On(node) {
		drivenBy(c, q, has)
	}
	for _, a := range c.Attached[node] {
		if name := a.Spec.Source.PersistentVolumeName; name != nil {
			if v := c.Volumes[*name]; v != nil && v.Spec.CSI != nil {
				has[drivenVolume{driver: a.Spec.Attacher, handle: v.Spec.CSI.VolumeHandle}] = true
			}
		}
	}
	asks := map[string]bool{}
	count := map[string]int{}
	for v := range has {
		count[v.driver]++
	}
	for v := range wanted {
		if !has[v] {
			count[v.driver]++
			asks[v.driver] = true
		}
	}
	for driver := range asks {
		if most, ok := limits[driver]; ok && count[driver] > most {
			return "node(s) exceed max volume count"
		}
	}
	return ""
}

// drivenBy adds the volumes of p's claims that a CSI driver serves. Claims that are not known count for nothing.
func drivenBy(c *cluster.Cluster, p *cluster.Pod, to map[drivenVolume]bool) {
	for i := range p.Spec.Volumes {
		name := claim.Name(p.Pod, &p.Spec.Volumes[i])
		if name == "" {
			continue
		}
		if pvc := c.Claims[api.Key{Namespace: p.Namespace, Name: name}]; pvc != nil {
			if v, ok := driven(c.Volumes[pvc.Spec.VolumeName], c.Classes[claim.Class(pvc)], pvc); ok {
				to[v] = true
			}
		}
	}
}

// driven names the volume of a claim; v and class are nil where there is none.
func driven(v *corev1.PersistentVolume, class *storagev1.StorageClass, pvc *corev1.PersistentVolumeClaim) (drivenVolume, bool) {
	switch {
	case v != nil && v.Spec.CSI != nil:
		return drivenVolume{driver: v.Spec.CSI.Driver, handle: v.Spec.CSI.VolumeHandle}, true
	case v == nil && class != nil && class.Provisioner != claim.Unprovisioned:
		return drivenVolume{driver: class.Provisioner, claim: api.KeyOf(pvc)}, true
	}
	return drivenVolume{}, false
}
