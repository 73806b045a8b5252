package plugins

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// space is where a driver has enough left for a claim. Nil: everywhere, as far as it says (KEP-1472).
type space struct{ nodes []labels.Selector }

// spaceFor asks what the driver of a class has left for the claim. Only drivers that say so with their CSIDriver's storageCapacity
// are held to it.
func spaceFor(c *cluster.Cluster, class *storagev1.StorageClass, pvc *corev1.PersistentVolumeClaim) *space {
	d := c.Drivers[class.Provisioner]
	want, asks := pvc.Spec.Resources.Requests[corev1.ResourceStorage]
	if d == nil || d.Spec.StorageCapacity == nil || !*d.Spec.StorageCapacity || !asks {
		return nil
	}
	s := &space{}
	for _, have := range c.Capacities[class.Name] {
		most := have.MaximumVolumeSize
		if most == nil {
			most = have.Capacity
		}
		if most == nil || most.Cmp(want) < 0 || have.NodeTopology == nil {
			continue
		}
		if sel, err := metav1.LabelSelectorAsSelector(have.NodeTopology); err == nil {
			s.nodes = append(s.nodes, sel)
		}
	}
	return s
}

func (s *space) on(n *corev1.Node) bool {
	if s == nil {
		return true
	}
	for _, sel := range s.nodes {
		if sel.Matches(labels.Set(n.Labels)) {
			return true
		}
	}
	return false
}
