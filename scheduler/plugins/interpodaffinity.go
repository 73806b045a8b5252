package plugins

import "github.com/yare-dev/yare/scheduler/cluster"

// interPodAffinity is for required affinity and anti-affinity to pods, also for the anti-affinity that placed pods have to
// this one.
var interPodAffinity = Filter{
	Name:  "InterPodAffinity",
	Wakes: NodeAdded | NodeLabels | PodAdded | PodRemoved | NamespaceLabels,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		repelled := c.Repelled(p)
		if len(p.Affinity)+len(p.Anti)+len(repelled) == 0 {
			return nil, nil
		}
		a := &affinity{repelled: repelled}
		for i, t := range p.Affinity {
			// A pod counts for a term only if it matches all.
			terms := append([]*cluster.Term{t}, p.Affinity[:i]...)
			k := c.Counter(true, append(terms, p.Affinity[i+1:]...)...)
			a.near = append(a.near, k)
			a.exists = a.exists || k.Total > 0
		}
		for _, t := range p.Anti {
			a.far = append(a.far, c.Counter(true, t))
		}
		// The first of a group that wants to be together may be placed anywhere.
		a.first = len(p.Affinity) > 0 && !a.exists
		for _, t := range p.Affinity {
			a.first = a.first && c.Matches(t, p.Class)
		}
		return &Check{
			Pass: func(slot int) bool { return a.reason(slot) == "" },
			Why:  func(slot int) []string { return []string{a.reason(slot)} },
		}, nil
	},
}

type affinity struct {
	near, far     []*cluster.Counter
	repelled      []*cluster.Carriers
	exists, first bool
}

// reason says why the node cannot take the pod.
func (a *affinity) reason(slot int) string {
	for _, k := range a.near {
		d := k.Topology.Domain(slot)
		if d < 0 || (k.In(d) == 0 && !a.first) {
			return "node(s) didn't match pod affinity rules"
		}
	}
	for _, k := range a.far {
		if k.In(k.Topology.Domain(slot)) > 0 {
			return "node(s) didn't match pod anti-affinity rules"
		}
	}
	for _, k := range a.repelled {
		if k.In(k.Topology.Domain(slot)) > 0 {
			return "node(s) didn't satisfy existing pods anti-affinity rules"
		}
	}
	return ""
}

// interPodAffinityScore is for preferred affinity, of this pod to placed ones and the other way.
var interPodAffinityScore = Score{
	Name: "InterPodAffinity", Weight: 2, Scale: MinMax,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		attracted := c.Attracted(p)
		if len(p.Near)+len(attracted) == 0 {
			return nil
		}
		counters := make([]*cluster.Counter, len(p.Near))
		for i, w := range p.Near {
			counters[i] = c.Counter(true, w.Term)
		}
		return func(slot int) (sum int64) {
			for i, k := range counters {
				sum += int64(p.Near[i].Weight) * int64(k.In(k.Topology.Domain(slot)))
			}
			for _, k := range attracted {
				sum += int64(k.Weight) * int64(k.In(k.Topology.Domain(slot)))
			}
			return sum
		}
	},
}
