package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
)

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
	// outdated is how many of remove go because of an update.
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

// slot is the place of one replica: its pod, nil when there is none.
type slot struct {
	ordinal int
	pod     *corev1.Pod
}

// slots returns the wanted replicas in order and, last first, the pods that are not wanted.
func (v *view) slots() (wanted []slot, condemned []*corev1.Pod) {
	first := start(v.set)
	for i := range int(*v.set.Spec.Replicas) {
		wanted = append(wanted, slot{ordinal: first + i})
	}
	for _, p := range v.members {
		if n, _ := ordinal(v.set, p); inRange(v.set, n) {
			wanted[n-first].pod = p
		} else {
			condemned = append(condemned, p)
		}
	}
	slices.Reverse(condemned)
	return wanted, condemned
}

// plan decides. What is missing comes before what is too much, and both before the update.
func (v *view) plan() plan {
	var p plan
	if v.set.DeletionTimestamp != nil {
		return p
	}
	wanted, condemned := v.slots()
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

// fill brings the wanted replicas to life: in order, each when all before it are available, or all at once. It says
// that what comes next has to wait.
func (v *view) fill(p *plan, wanted []slot) (wait bool) {
	for _, s := range wanted {
		pod := s.pod
		switch {
		case pod == nil:
			if made := v.newPod(s.ordinal); !v.stale(made) {
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
func (v *view) roll(p *plan, wanted []slot) {
	lowest, budget := 0, 1
	if r := v.set.Spec.UpdateStrategy.RollingUpdate; r != nil {
		if r.Partition != nil {
			lowest = int(*r.Partition)
		}
		// Validation lets no other form pass.
		n, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(1)), len(wanted), false)
		budget = max(1, n)
	}
	var old, broken []*corev1.Pod // available ones and others, last first
	for i, s := range slices.Backward(wanted) {
		pod := s.pod
		up := pod != nil && v.available(pod)
		if !up {
			budget--
		}
		if pod == nil || i < lowest || revisionOf(pod) == v.update.name || pod.DeletionTimestamp != nil || api.PodTerminal(pod) {
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
	p.outdated = len(doomed)
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
