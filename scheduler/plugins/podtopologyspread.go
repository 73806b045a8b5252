package plugins

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// spread is one constraint, counted.
type spread struct {
	counter *cluster.Counter
	counts  []int64 // pods by domain, on nodes that count
	exists  []bool  // domains that have nodes that count
	domains int64
	least   int64 // the smallest of counts
	skew    int64
	self    int64 // 1 when the pod itself will count
}

// podTopologySpread is for constraints with DoNotSchedule.
var podTopologySpread = Filter{
	Name:  "PodTopologySpread",
	Wakes: NodeAdded | NodeLabels | NodeTaints | PodAdded | PodRemoved,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		spreads, err := spreadsOf(c, p, corev1.DoNotSchedule)
		if err != nil || len(spreads) == 0 {
			return nil, err
		}
		reason := func(slot int) string {
			for _, s := range spreads {
				d := s.counter.Topology.Domain(slot)
				if d < 0 {
					return "node(s) didn't match pod topology spread constraints (missing required label)"
				}
				if s.counts[d]+s.self-s.least > s.skew {
					return "node(s) didn't match pod topology spread constraints"
				}
			}
			return ""
		}
		return &Check{
			Pass: func(slot int) bool { return reason(slot) == "" },
			Why:  func(slot int) []string { return []string{reason(slot)} },
		}, nil
	},
}

// spreadsOf counts the pod's constraints of one kind.
func spreadsOf(c *cluster.Cluster, p *cluster.Pod, action corev1.UnsatisfiableConstraintAction) ([]*spread, error) {
	var spreads []*spread
	var constraints []*corev1.TopologySpreadConstraint
	for i := range p.Spec.TopologySpreadConstraints {
		tc := &p.Spec.TopologySpreadConstraints[i]
		if tc.WhenUnsatisfiable != action {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(tc.LabelSelector)
		if err != nil {
			return nil, err
		}
		if sel, err = cluster.WithKeys(sel, tc.MatchLabelKeys, p.Labels, true); err != nil {
			return nil, err
		}
		s := &spread{skew: int64(tc.MaxSkew)}
		s.counter = c.Counter(false, cluster.SpreadTerm(tc.TopologyKey, sel, p.Namespace))
		if sel.Matches(p.Class.Labels) {
			s.self = 1
		}
		spreads, constraints = append(spreads, s), append(constraints, tc)
	}
	match := wants(p)
	for i, s := range spreads {
		tc := constraints[i]
		s.count(c, func(slot int) bool {
			for _, other := range spreads {
				if other.counter.Topology.Domain(slot) < 0 {
					return false
				}
			}
			n := c.Nodes[slot]
			ignoresAffinity := tc.NodeAffinityPolicy != nil && *tc.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore
			if match != nil && !ignoresAffinity && !match(n) {
				return false
			}
			honoursTaints := tc.NodeTaintsPolicy != nil && *tc.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor
			return !honoursTaints || (tolerated(p, n) && !n.Spec.Unschedulable)
		})
		if tc.MinDomains != nil && s.domains < int64(*tc.MinDomains) {
			s.least = 0
		}
	}
	return spreads, nil
}

// count adds up the pods on nodes that count.
func (s *spread) count(c *cluster.Cluster, counts func(slot int) bool) {
	t := s.counter.Topology
	s.counts, s.exists = make([]int64, t.Len()), make([]bool, t.Len())
	for slot, n := range c.Nodes {
		if n == nil {
			continue
		}
		if d := t.Domain(slot); d >= 0 && counts(slot) {
			s.counts[d] += int64(s.counter.Node[slot])
			s.exists[d] = true
		}
	}
	s.least = math.MaxInt64
	for d, n := range s.counts {
		if s.exists[d] {
			s.domains++
			s.least = min(s.least, n)
		}
	}
	if s.domains == 0 {
		s.least = 0
	}
}

// podTopologySpreadScore is for constraints with ScheduleAnyway. A pod without any constraints is spread over nodes and zones
// by the pods of its controller.
var podTopologySpreadScore = Score{
	Name: "PodTopologySpread", Weight: 2, Scale: Reverse,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, feasible []int) func(int) int64 {
		spreads, err := spreadsOf(c, p, corev1.ScheduleAnyway)
		if err != nil {
			return nil // a preference that cannot be read is none
		}
		if len(p.Spec.TopologySpreadConstraints) == 0 && p.Owner != "" {
			spreads = bySiblings(c, p)
		}
		if len(spreads) == 0 {
			return nil
		}
		// In 1/1024: a domain weighs the more, the more of them there are.
		weights := make([]int64, len(spreads))
		for i, s := range spreads {
			weights[i] = int64(1024 * math.Log(float64(s.reach(c, feasible))+2))
		}
		return func(slot int) int64 {
			var sum int64
			for i, s := range spreads {
				if d := s.counter.Topology.Domain(slot); d >= 0 {
					sum += s.in(d)*weights[i] + 1024*(s.skew-1)
				}
			}
			return (sum + 512) / 1024
		}
	},
}

// bySiblings are the constraints of a pod that has none of its own.
func bySiblings(c *cluster.Cluster, p *cluster.Pod) []*spread {
	var spreads []*spread
	for _, d := range []struct {
		key  string
		skew int64
	}{{corev1.LabelHostname, 3}, {corev1.LabelTopologyZone, 5}} {
		k := c.Siblings(p.Owner, d.key)
		if k.Total > 0 {
			spreads = append(spreads, &spread{counter: k, skew: d.skew})
		}
	}
	return spreads
}

// in returns the pods of a domain: of the nodes that count, where that was worked out, else of all.
func (s *spread) in(domain int32) int64 {
	if s.counts != nil {
		return s.counts[domain]
	}
	return int64(s.counter.In(domain))
}

// reach returns over how many domains the pod could be spread.
func (s *spread) reach(c *cluster.Cluster, feasible []int) int {
	t := s.counter.Topology
	if len(feasible) == c.Count {
		return t.Live()
	}
	seen := make([]bool, t.Len())
	n := 0
	for _, slot := range feasible {
		if d := t.Domain(slot); d >= 0 && !seen[d] {
			seen[d] = true
			n++
		}
	}
	return n
}
