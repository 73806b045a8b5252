package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// oracle judges placements the slow way: from the objects alone, with nothing kept in between.
type oracle struct {
	nodes  map[string]*corev1.Node
	placed map[types.UID]*corev1.Pod // with spec.nodeName
}

func (o *oracle) on(node string) (pods []*corev1.Pod) {
	for _, p := range o.placed {
		if p.Spec.NodeName == node {
			pods = append(pods, p)
		}
	}
	return pods
}

func selects(s *metav1.LabelSelector, p *corev1.Pod) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(p.Labels))
}

// feasible says whether n can take p.
func (o *oracle) feasible(p *corev1.Pod, n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !api.Tolerates(p.Spec.Tolerations, &t) {
			return false
		}
	}
	return !n.Spec.Unschedulable && labels.SelectorFromSet(p.Spec.NodeSelector).Matches(labels.Set(n.Labels)) &&
		o.roomy(p, n) && o.spreads(p, n) && o.friendly(p, n)
}

func (o *oracle) roomy(p *corev1.Pod, n *corev1.Node) bool {
	pods := append(o.on(n.Name), p)
	var cpu, memory int64
	ports := map[int32]bool{}
	for _, q := range pods {
		r := q.Spec.Containers[0].Resources.Requests
		cpu, memory = cpu+r.Cpu().MilliValue(), memory+r.Memory().Value()
		for _, port := range q.Spec.Containers[0].Ports {
			if ports[port.HostPort] {
				return false
			}
			ports[port.HostPort] = true
		}
	}
	a := n.Status.Allocatable
	mine := p.Spec.Containers[0].Resources.Requests
	return (mine.Cpu().IsZero() || cpu <= a.Cpu().MilliValue()) && (mine.Memory().IsZero() || memory <= a.Memory().Value()) &&
		int64(len(pods)) <= a.Pods().Value()
}

func (o *oracle) spreads(p *corev1.Pod, n *corev1.Node) bool {
	for _, tc := range p.Spec.TopologySpreadConstraints {
		if tc.WhenUnsatisfiable != corev1.DoNotSchedule {
			continue
		}
		counts := map[string]int{}
		for _, m := range o.nodes {
			if v, ok := m.Labels[tc.TopologyKey]; ok && labels.SelectorFromSet(p.Spec.NodeSelector).Matches(labels.Set(m.Labels)) {
				counts[v] += 0
				for _, q := range o.on(m.Name) {
					if selects(tc.LabelSelector, q) {
						counts[v]++
					}
				}
			}
		}
		least := 1 << 30
		for _, c := range counts {
			least = min(least, c)
		}
		mine, ok := n.Labels[tc.TopologyKey]
		self := 0
		if selects(tc.LabelSelector, p) {
			self = 1
		}
		if !ok || counts[mine]+self-least > int(tc.MaxSkew) {
			return false
		}
	}
	return true
}

// near says whether a placed pod that f accepts shares n's value of key, and whether there is any such pod.
func (o *oracle) near(n *corev1.Node, key string, f func(*corev1.Pod) bool) (here, any bool) {
	for _, q := range o.placed {
		m := o.nodes[q.Spec.NodeName]
		if m == nil || !f(q) {
			continue
		}
		theirs, ok := m.Labels[key]
		mine, have := n.Labels[key]
		any = any || ok
		here = here || (ok && have && theirs == mine)
	}
	return here, any
}

func (o *oracle) friendly(p *corev1.Pod, n *corev1.Node) bool {
	for _, q := range o.placed {
		if q.Spec.Affinity == nil || q.Spec.Affinity.PodAntiAffinity == nil {
			continue
		}
		for _, t := range q.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			if here, _ := o.near(n, t.TopologyKey, func(r *corev1.Pod) bool { return r == q }); here && selects(t.LabelSelector, p) {
				return false
			}
		}
	}
	if p.Spec.Affinity == nil {
		return true
	}
	if a := p.Spec.Affinity.PodAntiAffinity; a != nil {
		for _, t := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			if here, _ := o.near(n, t.TopologyKey, func(q *corev1.Pod) bool { return selects(t.LabelSelector, q) }); here {
				return false
			}
		}
	}
	if a := p.Spec.Affinity.PodAffinity; a != nil {
		all := func(q *corev1.Pod) bool {
			for _, t := range a.RequiredDuringSchedulingIgnoredDuringExecution {
				if !selects(t.LabelSelector, q) {
					return false
				}
			}
			return true
		}
		anywhere, satisfied := false, true
		for _, t := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			if _, ok := n.Labels[t.TopologyKey]; !ok {
				return false
			}
			here, any := o.near(n, t.TopologyKey, all)
			anywhere, satisfied = anywhere || any, satisfied && here
		}
		return satisfied || (!anywhere && all(p))
	}
	return true
}

// world makes random nodes and pods.
type world struct {
	*rand.Rand
	serial int
}

func (w *world) pick(s ...string) string { return s[w.IntN(len(s))] }

func (w *world) node(name string) *corev1.Node {
	return makeNode(name, func(n *corev1.Node) {
		if w.IntN(6) > 0 {
			n.Labels[corev1.LabelTopologyZone] = w.pick("a", "b", "c")
		}
		n.Labels["disk"] = w.pick("ssd", "hdd")
		n.Spec.Unschedulable = w.IntN(12) == 0
		if w.IntN(4) == 0 {
			n.Spec.Taints = []corev1.Taint{{Key: "team", Value: w.pick("red", "blue"), Effect: corev1.TaintEffectNoSchedule}}
		}
		n.Status.Allocatable[corev1.ResourcePods] = *newCount(w.IntN(8) + 2)
	})
}

func (w *world) pod() *corev1.Pod {
	w.serial++
	return makePod(fmt.Sprint("p", w.serial), requests(w.pick("0", "100m", "1", "2"), w.pick("0", "100Mi", "3Gi")), func(p *corev1.Pod) {
		p.UID = types.UID(p.Name)
		p.Labels = map[string]string{"app": w.pick("x", "y", "z"), "tier": w.pick("front", "back")}
		if w.IntN(3) == 0 {
			p.Spec.NodeSelector = map[string]string{"disk": w.pick("ssd", "hdd")}
		}
		if w.IntN(3) == 0 {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOpEqual, Value: w.pick("red", "blue")}}
		}
		if w.IntN(5) == 0 {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: int32(8000 + w.IntN(2)), Protocol: corev1.ProtocolTCP}}
		}
		if w.IntN(3) == 0 {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
				MaxSkew: int32(1 + w.IntN(2)), TopologyKey: w.key(), LabelSelector: w.selector(),
				WhenUnsatisfiable: corev1.UnsatisfiableConstraintAction(w.pick(string(corev1.DoNotSchedule), string(corev1.ScheduleAnyway))),
			}}
		}
		p.Spec.Affinity = &corev1.Affinity{}
		if w.IntN(4) == 0 {
			p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: w.terms()}
		}
		if w.IntN(4) == 0 {
			p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: w.terms(),
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: w.terms()[0]}}}
		}
	})
}

func (w *world) key() string { return w.pick(corev1.LabelHostname, corev1.LabelTopologyZone) }

func (w *world) selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.pick("x", "y", "z")}}
}

func (w *world) terms() []corev1.PodAffinityTerm {
	ts := []corev1.PodAffinityTerm{{TopologyKey: w.key(), LabelSelector: w.selector()}}
	if w.IntN(4) == 0 {
		ts = append(ts, corev1.PodAffinityTerm{TopologyKey: w.key(),
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": w.pick("front", "back")}}})
	}
	return ts
}

// However nodes and pods come, change and go: each node is judged as the oracle judges it, so that no constraint is ever
// violated, no node oversubscribed, and no pod left waiting for which there is a node.
func TestAgainstOracle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := &world{Rand: rand.New(rand.NewPCG(seed, 7))}
			o := &oracle{map[string]*corev1.Node{}, map[types.UID]*corev1.Pod{}}
			c, pl := cluster.New(), newPlacer(seed)
			for step := range 250 {
				name := fmt.Sprint("n", w.IntN(12))
				switch w.IntN(10) {
				case 0, 1:
					o.nodes[name] = w.node(name)
					c.SetNode(o.nodes[name])
				case 2:
					if w.IntN(3) == 0 {
						delete(o.nodes, name)
						c.RemoveNode(name)
					}
				case 3:
					for uid := range o.placed {
						delete(o.placed, uid)
						c.RemovePod(uid)
						break
					}
				default:
					tryPod(t, w.pod(), o, c, pl)
				}
				if t.Failed() {
					t.Fatalf("at step %d", step)
				}
			}
		})
	}
}

func tryPod(t *testing.T, pod *corev1.Pod, o *oracle, c *cluster.Cluster, pl *placer) {
	p, err := c.Pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	slot, f := pl.place(c, p)
	some := false
	for name, n := range o.nodes {
		s, _ := c.Slot(name)
		want := o.feasible(pod, n)
		some = some || want
		if i := pl.rejects(s); (i < 0) != want {
			why := "passes"
			if i >= 0 {
				why = fmt.Sprint(pl.checks[i].Why(s))
			}
			t.Errorf("pod %s on %s: %s, the oracle says %v", pod.Name, name, why, want)
		}
	}
	if (f == nil) != some {
		t.Errorf("pod %s: placed %v, could be placed %v", pod.Name, f == nil, some)
	}
	if f != nil {
		return
	}
	node := c.Nodes[slot].Name
	if !o.feasible(pod, o.nodes[node]) {
		t.Errorf("pod %s is placed on %s, where it cannot be", pod.Name, node)
	}
	c.SetPod(p, node)
	bound := pod.DeepCopy()
	bound.Spec.NodeName = node
	o.placed[pod.UID] = bound
}

// What is kept up to date step by step is what one gets from the start.
func TestClusterIncremental(t *testing.T) {
	t.Parallel()
	w := &world{Rand: rand.New(rand.NewPCG(1, 2))}
	c := cluster.New()
	nodes, pods := map[string]*corev1.Node{}, map[string]*corev1.Pod{}
	for range 2000 {
		name := fmt.Sprint("n", w.IntN(8))
		switch w.IntN(4) {
		case 0:
			nodes[name] = w.node(name)
			c.SetNode(nodes[name])
		case 1:
			if w.IntN(4) == 0 {
				delete(nodes, name)
				c.RemoveNode(name)
			}
		case 2:
			p := w.pod()
			p.Spec.NodeName = name // perhaps one that is not there yet
			pods[p.Name] = p
			set(t, c, p)
		case 3:
			for name, p := range pods {
				delete(pods, name)
				c.RemovePod(p.UID)
				break
			}
		}
	}
	again := cluster.New()
	for _, n := range nodes {
		again.SetNode(n)
	}
	for _, p := range pods {
		set(t, again, p)
	}
	if c.Count != len(nodes) || again.Count != len(nodes) {
		t.Fatalf("%d and %d nodes, want %d", c.Count, again.Count, len(nodes))
	}
	for name := range nodes {
		a, _ := c.Slot(name)
		b, _ := again.Slot(name)
		for r := range c.Alloc {
			if c.Alloc[r][a] != again.Alloc[r][b] || c.Used[r][a] != again.Used[r][b] {
				t.Errorf("%s: %s is %d of %d, want %d of %d", name, c.Resource(r), c.Used[r][a], c.Alloc[r][a], again.Used[r][b], again.Alloc[r][b])
			}
		}
		if c.Loaded[0][a] != again.Loaded[0][b] || len(c.Ports[a]) != len(again.Ports[b]) {
			t.Errorf("%s: load or ports differ", name)
		}
	}
}

func set(t *testing.T, c *cluster.Cluster, p *corev1.Pod) {
	q, err := c.Pod(p)
	if err != nil {
		t.Fatal(err)
	}
	c.SetPod(q, p.Spec.NodeName)
}
