package plugins

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// zoneLabels are those by which a volume says where it is, with the one that nodes have in place of it.
var zoneLabels = [...][2]string{
	{corev1.LabelTopologyZone, corev1.LabelTopologyZone},
	{corev1.LabelTopologyRegion, corev1.LabelTopologyRegion},
	{corev1.LabelFailureDomainBetaZone, corev1.LabelTopologyZone},
	{corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyRegion},
}

// zone is where a volume can be used: nodes with one of these values.
type zone struct {
	label, instead string
	values         []string
}

// volumeZone keeps pods in the zones and regions that the labels of their volumes name. Nodes that name none are everywhere.
var volumeZone = Filter{
	Name:  "VolumeZone",
	Wakes: NodeAdded | NodeLabels | Volumes,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		var zones []zone
		for i := range p.Spec.Volumes {
			pvc := c.Claims[api.Key{Namespace: p.Namespace, Name: claim.Name(p.Pod, &p.Spec.Volumes[i])}]
			if pvc == nil {
				continue
			}
			if v := c.Volumes[pvc.Spec.VolumeName]; v != nil {
				zones = append(zones, zonesOf(v)...)
			}
		}
		if len(zones) == 0 {
			return nil, nil
		}
		return &Check{
			Pass: func(slot int) bool { return within(c.Nodes[slot], zones) },
			Why:  because("node(s) had no available volume zone"),
		}, nil
	},
}

// zonesOf reads a volume's labels. Several zones are parted by "__".
func zonesOf(v *corev1.PersistentVolume) (zones []zone) {
	for _, l := range zoneLabels {
		if values, ok := v.Labels[l[0]]; ok {
			zones = append(zones, zone{l[0], l[1], strings.Split(values, "__")})
		}
	}
	return zones
}

func within(n *corev1.Node, zones []zone) bool {
	if !slices.ContainsFunc(zoneLabels[:], func(l [2]string) bool { _, ok := n.Labels[l[0]]; return ok }) {
		return true
	}
	for _, z := range zones {
		value, ok := n.Labels[z.label]
		if !ok {
			value, ok = n.Labels[z.instead]
		}
		if !ok || !slices.Contains(z.values, value) {
			return false
		}
	}
	return true
}
