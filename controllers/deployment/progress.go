package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/reconcile"
)

// Reasons of the Progressing condition that are compared.
const (
	reasonAvailable = "NewReplicaSetAvailable"
	reasonTimedOut  = "ProgressDeadlineExceeded"
	reasonPaused    = "DeploymentPaused"
	reasonResumed   = "DeploymentResumed"
)

// statusOf returns the counts of d's status, without conditions.
func statusOf(d *appsv1.Deployment, fresh *appsv1.ReplicaSet, all []*appsv1.ReplicaSet) appsv1.DeploymentStatus {
	s := appsv1.DeploymentStatus{ObservedGeneration: d.Generation, AvailableReplicas: sumAvailable(all)}
	terminating := int32(0)
	for _, rs := range all {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		if n := rs.Status.TerminatingReplicas; n != nil {
			terminating += *n
		}
	}
	s.TerminatingReplicas = &terminating
	s.UnavailableReplicas = max(0, sumSpec(all)-s.AvailableReplicas)
	if fresh != nil {
		s.UpdatedReplicas = fresh.Status.Replicas
	}
	return s
}

func availability(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) appsv1.DeploymentCondition {
	c := appsv1.DeploymentCondition{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionFalse,
		Reason: "MinimumReplicasUnavailable", Message: "Deployment does not have minimum availability."}
	if _, unavailable := limits(d); s.AvailableReplicas >= *d.Spec.Replicas-unavailable {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability."
	}
	c.LastUpdateTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
	return c
}

func progressing(status corev1.ConditionStatus, reason, message string, now time.Time) appsv1.DeploymentCondition {
	return appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: status, Reason: reason, Message: message,
		LastUpdateTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(now)}
}

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func removeCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// setCondition puts c in unless one of its status and reason is there. The transition time is that of the status.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	old := condition(s, c.Type)
	if old != nil && old.Status == c.Status && old.Reason == c.Reason {
		return
	}
	renewCondition(s, c)
}

// renewCondition puts c in, and so renews the update time.
func renewCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	if old := condition(s, c.Type); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	removeCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// pause notes pausing and resuming, so that the time of a pause does not count as lack of progress.
func pause(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) {
	c := condition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c != nil && c.Reason == reasonTimedOut {
		return
	}
	paused := c != nil && c.Reason == reasonPaused
	switch {
	case d.Spec.Paused && !paused:
		setCondition(s, progressing(corev1.ConditionUnknown, reasonPaused, "Deployment is paused", now))
	case !d.Spec.Paused && paused:
		setCondition(s, progressing(corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", now))
	}
}

func complete(d *appsv1.Deployment, s appsv1.DeploymentStatus) bool {
	n := *d.Spec.Replicas
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= d.Generation
}

// advanced says that s is nearer to the end than before.
func advanced(before, s appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas > before.UpdatedReplicas ||
		s.Replicas-s.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		s.ReadyReplicas > before.ReadyReplicas || s.AvailableReplicas > before.AvailableReplicas
}

// progress sets the Progressing and ReplicaFailure conditions of s and returns when lack of progress becomes
// a failure.
func progress(d *appsv1.Deployment, before appsv1.DeploymentStatus, s *appsv1.DeploymentStatus,
	fresh *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, now time.Time) reconcile.Result {
	var res reconcile.Result
	subject := fmt.Sprintf("Deployment %q", d.Name)
	if fresh != nil {
		subject = fmt.Sprintf("ReplicaSet %q", fresh.Name)
	}
	c := condition(s, appsv1.DeploymentProgressing)
	finished := s.Replicas == s.UpdatedReplicas && c != nil && c.Reason == reasonAvailable
	switch {
	case !hasDeadline(d):
		removeCondition(s, appsv1.DeploymentProgressing)
	case finished:
	case complete(d, *s):
		setCondition(s, progressing(corev1.ConditionTrue, reasonAvailable, subject+" has successfully progressed.", now))
	case advanced(before, *s):
		renewCondition(s, progressing(corev1.ConditionTrue, "ReplicaSetUpdated", subject+" is progressing.", now))
	}
	if c = condition(s, appsv1.DeploymentProgressing); c != nil && c.Reason != reasonAvailable && c.Reason != reasonTimedOut {
		left := c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second).Sub(now)
		if left < 0 {
			setCondition(s, progressing(corev1.ConditionFalse, reasonTimedOut, subject+" has timed out progressing.", now))
		} else {
			res.After = left + time.Second // API times have no fractions
		}
	}
	removeCondition(s, appsv1.DeploymentReplicaFailure)
	for _, rs := range append([]*appsv1.ReplicaSet{fresh}, old...) {
		if c := replicaFailure(rs); c != nil {
			s.Conditions = append(s.Conditions, *c)
			break
		}
	}
	return res
}

// replicaFailure translates the condition of a set.
func replicaFailure(rs *appsv1.ReplicaSet) *appsv1.DeploymentCondition {
	if rs == nil {
		return nil
	}
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			return &appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason,
				Message: c.Message, LastUpdateTime: c.LastTransitionTime, LastTransitionTime: c.LastTransitionTime}
		}
	}
	return nil
}
