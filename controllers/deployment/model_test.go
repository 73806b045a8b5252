package deployment

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Rollouts of random size, limits and luck keep the limits at every step and come to their end.
func TestRolloutModel(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		n := int32(r.IntN(20) + 1)
		percent := func() intstr.IntOrString {
			if r.IntN(2) == 0 {
				return intstr.FromInt32(int32(r.IntN(5)))
			}
			return intstr.FromString(fmt.Sprintf("%d%%", r.IntN(101)))
		}
		d := deployment(n)
		surge, unavailable := percent(), percent()
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}
		var sets []*appsv1.ReplicaSet
		left := n
		for i := range r.IntN(3) + 1 { // old sets that share the pods, not all of them available
			size := left
			if i < 2 {
				size = int32(r.IntN(int(left + 1)))
			}
			left -= size
			rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("old", i), CreationTimestamp: metav1.Unix(int64(i), 0)}}
			rs.Spec.Replicas = &size
			rs.Status.AvailableReplicas = int32(r.IntN(int(size + 1)))
			if r.IntN(2) == 0 {
				rs.Status.AvailableReplicas = size
			}
			sets = append(sets, rs)
		}
		rollModel(t, seed, r, d, sets)
	}
}

func rollModel(t *testing.T, seed uint64, r *rand.Rand, d *appsv1.Deployment, old []*appsv1.ReplicaSet) {
	t.Helper()
	n := *d.Spec.Replicas
	surge, unavailable := limits(d)
	fresh := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "new", CreationTimestamp: metav1.NewTime(time.Unix(99, 0))}}
	size := newSize(d, 0, old)
	fresh.Spec.Replicas = &size
	all := append(slices.Clone(old), fresh)
	begin := max(sumSpec(all), n+surge)
	for range 1000 {
		before := sumAvailable(all)
		scalings := shrink(d, fresh, old)
		if up := grow(d, fresh, all); up != nil {
			scalings = []scaling{*up}
		}
		for _, s := range scalings {
			if s.to < 0 {
				t.Fatalf("seed %d: %s is scaled to %d", seed, s.set.Name, s.to)
			}
			s.set.Spec.Replicas = &s.to
			s.set.Status.AvailableReplicas = min(s.set.Status.AvailableReplicas, s.to) // unready pods go first
		}
		if total := sumSpec(all); total > begin {
			t.Fatalf("seed %d: %d pods of %d+%d", seed, total, n, surge)
		}
		if now := sumAvailable(all); now < before && now < n-unavailable {
			t.Fatalf("seed %d: %d of %d available, %d may be missing", seed, now, n, unavailable)
		}
		if *fresh.Spec.Replicas == n && sumSpec(old) == 0 && fresh.Status.AvailableReplicas == n {
			return
		}
		for _, rs := range all { // some pods become available; of the old, none need
			if missing := *rs.Spec.Replicas - rs.Status.AvailableReplicas; missing > 0 && (rs == fresh || r.IntN(3) == 0) {
				rs.Status.AvailableReplicas += int32(r.IntN(int(missing) + 1))
			}
		}
	}
	t.Errorf("seed %d: the rollout does not end: new %d/%d, old %d", seed, *fresh.Spec.Replicas, fresh.Status.AvailableReplicas, sumSpec(old))
}

// A set that has not caught up with its scaling down lends no pods to the next step.
func TestShrinkDoesNotCountTheDoomed(t *testing.T) {
	set := func(size, available int32) *appsv1.ReplicaSet {
		rs := &appsv1.ReplicaSet{}
		rs.Spec.Replicas, rs.Status.AvailableReplicas = &size, available
		return rs
	}
	old := set(8, 10) // scaled from 10 to 8 a moment ago
	got := shrink(deployment(10), set(5, 1), []*appsv1.ReplicaSet{old})
	if len(got) != 1 || got[0].to != 7 {
		t.Errorf("scaled to %v: one new pod is available, so one old may go", got)
	}
}
