package plugins

import (
	"math"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// nodeResourcesFit sees to it that no node is asked for more than it offers. Extended resources that a class of devices serves there are not its business.
var nodeResourcesFit = Filter{
	Name:  "NodeResourcesFit",
	Local: true,
	Wakes: NodeAdded | NodeResources | PodRemoved | Classes,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		return &Check{
			Pass: func(slot int) bool {
				if c.Used[cluster.Pods][slot] >= c.Alloc[cluster.Pods][slot] {
					return false
				}
				for _, r := range p.Requests {
					if !fits(c, r, slot) {
						return false
					}
				}
				return true
			},
			Why: func(slot int) (reasons []string) {
				if c.Used[cluster.Pods][slot] >= c.Alloc[cluster.Pods][slot] {
					reasons = append(reasons, "Too many pods")
				}
				for _, r := range p.Requests {
					if !fits(c, r, slot) {
						reasons = append(reasons, "Insufficient "+string(r.Name))
					}
				}
				return reasons
			},
		}, nil
	},
}

func fits(c *cluster.Cluster, r cluster.Request, slot int) bool {
	if r.Column < 0 {
		return false // nobody offers it
	}
	return r.Amount <= c.Alloc[r.Column][slot]-c.Used[r.Column][slot] || c.ByClass(r.Column, slot)
}

// leastAllocated prefers nodes with much CPU and memory left, counting a little for containers that ask for nothing.
var leastAllocated = Score{
	Name: "NodeResourcesFit", Weight: 1, Local: true,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		return func(slot int) int64 {
			var sum, n int64
			for i, load := range c.Loaded {
				alloc := c.Alloc[i][slot]
				if alloc == 0 {
					continue
				}
				n++
				if left := alloc - load[slot] - p.Load[i]; left > 0 {
					sum += Max * left / alloc
				}
			}
			if n == 0 {
				return 0
			}
			return sum / n
		}
	},
}

// balancedAllocation prefers nodes of which the pod would leave CPU and memory used to similar fractions.
var balancedAllocation = Score{
	Name: "NodeResourcesBalancedAllocation", Weight: 1, Local: true,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		var ask [2]int64
		for _, r := range p.Requests {
			if r.Column >= 0 && r.Column < len(ask) {
				ask[r.Column] = r.Amount
			}
		}
		if ask == ([2]int64{}) {
			return nil // a pod without requests changes no balance
		}
		return func(slot int) int64 {
			var f [2]float64
			for i := range f {
				if alloc := c.Alloc[i][slot]; alloc > 0 {
					f[i] = min(1, float64(c.Used[i][slot]+ask[i])/float64(alloc))
				}
			}
			return int64((1 - math.Abs(f[0]-f[1])/2) * Max)
		}
	},
}
