package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// scaling is a set and the size that it shall have.
type scaling struct {
	set *appsv1.ReplicaSet
	to  int32
}

func byAge(sets []*appsv1.ReplicaSet) {
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

// limits resolves maxSurge and maxUnavailable. Both zero, which percents can become, would stop the rollout: then one
// pod may be unavailable.
func limits(d *appsv1.Deployment) (surge, unavailable int32) {
	ru := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || ru == nil {
		return 0, 0
	}
	n := int(*d.Spec.Replicas)
	scaled := func(v *intstr.IntOrString, up bool) int32 {
		x, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(v, intstr.FromInt32(0)), n, up)
		if err != nil { // validation lets none pass
			return 0
		}
		return int32(x)
	}
	surge, unavailable = scaled(ru.MaxSurge, true), scaled(ru.MaxUnavailable, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, *d.Spec.Replicas)
}

func sumSpec(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		if rs != nil {
			n += *rs.Spec.Replicas
		}
	}
	return n
}

func sumAvailable(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += rs.Status.AvailableReplicas
	}
	return n
}

// usable is how many pods of rs are available and will stay. A set that was scaled down and has not caught up yet still
// reports those that it is about to delete.
func usable(rs *appsv1.ReplicaSet) int32 { return min(rs.Status.AvailableReplicas, *rs.Spec.Replicas) }

// resized says that the Deployment's size was changed since the sets were scaled last.
func resized(d *appsv1.Deployment, all []*appsv1.ReplicaSet) bool {
	for _, rs := range all {
		if *rs.Spec.Replicas == 0 {
			continue
		}
		if want, ok := intAnnotation(rs, desiredAnnotation); ok && want != *d.Spec.Replicas {
			return true
		}
	}
	return false
}

func intAnnotation(rs *appsv1.ReplicaSet, name string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[name], 10, 32)
	return int32(n), err == nil
}

// newSize is the size that the new set may have now.
func newSize(d *appsv1.Deployment, now int32, all []*appsv1.ReplicaSet) int32 {
	want := *d.Spec.Replicas
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want
	}
	surge, _ := limits(d)
	room := want + surge - sumSpec(all)
	if room <= 0 {
		return now
	}
	return now + min(room, want-now)
}

// grow returns how the new set comes nearer to the Deployment's size, nil when it does not now.
func grow(d *appsv1.Deployment, fresh *appsv1.ReplicaSet, all []*appsv1.ReplicaSet) *scaling {
	want, now := *d.Spec.Replicas, *fresh.Spec.Replicas
	to := want
	if now < want {
		to = newSize(d, now, all)
	}
	if to == now {
		return nil
	}
	return &scaling{fresh, to}
}

// shrink returns how the old sets, oldest first, come nearer to nothing: first their pods that are of no
// use, then as many others as may be unavailable.
func shrink(d *appsv1.Deployment, fresh *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []scaling {
	if sumSpec(old) == 0 {
		return nil
	}
	_, unavailable := limits(d)
	least := *d.Spec.Replicas - unavailable
	freshMissing := *fresh.Spec.Replicas - usable(fresh)
	room := sumSpec(old) + *fresh.Spec.Replicas - least - freshMissing
	if room <= 0 {
		return nil
	}
	sizes := map[*appsv1.ReplicaSet]int32{}
	for _, rs := range old {
		n := *rs.Spec.Replicas
		useless := min(room, max(0, n-rs.Status.AvailableReplicas))
		sizes[rs] = n - useless
		room -= useless
	}
	spare := usable(fresh) - least
	for _, rs := range old {
		spare += usable(rs)
	}
	var out []scaling
	for _, rs := range old {
		if down := min(sizes[rs], spare); down > 0 {
			sizes[rs] -= down
			spare -= down
		}
		if sizes[rs] != *rs.Spec.Replicas {
			out = append(out, scaling{rs, sizes[rs]})
		}
	}
	return out
}

// proportional returns the sizes of all sets after a change of the Deployment's: the one that has pods gets all, several
// in the middle of a rollout share the change by their sizes. Unchanged sizes are included, for their annotations.
func proportional(d *appsv1.Deployment, fresh *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []scaling {
	want := *d.Spec.Replicas
	if one := onlyActive(fresh, old); one != nil {
		if *one.Spec.Replicas == want {
			return nil
		}
		return []scaling{{one, want}}
	}
	if saturated(d, fresh) {
		var out []scaling
		for _, rs := range old {
			if *rs.Spec.Replicas > 0 {
				out = append(out, scaling{rs, 0})
			}
		}
		return out
	}
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return share(d, active(fresh, old))
}

// share distributes the change over sets that all have pods.
func share(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) []scaling {
	allowed := int32(0)
	if *d.Spec.Replicas > 0 {
		surge, _ := limits(d)
		allowed = *d.Spec.Replicas + surge
	}
	change := allowed - sumSpec(sets)
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int { // the largest first, then the newest (up) or oldest (down)
		c := b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
		if change < 0 {
			c = -c
		}
		return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), c)
	})
	out := make([]scaling, len(sets))
	given := int32(0)
	for i, rs := range sets {
		part := int32(0)
		if left := change - given; change != 0 && left != 0 {
			part = fraction(d, rs)
			if change > 0 {
				part = min(part, left)
			} else {
				part = max(part, left)
			}
		}
		out[i] = scaling{rs, *rs.Spec.Replicas + part}
		given += part
	}
	if len(out) > 0 && change != 0 {
		out[0].to = max(0, out[0].to+change-given)
	}
	return out
}

// fraction is by how much rs would change if all sets changed by the same factor.
func fraction(d *appsv1.Deployment, rs *appsv1.ReplicaSet) int32 {
	now := *rs.Spec.Replicas
	if *d.Spec.Replicas == 0 {
		return -now
	}
	surge, _ := limits(d)
	before, ok := intAnnotation(rs, maxAnnotation)
	if !ok || before == 0 {
		before = d.Status.Replicas
	}
	if before == 0 {
		return 0
	}
	return int32(math.Round(float64(now)*float64(*d.Spec.Replicas+surge)/float64(before))) - now
}

func active(fresh *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	var out []*appsv1.ReplicaSet
	for _, rs := range append(slices.Clone(old), fresh) {
		if rs != nil && *rs.Spec.Replicas > 0 {
			out = append(out, rs)
		}
	}
	return out
}

// onlyActive returns the one set with pods, or the latest when none has any; nil when several have.
func onlyActive(fresh *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	switch a := active(fresh, old); {
	case len(a) == 1:
		return a[0]
	case len(a) > 1:
		return nil
	case fresh != nil:
		return fresh
	case len(old) > 0:
		return old[len(old)-1]
	}
	return nil
}

// saturated says that the new set is all that the Deployment needs.
func saturated(d *appsv1.Deployment, fresh *appsv1.ReplicaSet) bool {
	if fresh == nil {
		return false
	}
	desired, ok := intAnnotation(fresh, desiredAnnotation)
	want := *d.Spec.Replicas
	return ok && desired == want && *fresh.Spec.Replicas == want && fresh.Status.AvailableReplicas == want
}

// surplus returns the old sets beyond the history limit: empty ones with the lowest revisions.
func surplus(d *appsv1.Deployment, old []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	limit := d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return nil
	}
	alive := slices.DeleteFunc(slices.Clone(old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	n := len(alive) - int(*limit)
	if n <= 0 {
		return nil
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revision(a), revision(b)) })
	return slices.DeleteFunc(alive[:n], func(rs *appsv1.ReplicaSet) bool {
		return rs.Status.Replicas != 0 || *rs.Spec.Replicas != 0 || rs.Generation > rs.Status.ObservedGeneration
	})
}
