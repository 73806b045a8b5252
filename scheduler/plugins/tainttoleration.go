package plugins

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// taintToleration keeps pods off nodes with taints that they do not tolerate.
var taintToleration = Filter{
	Name:  "TaintToleration",
	Local: true,
	Wakes: NodeAdded | NodeTaints,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		return &Check{
			Pass: func(slot int) bool { return tolerated(p, c.Nodes[slot]) },
			Why:  because("node(s) had untolerated taint(s)"),
		}, nil
	},
}

func tolerated(p *cluster.Pod, n *corev1.Node) bool {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !api.Tolerates(p.Spec.Tolerations, t) {
			return false
		}
	}
	return true
}

// taintTolerationScore prefers nodes with few taints of effect PreferNoSchedule that the pod does not tolerate.
var taintTolerationScore = Score{
	Name: "TaintToleration", Weight: 3, Scale: Down,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		if c.Reluctant == 0 {
			return nil
		}
		return func(slot int) int64 { return reluctance(p, c.Nodes[slot]) }
	},
}

func reluctance(p *cluster.Pod, n *corev1.Node) (count int64) {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !api.Tolerates(p.Spec.Tolerations, t) {
			count++
		}
	}
	return count
}
