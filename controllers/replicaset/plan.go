package replicaset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/reconcile"
)

// victims returns the n of pods that are missed least, in upstream's order. Siblings are the pods that count for
// crowded nodes.
func victims(pods, siblings []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	crowd := map[string]int{} // pods by node
	for _, p := range siblings {
		crowd[p.Spec.NodeName]++
	}
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int { return lessMissed(a, b, crowd, now) })
	return sorted[:n]
}

// phaseOrder: what has not begun goes before what runs.
func phaseOrder(p corev1.PodPhase) int {
	switch p {
	case corev1.PodPending:
		return 0
	case corev1.PodUnknown:
		return 1
	}
	return 2
}

// lessMissed is negative when a goes before b. Ages are compared by their order of magnitude, so that which of pods
// of one age goes is left to chance (their UIDs), and not always the newest.
func lessMissed(a, b *corev1.Pod, crowd map[string]int, now time.Time) int {
	yes := func(v bool) int {
		if v {
			return 1
		}
		return 0
	}
	c := cmp.Or(
		cmp.Compare(yes(a.Spec.NodeName != ""), yes(b.Spec.NodeName != "")),
		cmp.Compare(phaseOrder(a.Status.Phase), phaseOrder(b.Status.Phase)),
		cmp.Compare(yes(api.PodReady(a)), yes(api.PodReady(b))),
		cmp.Compare(deletionCost(a), deletionCost(b)),
		cmp.Compare(crowd[b.Spec.NodeName], crowd[a.Spec.NodeName]),
	)
	if c != 0 {
		return c
	}
	if api.PodReady(a) && api.PodReady(b) {
		if c := younger(readySince(a), readySince(b), a, b, now); c != 0 {
			return c
		}
	}
	if c := cmp.Or(cmp.Compare(restarts(b.Status.ContainerStatuses), restarts(a.Status.ContainerStatuses)),
		cmp.Compare(restarts(b.Status.InitContainerStatuses), restarts(a.Status.InitContainerStatuses))); c != 0 {
		return c
	}
	return younger(a.CreationTimestamp.Time, b.CreationTimestamp.Time, a, b, now)
}

// younger is negative when at (a's) is of a later order of magnitude than bt (b's). An unknown time is latest.
func younger(at, bt time.Time, a, b *corev1.Pod, now time.Time) int {
	if at.Equal(bt) {
		return 0
	}
	if at.IsZero() {
		return -1
	}
	if bt.IsZero() {
		return 1
	}
	return cmp.Or(cmp.Compare(magnitude(now.Sub(at)), magnitude(now.Sub(bt))), strings.Compare(string(a.UID), string(b.UID)))
}

func magnitude(age time.Duration) int {
	if age <= 0 {
		return -1
	}
	return int(math.Log2(float64(age)))
}

func readySince(p *corev1.Pod) time.Time {
	return api.PodCondition(p, corev1.PodReady).LastTransitionTime.Time
}

func deletionCost(p *corev1.Pod) int64 {
	n, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return n
}

func restarts(cs []corev1.ContainerStatus) int32 {
	most := int32(0)
	for _, c := range cs {
		most = max(most, c.RestartCount)
	}
	return most
}

// statusOf returns rs's status given its pods, and when a pod becomes available by mere waiting.
func statusOf(rs *appsv1.ReplicaSet, pods []*corev1.Pod, failure *failed, now time.Time) (appsv1.ReplicaSetStatus, reconcile.Result) {
	var res reconcile.Result
	s := *rs.Status.DeepCopy()
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	s.ObservedGeneration = rs.Generation
	template := labels.Set(rs.Spec.Template.Labels).AsSelectorPreValidated()
	terminating := int32(0)
	for _, p := range pods {
		switch {
		case api.PodTerminal(p):
			continue
		case p.DeletionTimestamp != nil:
			terminating++
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !api.PodReady(p) {
			continue
		}
		s.ReadyReplicas++
		available, left := api.PodAvailable(p, time.Duration(rs.Spec.MinReadySeconds)*time.Second, now)
		if available {
			s.AvailableReplicas++
		}
		res = res.Sooner(left)
	}
	s.TerminatingReplicas = &terminating
	s.Conditions = conditions(s.Conditions, failure, now)
	return s, res
}

func conditions(old []appsv1.ReplicaSetCondition, failure *failed, now time.Time) []appsv1.ReplicaSetCondition {
	is := func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure }
	at := slices.IndexFunc(old, is)
	if failure == nil {
		return slices.DeleteFunc(old, is)
	}
	if at >= 0 && old[at].Reason == failure.reason {
		return old
	}
	return append(slices.DeleteFunc(old, is), appsv1.ReplicaSetCondition{
		Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: failure.reason,
		Message: failure.err.Error(), LastTransitionTime: metav1.NewTime(now),
	})
}
