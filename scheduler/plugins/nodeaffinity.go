package plugins

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// nodeAffinity is for nodeSelector and required node affinity.
var nodeAffinity = Filter{
	Name:  "NodeAffinity",
	Local: true,
	Wakes: NodeAdded | NodeLabels,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		match := wants(p)
		if match == nil {
			return nil, nil
		}
		return &Check{
			Pass: func(slot int) bool { return match(c.Nodes[slot]) },
			Why:  because("node(s) didn't match Pod's node affinity/selector"),
		}, nil
	},
}

// wants returns what the pod demands of a node's labels, nil for nothing.
func wants(p *cluster.Pod) func(*corev1.Node) bool {
	a := p.Spec.Affinity
	required := a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
	if len(p.Spec.NodeSelector) == 0 && !required {
		return nil
	}
	r := nodeaffinity.GetRequiredNodeAffinity(p.Pod)
	return func(n *corev1.Node) bool {
		ok, err := r.Match(n)
		return ok && err == nil
	}
}

// nodeAffinityScore is for preferred node affinity.
var nodeAffinityScore = Score{
	Name: "NodeAffinity", Weight: 2, Scale: Up,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		a := p.Spec.Affinity
		if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
			return nil
		}
		terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		if err != nil {
			return nil // a preference that cannot be read is none
		}
		return func(slot int) int64 { return terms.Score(c.Nodes[slot]) }
	},
}
