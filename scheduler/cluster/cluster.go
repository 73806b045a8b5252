// Package cluster is what the scheduler knows of nodes and of the pods on them, in columns: a node is a small number, and
// each fact is an array over nodes. It replaces upstream's scheduler cache and snapshot.
//
// Vocabulary: a slot is a node's number, used again when the node is gone. A domain is the set of nodes that share a
// topology key's value, numbered per key. A Counter counts pods that match something, by node and by domain. Carriers are
// pods that have the same affinity term themselves.
//
// Invariants: everything is kept up to date by SetNode, RemoveNode, SetPod and RemovePod; nothing is recomputed for a
// placement. Nothing here reads a clock or blocks. A Cluster belongs to one goroutine.
package cluster

import (
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Columns of Alloc and Used that always exist. Extended resources get further ones.
const (
	CPU = iota // in thousandths
	Memory
	Storage // ephemeral-storage
	Pods
	fixed
)

// What a container that asks for nothing is taken to use when nodes are compared.
const (
	DefaultCPU    = 100
	DefaultMemory = 200 << 20
)

// Cluster is the state. Its exported fields are for reading.
type Cluster struct {
	// Nodes by slot; nil where the slot is free.
	Nodes []*corev1.Node
	// Count is the number of nodes.
	Count int
	// Reluctant is the number of nodes with a taint of effect PreferNoSchedule.
	Reluctant int
	// Alloc and Used are what nodes offer and what pods ask for, by resource and slot.
	Alloc, Used [][]int64
	// Loaded is Used with the defaults above for containers that ask for nothing: CPU and memory, by slot.
	Loaded [2][]int64
	// Ports are host ports in use, by slot.
	Ports []map[Port]int
	// ImageSize are the images that a node has, by slot and name; ImageNodes is on how many nodes an image is.
	ImageSize  []map[string]int64
	ImageNodes map[string]int
	// Changed counts changes of a node or of the pods on it, by slot.
	Changed []uint64
	// Persistent is kept by the scheduler, but for Claimed.
	Persistent
	// Devices and the claims for them.
	Devices Devices

	slots     map[string]int // by node name
	free      []int
	resources map[corev1.ResourceName]int
	names     []corev1.ResourceName

	pods       map[types.UID]*Pod
	onNode     map[string]map[types.UID]*Pod // also of nodes that are not known
	classes    map[string]*Class
	namespaces map[string]labels.Set

	topologies map[string]*Topology
	counters   map[string]*Counter
	carriers   map[string]*Carriers
	clock      uint64 // counts uses of counters
}

// New returns an empty Cluster.
func New() *Cluster {
	c := &Cluster{
		ImageNodes: map[string]int{},
		Persistent: newPersistent(),
		Devices:    newDevices(),
		slots:      map[string]int{},
		resources:  map[corev1.ResourceName]int{},
		pods:       map[types.UID]*Pod{},
		onNode:     map[string]map[types.UID]*Pod{},
		classes:    map[string]*Class{},
		namespaces: map[string]labels.Set{},
		topologies: map[string]*Topology{},
		counters:   map[string]*Counter{},
		carriers:   map[string]*Carriers{},
	}
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourcePods} {
		c.resource(n)
	}
	return c
}

// resource gives a resource a column. It is for those that are to be had: pods can ask for any name.
func (c *Cluster) resource(name corev1.ResourceName) {
	if _, ok := c.resources[name]; ok {
		return
	}
	column := len(c.names)
	c.resources[name] = column
	c.names = append(c.names, name)
	c.Alloc = append(c.Alloc, make([]int64, len(c.Nodes)))
	c.Used = append(c.Used, make([]int64, len(c.Nodes)))
	for _, p := range c.pods { // those that were placed before anybody offered it
		for i := range p.Requests {
			if r := &p.Requests[i]; r.Name == name {
				r.Column = column
				if slot, ok := c.slots[p.node]; ok {
					c.Used[column][slot] += r.Amount
				}
			}
		}
	}
}

// Resource returns the name of a column.
func (c *Cluster) Resource(column int) corev1.ResourceName { return c.names[column] }

// Slot returns a node's slot.
func (c *Cluster) Slot(name string) (int, bool) {
	s, ok := c.slots[name]
	return s, ok
}

func amount(name corev1.ResourceName, list corev1.ResourceList) int64 {
	q := list[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// SetNode adds or replaces a node.
func (c *Cluster) SetNode(n *corev1.Node) {
	for name := range n.Status.Allocatable {
		c.resource(name)
	}
	slot, known := c.slots[n.Name]
	if known && maps.Equal(c.Nodes[slot].Labels, n.Labels) {
		c.describe(slot, n)
		return
	}
	if known {
		c.detachAll(n.Name, slot)
	} else {
		slot = c.slot()
		c.slots[n.Name] = slot
		c.Count++
	}
	c.describe(slot, n)
	for _, t := range c.topologies {
		t.place(slot, n.Labels)
	}
	for _, p := range c.onNode[n.Name] {
		c.attach(p, slot)
	}
}

// slot returns a free slot.
func (c *Cluster) slot() int {
	if n := len(c.free); n > 0 {
		slot := c.free[n-1]
		c.free = c.free[:n-1]
		return slot
	}
	c.Nodes = append(c.Nodes, nil)
	c.Ports = append(c.Ports, nil)
	c.ImageSize = append(c.ImageSize, nil)
	c.Changed = append(c.Changed, 0)
	for i := range c.Loaded {
		c.Loaded[i] = append(c.Loaded[i], 0)
	}
	for i := range c.names {
		c.Alloc[i] = append(c.Alloc[i], 0)
		c.Used[i] = append(c.Used[i], 0)
	}
	for _, t := range c.topologies {
		t.of = append(t.of, nowhere)
	}
	for _, k := range c.counters {
		k.Node = append(k.Node, 0)
	}
	return len(c.Nodes) - 1
}

// describe takes over what a node says of itself.
func (c *Cluster) describe(slot int, n *corev1.Node) {
	c.forgetImages(slot)
	c.Reluctant += reluctant(n) - reluctant(c.Nodes[slot])
	c.Nodes[slot] = n
	c.Changed[slot]++
	for i, name := range c.names {
		c.Alloc[i][slot] = amount(name, n.Status.Allocatable)
	}
	images := make(map[string]int64, len(n.Status.Images))
	for _, img := range n.Status.Images {
		for _, name := range img.Names {
			if _, twice := images[name]; !twice {
				c.ImageNodes[name]++
			}
			images[name] = img.SizeBytes
		}
	}
	c.ImageSize[slot] = images
}

// reluctant is 1 for a node that would rather not have some pods.
func reluctant(n *corev1.Node) int {
	if n != nil && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectPreferNoSchedule }) {
		return 1
	}
	return 0
}

func (c *Cluster) forgetImages(slot int) {
	for name := range c.ImageSize[slot] {
		if c.ImageNodes[name]--; c.ImageNodes[name] == 0 {
			delete(c.ImageNodes, name)
		}
	}
	c.ImageSize[slot] = nil
}

// RemoveNode forgets a node. Its pods are remembered until they are removed, in case it comes back.
func (c *Cluster) RemoveNode(name string) {
	slot, ok := c.slots[name]
	if !ok {
		return
	}
	c.detachAll(name, slot)
	c.forgetImages(slot)
	for _, t := range c.topologies {
		t.place(slot, nil)
	}
	for i := range c.names {
		c.Alloc[i][slot] = 0
	}
	c.Reluctant -= reluctant(c.Nodes[slot])
	c.Nodes[slot], c.Ports[slot] = nil, nil
	c.Changed[slot]++
	c.Count--
	delete(c.slots, name)
	c.free = append(c.free, slot)
}

func (c *Cluster) detachAll(node string, slot int) {
	for _, p := range c.onNode[node] {
		c.detach(p, slot)
	}
}

// SetNamespace takes over a namespace's labels, which affinity terms may select by.
func (c *Cluster) SetNamespace(name string, set labels.Set) {
	if old, ok := c.namespaces[name]; ok && maps.Equal(old, set) {
		return
	}
	c.namespaces[name] = set
	c.forgetMatches()
}

// RemoveNamespace forgets a namespace's labels.
func (c *Cluster) RemoveNamespace(name string) {
	delete(c.namespaces, name)
	c.forgetMatches()
}

// forgetMatches drops everything that depends on which labels a namespace has.
func (c *Cluster) forgetMatches() {
	clear(c.counters)
	for _, k := range c.carriers {
		clear(k.matches)
	}
	c.dropTopologies()
}

// SetPod adds or replaces a pod that is on a node, or is assumed to be.
func (c *Cluster) SetPod(p *Pod, node string) {
	c.RemovePod(p.UID)
	p.node = node
	c.pods[p.UID] = p
	on := c.onNode[node]
	if on == nil {
		on = map[types.UID]*Pod{}
		c.onNode[node] = on
	}
	on[p.UID] = p
	c.claimed(p, 1)
	if slot, ok := c.slots[node]; ok {
		c.attach(p, slot)
	}
}

// RemovePod forgets a pod, and says whether it was known.
func (c *Cluster) RemovePod(uid types.UID) bool {
	p, ok := c.pods[uid]
	if !ok {
		return false
	}
	delete(c.pods, uid)
	c.claimed(p, -1)
	on := c.onNode[p.node]
	if delete(on, uid); len(on) == 0 {
		delete(c.onNode, p.node)
	}
	if slot, ok := c.slots[p.node]; ok {
		c.detach(p, slot)
	}
	return true
}

// Placed returns a pod that was set, nil when there is none of this UID.
func (c *Cluster) Placed(uid types.UID) *Pod { return c.pods[uid] }

// On returns the pods that were set on the node, in no order.
func (c *Cluster) On(node string) iter.Seq2[types.UID, *Pod] { return maps.All(c.onNode[node]) }

// On returns the node that the pod was set on.
func (p *Pod) On() string { return p.node }

func (c *Cluster) attach(p *Pod, slot int) {
	c.charge(p, slot, 1)
	if len(p.Ports) > 0 && c.Ports[slot] == nil {
		c.Ports[slot] = map[Port]int{}
	}
	for _, port := range p.Ports {
		c.Ports[slot][port]++
	}
}

func (c *Cluster) detach(p *Pod, slot int) {
	c.charge(p, slot, -1)
	for _, port := range p.Ports {
		if c.Ports[slot][port]--; c.Ports[slot][port] == 0 {
			delete(c.Ports[slot], port)
		}
	}
}

// charge adds (sign 1) or takes back (-1) what a pod counts for on a node.
func (c *Cluster) charge(p *Pod, slot int, sign int64) {
	for _, r := range p.Requests {
		if r.Column >= 0 {
			c.Used[r.Column][slot] += sign * r.Amount
		}
	}
	c.Used[Pods][slot] += sign
	for i := range c.Loaded {
		c.Loaded[i][slot] += sign * p.Load[i]
	}
	c.Changed[slot]++
	for _, k := range c.counters {
		if k.matches(p) {
			k.add(slot, int32(sign))
		}
	}
	for _, t := range p.terms {
		c.carriersOf(t).add(slot, int32(sign))
	}
}
