package plugins

import (
	"fmt"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// volumes refuses pods with claims: no kubelet of this version mounts what these are bound to.
var volumes = Filter{
	Name: "VolumeBinding",
	Prepare: func(_ *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		const missing = "pods with claims are not supported by this release"
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			switch {
			case v.PersistentVolumeClaim != nil:
				return nil, fmt.Errorf("persistentvolumeclaim %q: %s", v.PersistentVolumeClaim.ClaimName, missing)
			case v.Ephemeral != nil:
				return nil, fmt.Errorf("ephemeral volume %q: %s", v.Name, missing)
			}
		}
		for i := range p.Spec.ResourceClaims {
			return nil, fmt.Errorf("resourceclaim %q: %s", p.Spec.ResourceClaims[i].Name, missing)
		}
		return nil, nil
	},
}
