// Package plugins are the rules by which the scheduler places pods, one file each: filters, which a node passes or not, and
// scores, by which the nodes that passed are compared. Names, weights, order and the reasons given are upstream's.
//
// All of it is pure: a plugin looks at a cluster.Cluster and a cluster.Pod, and is asked about nodes by slot. What it needs
// for a pod it works out once, in Prepare.
package plugins

import (
	"encoding/binary"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/scheduler/cluster"
)

// Change is what can happen in a cluster that may make room for a pod.
type Change uint16

// The changes.
const (
	NodeAdded     Change = 1 << iota
	NodeLabels           // a node's labels changed
	NodeTaints           // a node's taints or spec.unschedulable changed
	NodeResources        // a node offers something else
	PodAdded             // a pod was placed, or the labels of a placed one changed
	PodRemoved           // a placed pod is gone, or uses less
	NamespaceLabels
	Volumes     // a claim, a volume or a storage class came or changed
	Attachments // a volume was detached, or a node's drivers changed
	Capacities  // what a driver has left, or whether it says so
	Devices     // devices, their classes or taints came or changed, or devices became free
	Classes     // a class of devices came or changed
)

// Filter says which nodes can take a pod.
type Filter struct {
	Name string
	// Local says that the check looks at the node alone (and the pods on it), and at nothing of the pod that Signature
	// leaves out. Its outcome holds until Cluster.Changed.
	Local bool
	// Dear says that asking takes long: once enough nodes have passed, the others are not asked.
	Dear bool
	// Wakes are the changes after which a node that did not pass may.
	Wakes Change
	// Prepare returns the check for p, nil when p does not care. An error is a fault of p: it can be placed nowhere.
	Prepare func(c *cluster.Cluster, p *cluster.Pod) (*Check, error)
}

// Check judges nodes for one pod.
type Check struct {
	Pass func(slot int) bool
	// Why returns the reasons for which a node did not pass. It is asked only when no node passed.
	Why func(slot int) []string
}

// because returns a Why that always gives the same reason.
func because(reason string) func(int) []string {
	reasons := []string{reason}
	return func(int) []string { return reasons }
}

// Scale brings a plugin's ranks to 0..Max.
type Scale uint8

// The scales.
const (
	Plain   Scale = iota // they are already
	Up                   // the highest becomes Max, zero stays
	Down                 // zero becomes Max, the highest becomes zero
	MinMax               // the lowest becomes zero, the highest Max
	Reverse              // the lower the better, in proportion to the highest
)

// Max is the best score.
const Max = 100

// Score compares nodes.
type Score struct {
	Name   string
	Weight int64
	Scale  Scale
	Local  bool // as of a Filter; the scale is Plain
	// Prepare returns the ranking for p, nil when it makes no difference. Feasible are the slots that passed.
	Prepare func(c *cluster.Cluster, p *cluster.Pod, feasible []int) func(slot int) int64
}

// Filters in the order in which they are asked: the first that fails gives the reason.
func Filters() []Filter {
	return []Filter{
		nodeUnschedulable, taintToleration, nodeAffinity, nodePorts, nodeResourcesFit,
		volumeRestrictions, nodeVolumeLimits, volumes, volumeZone, podTopologySpread, interPodAffinity,
		dynamicResources,
	}
}

// Scores returns all scores.
func Scores() []Score {
	return []Score{
		taintTolerationScore, nodeAffinityScore, podTopologySpreadScore, interPodAffinityScore,
		leastAllocated, balancedAllocation, imageLocality, dynamicResourcesScore,
	}
}

// Apply turns ranks into scores.
func (s Scale) Apply(ranks []int64) {
	if s == Plain || len(ranks) == 0 {
		return
	}
	low, high := ranks[0], ranks[0]
	for _, r := range ranks {
		low, high = min(low, r), max(high, r)
	}
	// Ranks are few and often the same as the one before.
	last, score := low, s.one(low, low, high)
	for i, r := range ranks {
		if r != last {
			last, score = r, s.one(r, low, high)
		}
		ranks[i] = score
	}
}

func (s Scale) one(r, low, high int64) int64 {
	switch {
	case s == MinMax && high == low:
		return 0
	case s == MinMax:
		return Max * (r - low) / (high - low)
	case high == 0 && s == Up:
		return 0
	case high == 0:
		return Max
	case s == Up:
		return Max * r / high
	case s == Down:
		return Max - Max*r/high
	}
	return Max * (high + low - r) / high
}

// Signature returns what local plugins see of a pod. Pods of one template have the same.
func Signature(p *cluster.Pod) (string, error) {
	seen := corev1.PodSpec{NodeSelector: p.Spec.NodeSelector, Tolerations: p.Spec.Tolerations}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		seen.Affinity = &corev1.Affinity{NodeAffinity: a.NodeAffinity}
	}
	b, err := seen.Marshal()
	if err != nil {
		return "", fmt.Errorf("encode the pod's spec: %w", err)
	}
	for _, r := range p.Requests {
		b = binary.AppendVarint(binary.AppendVarint(b, int64(r.Column)), r.Amount)
	}
	b = binary.AppendVarint(append(b, 0xff), p.Load[0])
	b = binary.AppendVarint(b, p.Load[1])
	for _, port := range p.Ports {
		b = fmt.Append(b, port)
	}
	return string(b), nil
}
