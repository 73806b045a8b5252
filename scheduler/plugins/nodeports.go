package plugins

import "github.com/yare-dev/yare/scheduler/cluster"

// nodePorts keeps host ports from being given twice.
var nodePorts = Filter{
	Name:  "NodePorts",
	Local: true,
	Wakes: NodeAdded | PodRemoved,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		if len(p.Ports) == 0 {
			return nil, nil
		}
		return &Check{
			Pass: func(slot int) bool { return !conflict(c.Ports[slot], p.Ports) },
			Why:  because("node(s) didn't have free ports for the requested pod ports"),
		}, nil
	},
}

const everywhere = "0.0.0.0"

// conflict says whether one of want is in use: on the same address, or on all.
func conflict(used map[cluster.Port]int, want []cluster.Port) bool {
	if len(used) == 0 {
		return false
	}
	for _, w := range want {
		if w.IP != everywhere {
			all := w
			all.IP = everywhere
			if used[w] > 0 || used[all] > 0 {
				return true
			}
			continue
		}
		for u := range used {
			if u.Number == w.Number && u.Protocol == w.Protocol {
				return true
			}
		}
	}
	return false
}
