package plugins

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// nodeUnschedulable keeps pods off cordoned nodes.
var nodeUnschedulable = Filter{
	Name:  "NodeUnschedulable",
	Local: true,
	Wakes: NodeAdded | NodeTaints,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		taint := &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
		if api.Tolerates(p.Spec.Tolerations, taint) {
			return nil, nil
		}
		return &Check{
			Pass: func(slot int) bool { return !c.Nodes[slot].Spec.Unschedulable },
			Why:  because("node(s) were unschedulable"),
		}, nil
	},
}
