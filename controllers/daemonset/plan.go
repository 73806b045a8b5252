package daemonset

import (
	"cmp"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/reconcile"
)

// fleet is a DaemonSet, the Nodes and its pods.
type fleet struct {
	set   *appsv1.DaemonSet
	hash  string // of the present template
	now   time.Time
	nodes []*corev1.Node
	pods  map[string][]*corev1.Pod // by target, oldest first
	runs  map[string]bool          // whether a pod shall run on the Node
	stays map[string]bool          // whether one that runs may stay
}

// plan is what to do.
type plan struct {
	create []string // Nodes
	remove []*corev1.Pod
	failed []*corev1.Pod // ended: to be removed, not too often
}

func look(ds *appsv1.DaemonSet, hash string, nodes []*corev1.Node, pods []*corev1.Pod, now time.Time) *fleet {
	f := &fleet{set: ds, hash: hash, now: now, nodes: nodes, pods: map[string][]*corev1.Pod{}, runs: map[string]bool{}, stays: map[string]bool{}}
	for _, p := range pods {
		f.pods[target(p)] = append(f.pods[target(p)], p)
	}
	for _, ps := range f.pods {
		slices.SortStableFunc(ps, func(a, b *corev1.Pod) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
	}
	// The affinity as the user wrote it; a pod's own names its Node only.
	model := &corev1.Pod{Spec: ds.Spec.Template.Spec}
	affinity := nodeaffinity.GetRequiredNodeAffinity(model)
	tolerations := append(slices.Clone(ds.Spec.Template.Spec.Tolerations), automatic(&ds.Spec.Template.Spec)...)
	for _, n := range nodes {
		f.runs[n.Name], f.stays[n.Name] = belongs(ds, n, affinity, tolerations)
	}
	return f
}

// target returns the Node that p runs on or is meant for.
func target(p *corev1.Pod) string {
	if p.Spec.NodeName != "" || p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil ||
		p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return p.Spec.NodeName
	}
	for _, t := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, r := range t.MatchFields {
			if r.Key == metav1.ObjectNameField && r.Operator == corev1.NodeSelectorOpIn && len(r.Values) == 1 {
				return r.Values[0]
			}
		}
	}
	return ""
}

// belongs says whether a pod shall run on n and whether one that runs there may stay.
func belongs(ds *appsv1.DaemonSet, n *corev1.Node, a nodeaffinity.RequiredNodeAffinity, ts []corev1.Toleration) (runs, stays bool) {
	if name := ds.Spec.Template.Spec.NodeName; name != "" && name != n.Name {
		return false, false
	}
	if ok, err := a.Match(n); err != nil || !ok {
		return false, false
	}
	runs, stays = true, true
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || api.Tolerates(ts, t) {
			continue
		}
		runs = false
		if t.Effect == corev1.TaintEffectNoExecute {
			stays = false
		}
	}
	return runs, stays
}

// automatic returns the tolerations of every daemon pod: what is wrong with a Node is no reason to leave it.
func automatic(spec *corev1.PodSpec) []corev1.Toleration {
	out := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	}
	if spec.HostNetwork {
		out = append(out, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists,
			Effect: corev1.TaintEffectNoSchedule})
	}
	return out
}

func (f *fleet) isCurrent(p *corev1.Pod) bool {
	return p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == f.hash
}

func (f *fleet) available(p *corev1.Pod) bool {
	ok, _ := api.PodAvailable(p, time.Duration(f.set.Spec.MinReadySeconds)*time.Second, f.now)
	return ok && p.DeletionTimestamp == nil
}

// manage returns what brings one pod to each Node that shall have one, and none elsewhere.
func (f *fleet) manage() plan {
	var out plan
	surge, _ := f.limits()
	for _, n := range f.nodes {
		pods := f.pods[n.Name]
		switch {
		case f.runs[n.Name] && len(pods) == 0:
			out.create = append(out.create, n.Name)
		case f.stays[n.Name]:
			var running []*corev1.Pod
			for _, p := range pods {
				switch {
				case p.DeletionTimestamp != nil:
				case api.PodTerminal(p):
					out.failed = append(out.failed, p)
				default:
					running = append(running, p)
				}
			}
			out.remove = append(out.remove, f.doubles(running, surge > 0)...)
		default:
			for _, p := range pods {
				if p.DeletionTimestamp == nil {
					out.remove = append(out.remove, p)
				}
			}
		}
	}
	known := map[string]bool{}
	for _, n := range f.nodes {
		known[n.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(f.pods)) { // pods of Nodes that are gone and that no scheduler will place
		if known[name] {
			continue
		}
		for _, p := range f.pods[name] {
			if p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
				out.remove = append(out.remove, p)
			}
		}
	}
	return out
}

// doubles returns which of a Node's running pods are too many: all but the oldest or, with surge, all but the oldest
// current and the oldest old one, and that one as soon as the current one is available.
func (f *fleet) doubles(running []*corev1.Pod, surge bool) []*corev1.Pod {
	if len(running) < 2 {
		return nil
	}
	if !surge {
		return running[1:]
	}
	var out []*corev1.Pod
	var current, old *corev1.Pod
	for _, p := range running {
		switch {
		case f.isCurrent(p) && current == nil:
			current = p
		case !f.isCurrent(p) && old == nil:
			old = p
		default:
			out = append(out, p)
		}
	}
	if current != nil && old != nil && f.available(current) {
		out = append(out, old)
	}
	return out
}

// limits resolves maxSurge and maxUnavailable against the number of Nodes.
func (f *fleet) limits() (surge, unavailable int) {
	ru := f.set.Spec.UpdateStrategy.RollingUpdate
	if f.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || ru == nil {
		return 0, 0
	}
	desired := 0
	for _, n := range f.nodes {
		if f.runs[n.Name] {
			desired++
		}
	}
	value := func(v *intstr.IntOrString) int {
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(v, intstr.FromInt32(0)), desired, true)
		if err != nil { // validation lets none pass
			return 0
		}
		return n
	}
	surge, unavailable = value(ru.MaxSurge), value(ru.MaxUnavailable)
	if surge == 0 && unavailable == 0 && desired > 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// roll returns the next step of replacing old pods.
func (f *fleet) roll() plan {
	surge, unavailable := f.limits()
	if surge > 0 {
		return f.rollSurge(surge)
	}
	var out plan
	var candidates []*corev1.Pod
	down := 0
	for _, n := range f.nodes {
		if !f.runs[n.Name] {
			continue
		}
		current, old, ok := f.pair(n.Name)
		switch {
		case !ok || current == nil && old == nil:
			down++ // being mended
		case current != nil:
			if !f.available(current) {
				down++
			}
		case !f.available(old):
			down++
			if old.DeletionTimestamp == nil { // nobody misses it
				out.remove = append(out.remove, old)
			}
		default:
			candidates = append(candidates, old)
		}
	}
	out.remove = append(out.remove, candidates[:min(len(candidates), max(0, unavailable-down))]...)
	return out
}

// rollSurge starts current pods beside old ones. What manage does with pairs removes the old.
func (f *fleet) rollSurge(surge int) plan {
	var out plan
	var candidates []string
	for _, n := range f.nodes {
		if !f.runs[n.Name] {
			continue
		}
		current, old, ok := f.pair(n.Name)
		switch {
		case !ok || old == nil:
		case current == nil && !f.available(old):
			out.create = append(out.create, n.Name)
		case current == nil:
			candidates = append(candidates, n.Name)
		case !f.available(current):
			surge--
		}
	}
	out.create = append(out.create, candidates[:min(len(candidates), max(0, surge))]...)
	return out
}

// pair returns a Node's current and old pod; not ok when there are several of one sort.
func (f *fleet) pair(node string) (current, old *corev1.Pod, ok bool) {
	for _, p := range f.pods[node] {
		switch {
		case api.PodTerminal(p):
			return nil, nil, false
		case f.isCurrent(p):
			if current != nil {
				return nil, nil, false
			}
			current = p
		default:
			if old != nil {
				return nil, nil, false
			}
			old = p
		}
	}
	return current, old, true
}

// status returns the counts in s' place, and when a pod becomes available by waiting.
func (f *fleet) status(s appsv1.DaemonSetStatus) (appsv1.DaemonSetStatus, reconcile.Result) {
	var res reconcile.Result
	out := appsv1.DaemonSetStatus{ObservedGeneration: f.set.Generation, CollisionCount: s.CollisionCount, Conditions: s.Conditions}
	for _, n := range f.nodes {
		pods := f.pods[n.Name]
		if !f.runs[n.Name] {
			if len(pods) > 0 {
				out.NumberMisscheduled++
			}
			continue
		}
		out.DesiredNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		out.CurrentNumberScheduled++
		p := pods[0]
		for _, o := range pods[1:] { // of a surging pair, the current one counts when it is ready
			if f.isCurrent(o) && api.PodReady(o) {
				p = o
			}
		}
		if api.PodReady(p) {
			out.NumberReady++
			available, left := api.PodAvailable(p, time.Duration(f.set.Spec.MinReadySeconds)*time.Second, f.now)
			if available {
				out.NumberAvailable++
			}
			res = res.Sooner(left)
		}
		if f.isCurrent(p) {
			out.UpdatedNumberScheduled++
		}
	}
	out.NumberUnavailable = out.DesiredNumberScheduled - out.NumberAvailable
	return out, res
}
