package scheduler

import (
	"cmp"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// candidate is a node that can take a pod when the victims are gone.
type candidate struct {
	slot       int
	victims    []*cluster.Pod // the most important first
	violations int            // of disruption budgets
}

// How many candidates are looked for before the best is taken, here and where it takes long to ask about a node: a share of the nodes, and at least so many.
const (
	candidateShare = 10 // in percent
	leastLooked    = 100
)

// preemptor decides which pods go for one of more importance. It is pure: the cluster is as it was afterwards.
type preemptor struct {
	pl      *placer
	c       *cluster.Cluster
	pod     *cluster.Pod
	budgets []*budget
}

// budget is a disruption budget, read once.
type budget struct {
	*policyv1.PodDisruptionBudget
	selector labels.Selector
}

func newBudget(b *policyv1.PodDisruptionBudget) *budget {
	sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		sel = labels.Nothing()
	}
	return &budget{b, sel}
}

// mayPreempt says whether others may have to go for p: not when it does not want that, nor while one that has to go already
// is still on the node that p was promised.
func mayPreempt(c *cluster.Cluster, p *cluster.Pod, promised string) bool {
	if policy := p.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return false
	}
	for _, q := range c.On(promised) {
		if q.DeletionTimestamp != nil && priority(q.Pod) < priority(p.Pod) {
			return false
		}
	}
	return true
}

// best returns the node on which preemption hurts least, nil when it helps nowhere.
func (x *preemptor) best() *candidate {
	enough := max(leastLooked, x.c.Count*candidateShare/100)
	var found []*candidate
	n := len(x.c.Nodes)
	if n == 0 {
		return nil
	}
	for i, first := 0, x.pl.rand.IntN(n); i < n && len(found) < enough; i++ {
		if c := x.try((first + i) % n); c != nil {
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return slices.MinFunc(found, harm)
}

// harm compares two candidates in upstream's order.
func harm(a, b *candidate) int {
	sum := func(c *candidate) (s int64) {
		for _, v := range c.victims {
			s += int64(priority(v.Pod)) - math.MinInt32 // so that more victims are never better
		}
		return s
	}
	return cmp.Or(
		cmp.Compare(a.violations, b.violations),
		cmp.Compare(priority(a.victims[0].Pod), priority(b.victims[0].Pod)),
		cmp.Compare(sum(a), sum(b)),
		cmp.Compare(len(a.victims), len(b.victims)),
		-earliest(a).Compare(earliest(b)),
	)
}

// earliest returns since when the longest running of the most important victims runs.
func earliest(c *candidate) time.Time {
	at := started(c.victims[0])
	for _, v := range c.victims {
		if priority(v.Pod) == priority(c.victims[0].Pod) && started(v).Before(at) {
			at = started(v)
		}
	}
	return at
}

// started returns when a pod began to run; those that did not are youngest.
func started(p *cluster.Pod) time.Time {
	if t := p.Status.StartTime; t != nil {
		return t.Time
	}
	return time.Unix(math.MaxInt32, 0)
}

func important(a, b *cluster.Pod) int {
	return cmp.Or(-cmp.Compare(priority(a.Pod), priority(b.Pod)), started(a).Compare(started(b)), cmp.Compare(a.UID, b.UID))
}

// try returns whom the pod would have to drive off the node, nil when that does not help, or is not needed.
func (x *preemptor) try(slot int) *candidate {
	n := x.c.Nodes[slot]
	if n == nil || x.hopeless(slot) {
		return nil
	}
	var lower []*cluster.Pod
	for _, q := range x.c.On(n.Name) {
		if priority(q.Pod) < priority(x.pod.Pod) {
			lower = append(lower, q)
		}
	}
	if len(lower) == 0 {
		return nil
	}
	slices.SortFunc(lower, important)
	for _, q := range lower {
		x.c.RemovePod(q.UID)
	}
	defer func() { // those that were spared are there already
		for _, q := range lower {
			if x.c.Placed(q.UID) == nil {
				x.c.SetPod(q, n.Name)
			}
		}
	}()
	if !x.fits(slot) {
		return nil
	}
	out := &candidate{slot: slot}
	spare := func(q *cluster.Pod) bool {
		x.c.SetPod(q, n.Name)
		if x.fits(slot) {
			return true
		}
		x.c.RemovePod(q.UID)
		out.victims = append(out.victims, q)
		return false
	}
	protected, free := x.split(lower)
	for _, q := range protected { // these are spared first
		if !spare(q) {
			out.violations++
		}
	}
	for _, q := range free {
		spare(q)
	}
	if len(out.victims) == 0 {
		return nil
	}
	slices.SortFunc(out.victims, important)
	return out
}

// split divides pods into those whose removal a disruption budget forbids and others.
func (x *preemptor) split(pods []*cluster.Pod) (protected, free []*cluster.Pod) {
	allowed := make([]int32, len(x.budgets))
	for i, b := range x.budgets {
		allowed[i] = b.Status.DisruptionsAllowed
	}
	for _, p := range pods {
		forbidden := false
		for i, b := range x.budgets {
			if b.Namespace != p.Namespace || b.selector.Empty() || !b.selector.Matches(labels.Set(p.Labels)) {
				continue
			}
			if _, leaving := b.Status.DisruptedPods[p.Name]; leaving {
				continue // counted already
			}
			allowed[i]--
			forbidden = forbidden || allowed[i] < 0
		}
		if forbidden {
			protected = append(protected, p)
		} else {
			free = append(free, p)
		}
	}
	return protected, free
}

// hopeless says that a filter which looks at no pods refuses the node. The checks are those of the failed placement.
func (x *preemptor) hopeless(slot int) bool {
	for i, check := range x.pl.checks {
		if check != nil && x.pl.filters[i].Wakes&plugins.PodRemoved == 0 && !check.Pass(slot) {
			return true
		}
	}
	return false
}

// fits asks all filters as the cluster is now.
func (x *preemptor) fits(slot int) bool {
	for i := range x.pl.filters {
		check, err := x.pl.filters[i].Prepare(x.c, x.pod)
		if err != nil || check != nil && !check.Pass(slot) {
			return false
		}
	}
	return true
}

// promises are the nodes that pods were promised for which others have to go: they count there for pods that are not more
// important.
type promises map[types.UID]promise

type promise struct {
	pod  *corev1.Pod
	node string
}

// keep counts promised pods in the cluster while p is placed. Undo takes them out again.
func (ps promises) keep(c *cluster.Cluster, p *corev1.Pod) (undo func()) {
	var kept []types.UID
	for uid, x := range ps {
		if uid == p.UID || priority(x.pod) < priority(p) || c.Placed(uid) != nil {
			continue
		}
		if q, err := c.Pod(x.pod); err == nil {
			c.SetPod(q, x.node)
			kept = append(kept, uid)
		}
	}
	return func() {
		for _, uid := range kept {
			c.RemovePod(uid)
		}
	}
}

// note takes over what the API says of a waiting pod. Old is nil for one that is new.
func (ps promises) note(old, p *corev1.Pod) {
	switch {
	case p.Status.NominatedNodeName != "":
		ps[p.UID] = promise{p, p.Status.NominatedNodeName}
	case old != nil && old.Status.NominatedNodeName != "":
		delete(ps, p.UID)
	}
}

// outranked returns the pods that were promised a node and are less important than p, which gets it now.
func (ps promises) outranked(p *corev1.Pod, node string) (pods []*corev1.Pod) {
	for uid, x := range ps {
		if uid != p.UID && x.node == node && priority(x.pod) < priority(p) {
			pods = append(pods, x.pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return api.KeyOf(a).Compare(api.KeyOf(b)) })
	return pods
}
