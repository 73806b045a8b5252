package plugins

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// volumeRestrictions keeps a volume that one pod alone may use (ReadWriteOncePod, KEP-2485) from a second pod, wherever that would be:
// it waits for the first one's end, or drives it away when it is more important. Claims that are missing are volumes' to tell.
var volumeRestrictions = Filter{
	Name:  "VolumeRestrictions",
	Wakes: NodeAdded | PodRemoved | Volumes,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		for i := range p.Spec.Volumes {
			key := api.Key{Namespace: p.Namespace, Name: claim.Name(p.Pod, &p.Spec.Volumes[i])}
			pvc := c.Claims[key]
			if pvc != nil && slices.Contains(pvc.Spec.AccessModes, corev1.ReadWriteOncePod) && c.Claimed[key] > 0 {
				return &Check{
					Pass: func(int) bool { return false },
					Why:  because("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"),
				}, nil
			}
		}
		return nil, nil
	},
}
