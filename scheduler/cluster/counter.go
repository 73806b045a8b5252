package cluster

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// nowhere is the domain of a node without the topology key.
const nowhere = -1

// Topology numbers the values of one topology key. The number of a value that no node has any more is given to the next new one:
// names of nodes are such values.
type Topology struct {
	key    string
	ids    map[string]int32
	values []string // by domain
	free   []int32  // domains without nodes
	of     []int32  // domain by slot
	counts []int32  // nodes by domain
	live   int      // domains with nodes
}

// place notes a node's domain. Precondition: the node's pods are detached, so that nothing counts in a domain that it was the
// last of.
func (t *Topology) place(slot int, set map[string]string) {
	if was := t.of[slot]; was != nowhere {
		if t.counts[was]--; t.counts[was] == 0 {
			t.live--
			delete(t.ids, t.values[was])
			t.values[was] = ""
			t.free = append(t.free, was)
		}
	}
	t.of[slot] = nowhere
	if value, ok := set[t.key]; ok {
		id, known := t.ids[value]
		if n := len(t.free); !known && n > 0 {
			id, t.free = t.free[n-1], t.free[:n-1]
		} else if !known {
			id = int32(len(t.counts))
			t.counts, t.values = append(t.counts, 0), append(t.values, "")
		}
		t.ids[value], t.values[id] = id, value
		t.of[slot] = id
		if t.counts[id]++; t.counts[id] == 1 {
			t.live++
		}
	}
}

// Domain returns a node's domain; negative where the node lacks the key.
func (t *Topology) Domain(slot int) int32 { return t.of[slot] }

// Len is the most domains that there were at a time. Those without nodes have no Nodes.
func (t *Topology) Len() int { return len(t.counts) }

// Live is the number of domains with nodes.
func (t *Topology) Live() int { return t.live }

// Nodes returns the number of nodes in a domain.
func (t *Topology) Nodes(domain int32) int32 { return t.counts[domain] }

// Topology returns the domains of a key, which are kept while something is counted by them.
func (c *Cluster) Topology(key string) *Topology {
	t := c.topologies[key]
	if t == nil {
		t = &Topology{key: key, ids: map[string]int32{}, of: make([]int32, len(c.Nodes))}
		for slot, n := range c.Nodes {
			t.of[slot] = nowhere
			if n != nil {
				t.place(slot, n.Labels)
			}
		}
		c.topologies[key] = t
	}
	return t
}

// Counter counts pods that match, by slot and by domain. It is kept up to date from its first use on.
type Counter struct {
	Node     []int32
	Domain   []int32 // may be shorter than the Topology
	Total    int64   // on nodes that have the key
	Topology *Topology

	matches func(*Pod) bool
	known   map[*Class]bool // what matches remembers
	used    uint64
}

func (k *Counter) add(slot int, n int32) {
	k.Node[slot] += n
	if d := k.Topology.of[slot]; d != nowhere {
		for int(d) >= len(k.Domain) {
			k.Domain = append(k.Domain, 0)
		}
		k.Domain[d] += n
		k.Total += int64(n)
	}
}

// In returns the count of a domain.
func (k *Counter) In(domain int32) int32 {
	if domain < 0 || int(domain) >= len(k.Domain) {
		return 0
	}
	return k.Domain[domain]
}

// Counter returns the count of pods that all of terms select, by the topology key of the first. Terminating says
// whether pods that are being deleted count.
func (c *Cluster) Counter(terminating bool, terms ...*Term) *Counter {
	id := "l"
	if terminating {
		id = "t"
	}
	for _, t := range terms {
		id += t.id + "\x01"
	}
	if k := c.counters[id]; k != nil {
		return c.use(k)
	}
	known := map[*Class]bool{}
	return c.count(id, terms[0].Key, known, func(p *Pod) bool {
		if !terminating && p.DeletionTimestamp != nil {
			return false
		}
		m, ok := known[p.Class]
		if !ok {
			m = !slices.ContainsFunc(terms, func(t *Term) bool { return !c.Matches(t, p.Class) })
			known[p.Class] = m
		}
		return m
	})
}

// Siblings returns the count of pods with this controller.
func (c *Cluster) Siblings(owner types.UID, key string) *Counter {
	id := "o" + string(owner) + "\x00" + key
	if k := c.counters[id]; k != nil {
		return c.use(k)
	}
	return c.count(id, key, nil, func(p *Pod) bool { return p.Owner == owner && p.DeletionTimestamp == nil })
}

func (c *Cluster) use(k *Counter) *Counter {
	c.clock++
	k.used = c.clock
	return k
}

// maxCounters bounds what each placed pod is compared with.
const maxCounters = 1024

func (c *Cluster) count(id, key string, known map[*Class]bool, matches func(*Pod) bool) *Counter {
	if len(c.counters) >= maxCounters {
		c.dropCounters()
	}
	k := &Counter{Node: make([]int32, len(c.Nodes)), Topology: c.Topology(key), matches: matches, known: known}
	for node, pods := range c.onNode {
		if slot, ok := c.slots[node]; ok {
			for _, p := range pods {
				if matches(p) {
					k.add(slot, 1)
				}
			}
		}
	}
	c.counters[id] = k
	return c.use(k)
}

// dropCounters forgets the half that was not used for longest.
func (c *Cluster) dropCounters() {
	uses := make([]uint64, 0, len(c.counters))
	for _, k := range c.counters {
		uses = append(uses, k.used)
	}
	slices.Sort(uses)
	for id, k := range c.counters {
		if k.used < uses[len(uses)/2] {
			delete(c.counters, id)
		}
	}
	c.dropTopologies()
}

// dropTopologies forgets those by which nothing is counted.
func (c *Cluster) dropTopologies() {
	needed := map[*Topology]bool{}
	for _, k := range c.counters {
		needed[k.Topology] = true
	}
	for _, k := range c.carriers {
		needed[k.Topology] = true
	}
	maps.DeleteFunc(c.topologies, func(_ string, t *Topology) bool { return !needed[t] })
}

// Carriers are the pods that carry one term, by domain.
type Carriers struct {
	Topology *Topology
	Weight   int32 // of a preferred term
	term     *Term
	role     role
	domain   []int32
	total    int64
	matches  map[*Class]bool
}

func (k *Carriers) add(slot int, n int32) {
	if d := k.Topology.of[slot]; d != nowhere {
		for int(d) >= len(k.domain) {
			k.domain = append(k.domain, 0)
		}
		k.domain[d] += n
	}
	k.total += int64(n)
}

// In returns how many carriers are in a domain.
func (k *Carriers) In(domain int32) int32 {
	if domain < 0 || int(domain) >= len(k.domain) {
		return 0
	}
	return k.domain[domain]
}

func (c *Cluster) carriersOf(t carried) *Carriers {
	id := string(rune(t.role)) + string(rune(t.weight+200)) + t.id
	k := c.carriers[id]
	if k == nil {
		k = &Carriers{Topology: c.Topology(t.Key), Weight: t.weight, term: t.Term, role: t.role, matches: map[*Class]bool{}}
		c.carriers[id] = k
	}
	return k
}

// carriersFor returns the carriers of terms in some role that select p.
func (c *Cluster) carriersFor(p *Pod, r role) []*Carriers {
	var out []*Carriers
	for id, k := range c.carriers {
		if k.total == 0 {
			delete(c.carriers, id)
			continue
		}
		if k.role != r {
			continue
		}
		m, ok := k.matches[p.Class]
		if !ok {
			m = c.Matches(k.term, p.Class)
			k.matches[p.Class] = m
		}
		if m {
			out = append(out, k)
		}
	}
	return out
}

// Repelled returns the carriers of anti-affinity terms that p must not be near.
func (c *Cluster) Repelled(p *Pod) []*Carriers { return c.carriersFor(p, roleAnti) }

// Attracted returns the carriers of preferred terms that select p, and those of required ones, which would have p near as
// well.
func (c *Cluster) Attracted(p *Pod) []*Carriers {
	return append(c.carriersFor(p, rolePrefers), c.carriersFor(p, roleAffinity)...)
}

func newMilli(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }
func newBytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
