package statefulset

import (
	"cmp"
	"iter"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
)

// burst is how many pods one pass creates at most.
const burst = 500

// revision is a template with the name of the ControllerRevision that records it.
type revision struct {
	name     string
	template *corev1.PodTemplateSpec
}

// view is what a pass looks at.
type view struct {
	set             *appsv1.StatefulSet
	current, update revision
	members         []*corev1.Pod // in order
	claims          map[string]*corev1.PersistentVolumeClaim
	now             time.Time
}

// plan is what a pass does, in this order. The first failure ends it.
type plan struct {
	mend   []*corev1.Pod // their identity and their claims are made what they should be
	create []*corev1.Pod // after their claims
	remove []*corev1.Pod
	// outdated is how many of remove are of the current revision and go because of an update. Where a roll-out took the
	// place of one that had not ended there are older ones too.
	outdated int
}

// look returns the view of a set with the pods that it controls. Pods that are not called like one of its members are
// ignored.
func look(set *appsv1.StatefulSet, current, update revision, pods []*corev1.Pod, claims map[string]*corev1.PersistentVolumeClaim, now time.Time) *view {
	v := &view{set: set, current: current, update: update, claims: claims, now: now}
	for _, p := range pods {
		if _, ok := ordinal(set, p); ok {
			v.members = append(v.members, p)
		}
	}
	slices.SortFunc(v.members, func(a, b *corev1.Pod) int {
		i, _ := ordinal(set, a)
		j, _ := ordinal(set, b)
		return cmp.Compare(i, j)
	})
	return v
}

func (v *view) ordered() bool { return v.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement }

func (v *view) available(p *corev1.Pod) bool {
	ok, _ := api.PodAvailable(p, time.Duration(v.set.Spec.MinReadySeconds)*time.Second, v.now)
	return ok && p.DeletionTimestamp == nil
}

// split returns the pods that are wanted, in order, and those that are not, last first.
func (v *view) split() (wanted, condemned []*corev1.Pod) {
	last := -1
	for _, p := range v.members {
		switch n, _ := ordinal(v.set, p); {
		case !inRange(v.set, n):
			condemned = append(condemned, p)
		case n != last: // web-1 and web-01 are called alike: one has the place, the other is let be
			wanted = append(wanted, p)
			last = n
		}
	}
	slices.Reverse(condemned)
	return wanted, condemned
}

// replicas returns the wanted ordinals in order, with their pods, and until enough says so with nil for those that have
// none, of which there can be 2³¹.
func (v *view) replicas(wanted []*corev1.Pod, enough func() bool) iter.Seq2[int, *corev1.Pod] {
	return func(yield func(int, *corev1.Pod) bool) {
		next := start(v.set)
		gap := func(end int) bool {
			for ; next < end && !enough(); next++ {
				if !yield(next, nil) {
					return false
				}
			}
			return true
		}
		for _, pod := range wanted {
			n, _ := ordinal(v.set, pod)
			if !gap(n) || !yield(n, pod) {
				return
			}
			next = n + 1
		}
		gap(start(v.set) + int(*v.set.Spec.Replicas))
	}
}

// plan decides. What is missing comes before what is too much, and both before the update.
func (v *view) plan() plan {
	var p plan
	if v.set.DeletionTimestamp != nil {
		return p
	}
	wanted, condemned := v.split()
	if v.fill(&p, wanted) {
		return p
	}
	for _, pod := range condemned {
		if !v.kept(pod) {
			p.mend = append(p.mend, pod)
		}
	}
	if v.shrink(&p, condemned) {
		return p
	}
	if v.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		v.roll(&p, wanted)
	}
	return p
}

// fill brings the wanted replicas to life: in order, each when all before it are available, or as many at once as one pass
// may create. It says that what comes next has to wait.
func (v *view) fill(p *plan, wanted []*corev1.Pod) (wait bool) {
	for n, pod := range v.replicas(wanted, func() bool { return len(p.create) == burst }) {
		switch {
		case pod == nil:
			if made := v.newPod(n); !v.stale(made) {
				p.create = append(p.create, made)
			}
		case api.PodTerminal(pod): // its name is free again when it is gone
			if pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		case v.ordered() && !v.available(pod):
			if pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil && v.lacksClaims(pod) {
				p.mend = append(p.mend, pod)
			}
		default:
			if pod.Status.Phase == corev1.PodPending && v.lacksClaims(pod) || !v.identified(pod) || !v.kept(pod) {
				p.mend = append(p.mend, pod)
			}
			continue
		}
		if v.ordered() {
			return true
		}
	}
	return false
}

// shrink removes pods that are not wanted: the last one, when all before it are available, or all at once.
func (v *view) shrink(p *plan, condemned []*corev1.Pod) (wait bool) {
	if !v.ordered() {
		for _, pod := range condemned {
			if pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		}
		return false
	}
	if len(condemned) == 0 {
		return false
	}
	last := condemned[0]
	if last.DeletionTimestamp != nil || !v.available(last) && last != v.firstUnavailable(condemned) {
		return true
	}
	p.remove = append(p.remove, last)
	return true
}

// firstUnavailable is asked for when all wanted replicas are available.
func (v *view) firstUnavailable(condemned []*corev1.Pod) *corev1.Pod {
	for _, pod := range slices.Backward(condemned) {
		if !v.available(pod) {
			return pod
		}
	}
	return nil
}

// roll removes pods of an older revision, last first, as many as may be unavailable.
func (v *view) roll(p *plan, wanted []*corev1.Pod) {
	replicas := int(*v.set.Spec.Replicas)
	lowest, budget := 0, 1
	if r := v.set.Spec.UpdateStrategy.RollingUpdate; r != nil {
		if r.Partition != nil {
			lowest = int(*r.Partition)
		}
		// Validation lets no other form pass.
		n, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(1)), replicas, false)
		budget = max(1, n)
	}
	budget -= replicas
	var old, broken []*corev1.Pod // available ones and others, last first
	for _, pod := range slices.Backward(wanted) {
		up := v.available(pod)
		if up {
			budget++
		}
		n, _ := ordinal(v.set, pod)
		if n < start(v.set)+lowest || revisionOf(pod) == v.update.name || pod.DeletionTimestamp != nil || api.PodTerminal(pod) {
			continue
		}
		if up || v.ordered() {
			old = append(old, pod)
		} else {
			broken = append(broken, pod) // removing it makes nothing worse
		}
	}
	doomed := append(broken, old[:min(len(old), max(0, budget))]...)
	p.remove = append(p.remove, doomed...)
	for _, pod := range doomed {
		if revisionOf(pod) == v.current.name {
			p.outdated++
		}
	}
}

// status returns the set's status, and how soon a pod becomes available by mere waiting.
func (v *view) status(outdated int) (s appsv1.StatefulSetStatus, after time.Duration) {
	s = appsv1.StatefulSetStatus{ObservedGeneration: v.set.Generation, CurrentRevision: v.current.name, UpdateRevision: v.update.name,
		CollisionCount: v.set.Status.CollisionCount, Conditions: slices.Clone(v.set.Status.Conditions)}
	if s.CollisionCount == nil {
		s.CollisionCount = new(int32)
	}
	for _, p := range v.members {
		s.Replicas++
		if p.Status.Phase == corev1.PodRunning && api.PodReady(p) {
			s.ReadyReplicas++
			ok, left := api.PodAvailable(p, time.Duration(v.set.Spec.MinReadySeconds)*time.Second, v.now)
			if ok {
				s.AvailableReplicas++
			}
			if left > 0 && (after == 0 || left < after) {
				after = left
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(p) == v.current.name {
			s.CurrentReplicas++
		}
		if revisionOf(p) == v.update.name {
			s.UpdatedReplicas++
		}
	}
	s.CurrentReplicas -= int32(outdated)
	if n := *v.set.Spec.Replicas; s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	return s, after
}
