package plugins

import (
	"fmt"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// volumes refuses pods that need what no node can give: claims do not exist in this version.
var volumes = Filter{
	Name: "VolumeBinding",
	Prepare: func(_ *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			switch {
			case v.PersistentVolumeClaim != nil:
				return nil, fmt.Errorf("persistentvolumeclaim %q not found", v.PersistentVolumeClaim.ClaimName)
			case v.Ephemeral != nil:
				return nil, fmt.Errorf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", p.Name+"-"+v.Name)
			}
		}
		for i := range p.Spec.ResourceClaims {
			return nil, fmt.Errorf("resourceclaim %q not found", p.Spec.ResourceClaims[i].Name)
		}
		return nil, nil
	},
}
