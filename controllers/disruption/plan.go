package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	pdbstatus "k8s.io/component-helpers/apps/poddisruptionbudget"

	"github.com/yare-dev/yare/api"
)

const (
	// deletionWithin is how long a pod whose eviction was allowed may take to be deleted before it counts again.
	deletionWithin = 2 * time.Minute
	// staleAfter is how long a pod may be a target of disruption without being deleted.
	staleAfter = 2 * time.Minute
)

// counts are what a budget is computed from.
type counts struct {
	expected, desired int32
}

// count returns how many pods there should be and how many of them must be healthy. Scale is how many the controllers of
// the pods shall have; it is only asked for where a budget speaks of shares.
func count(b *policyv1.PodDisruptionBudget, pods int, scale func() (int32, error)) (counts, error) {
	s := &b.Spec
	share := func(v *intstr.IntOrString) (all, of int32, err error) {
		if all, err = scale(); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, int(all), true)
		return all, int32(n), err
	}
	switch {
	case s.MaxUnavailable != nil:
		all, most, err := share(s.MaxUnavailable)
		return counts{all, max(0, all-most)}, err
	case s.MinAvailable != nil && s.MinAvailable.Type == intstr.Int:
		return counts{int32(pods), s.MinAvailable.IntVal}, nil
	case s.MinAvailable != nil:
		all, least, err := share(s.MinAvailable)
		return counts{all, least}, err
	}
	return counts{}, nil
}

// pending returns those of the evictions that were allowed whose pods are still to be deleted, the pods that were not deleted
// in time, and when to look again.
func pending(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, now time.Time) (still map[string]metav1.Time, late []*corev1.Pod, after time.Duration) {
	for _, p := range pods {
		at, ok := b.Status.DisruptedPods[p.Name]
		if !ok || p.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(deletionWithin).Sub(now)
		if left <= 0 {
			late = append(late, p)
			continue
		}
		if still == nil {
			still = map[string]metav1.Time{}
		}
		still[p.Name] = at
		if after == 0 || left < after {
			after = left
		}
	}
	return still, late, after
}

// statusOf returns b's status.
func statusOf(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, c counts, still map[string]metav1.Time) policyv1.PodDisruptionBudgetStatus {
	healthy := int32(0)
	for _, p := range pods {
		if _, leaving := still[p.Name]; !leaving && p.DeletionTimestamp == nil && api.PodReady(p) {
			healthy++
		}
	}
	allowed := max(0, healthy-c.desired)
	if c.expected <= 0 {
		allowed = 0
	}
	next := b.DeepCopy()
	next.Status = policyv1.PodDisruptionBudgetStatus{CurrentHealthy: healthy, DesiredHealthy: c.desired, ExpectedPods: c.expected,
		DisruptionsAllowed: allowed, DisruptedPods: still, ObservedGeneration: b.Generation, Conditions: next.Status.Conditions}
	pdbstatus.UpdateDisruptionAllowedCondition(next)
	return next.Status
}

// closed is the status of a budget that cannot be computed: nothing is allowed.
func closed(b *policyv1.PodDisruptionBudget, failure error, now time.Time) policyv1.PodDisruptionBudgetStatus {
	s := *b.Status.DeepCopy()
	s.DisruptionsAllowed = 0
	s.ObservedGeneration = b.Generation
	c := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason,
		Message: failure.Error(), ObservedGeneration: b.Generation, LastTransitionTime: metav1.NewTime(now)}
	for i, old := range s.Conditions {
		if old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			s.Conditions[i] = c
			return s
		}
	}
	s.Conditions = append(s.Conditions, c)
	return s
}

// stale returns how long p may still be a target of disruption; not ok when it is none.
func stale(p *corev1.Pod, now time.Time) (left time.Duration, ok bool) {
	c := api.PodCondition(p, corev1.DisruptionTarget)
	if c == nil || c.Status != corev1.ConditionTrue || p.DeletionTimestamp != nil || api.PodTerminal(p) {
		return 0, false
	}
	return c.LastTransitionTime.Add(staleAfter).Sub(now), true
}

// noScale is a pod's controller of which nobody knows how many pods it shall have.
func noScale(p *corev1.Pod, ref *metav1.OwnerReference) error {
	return fmt.Errorf("pod %s: %s %s does not implement the scale subresource", p.Name, ref.Kind, ref.Name)
}
