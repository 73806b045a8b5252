package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux/diskusage"
)

// Usage is what a pod uses. Of the parts those are measured that a signal is about.
type Usage struct {
	Memory, PIDs int64 // the whole pod's: its working set in bytes, its processes
	Volumes      diskusage.Usage
	Containers   map[string]ContainerUsage
}

// ContainerUsage is what one container of it uses.
type ContainerUsage struct {
	Memory      int64
	Layer, Logs diskusage.Usage
}

// Parts of a pod that lie on a disk.
type Parts struct{ Layers, Logs, Volumes bool }

// Any reports whether there are some.
func (p Parts) Any() bool { return p.Layers || p.Logs || p.Volumes }

// Parts returns what of pods is on the signal's file system.
func (o *Observations) Parts(s Signal) Parts {
	switch s {
	case NodeFsAvailable, NodeFsInodesFree:
		return Parts{Layers: !o.OwnImages || !o.LayersWithImages, Logs: true, Volumes: true}
	case ImageFsAvailable, ImageFsInodesFree:
		return Parts{Layers: o.LayersWithImages}
	}
	return Parts{}
}

// Candidate is a pod that may be evicted. A nil Usage is not known.
type Candidate struct {
	Pod   *corev1.Pod
	Usage *Usage
}

// amount is what counts of a candidate's use for the signal.
func (c *Candidate) amount(s Signal, parts Parts) int64 {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return c.Usage.Memory
	case resourcePIDs:
		return c.Usage.PIDs
	}
	var sum diskusage.Usage
	add := func(u diskusage.Usage, counts bool) {
		if counts {
			sum.Bytes, sum.Inodes = sum.Bytes+u.Bytes, sum.Inodes+u.Inodes
		}
	}
	add(c.Usage.Volumes, parts.Volumes)
	for _, one := range c.Usage.Containers {
		add(one.Layer, parts.Layers)
		add(one.Logs, parts.Logs)
	}
	if s.Resource() == resourceInodes {
		return sum.Inodes
	}
	return sum.Bytes
}

// requested is what the pod asked for of what the signal counts.
func requested(p *corev1.Pod, s Signal) int64 {
	q := resources.Requests(p)[s.Resource()]
	return q.Value()
}

// Rank orders the candidates, who goes first for a lack of the signal being the first: who is not measured, who uses more than it requested, the
// lower priority, who uses the most beyond its request. Nobody requests process ids, so there it is priority, then how many.
func Rank(s Signal, parts Parts, all []Candidate) {
	type weight struct {
		unknown, exceeds bool
		priority         int32
		beyond           int64
	}
	weights := map[*corev1.Pod]weight{}
	for i := range all {
		c := &all[i]
		w := weight{unknown: c.Usage == nil}
		if p := c.Pod.Spec.Priority; p != nil {
			w.priority = *p
		}
		if c.Usage != nil {
			w.beyond = c.amount(s, parts) - requested(c.Pod, s)
			w.exceeds = w.beyond > 0
		}
		if s == PIDAvailable {
			w.exceeds = false
		}
		weights[c.Pod] = w
	}
	first := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b Candidate) int {
		x, y := weights[a.Pod], weights[b.Pod]
		if s == PIDAvailable {
			return cmp.Or(cmp.Compare(x.priority, y.priority), first(x.unknown, y.unknown), cmp.Compare(y.beyond, x.beyond))
		}
		return cmp.Or(first(x.unknown, y.unknown), first(x.exceeds, y.exceeds), cmp.Compare(x.priority, y.priority), cmp.Compare(y.beyond, x.beyond))
	})
}

// Message says, in upstream's words, why the candidate is evicted, for people and as annotations of the Event.
func Message(t *Threshold, o *Observations, c *Candidate) (text string, annotations map[string]string) {
	lack := t.Signal.Resource()
	text = fmt.Sprintf("The node was low on resource: %s. ", lack)
	if seen, ok := o.Of[t.Signal]; ok {
		least := t.Value.of(seen.Capacity)
		text += fmt.Sprintf("Threshold quantity: %s, available: %s. ", least.String(), t.Signal.quantity(seen.Available).String())
	}
	annotations = map[string]string{}
	if c.Usage == nil {
		return text, annotations
	}
	if whole := c.Pod.Spec.Resources; whole != nil && lack == corev1.ResourceMemory {
		if request, ok := whole.Requests[lack]; ok && request.CmpInt64(c.Usage.Memory) < 0 {
			shown := resource.NewQuantity(c.Usage.Memory, resource.BinarySI).String()
			text += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %s. ", c.Pod.Name, shown, request.String(), lack)
			annotations["offending_pod"], annotations["offending_pod_usage"] = c.Pod.Name, shown
		}
	}
	var names, uses []string
	spec.Each(c.Pod, func(of *corev1.Container, _ spec.Kind) {
		used, ok := c.Usage.Containers[of.Name]
		var n int64
		switch lack {
		case corev1.ResourceMemory:
			n = used.Memory
		case corev1.ResourceEphemeralStorage:
			n = used.Layer.Bytes + used.Logs.Bytes
		default:
			return
		}
		request := of.Resources.Requests[lack]
		if !ok || request.CmpInt64(n) >= 0 {
			return
		}
		shown := resource.NewQuantity(n, resource.BinarySI).String()
		text += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %s. ", of.Name, shown, request.String(), lack)
		names, uses = append(names, of.Name), append(uses, shown)
	})
	annotations["offending_containers"] = strings.Join(names, ",")
	annotations["offending_containers_usage"] = strings.Join(uses, ",")
	annotations["starved_resource"] = string(lack)
	return text, annotations
}
