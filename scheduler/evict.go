package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// makeRoom looks for what could help p, which fits nowhere, and returns what has to be written for that. Devices that nobody uses are given
// back before pods that may do useful work have to go.
func (s *Scheduler) makeRoom(p *cluster.Pod, f *failure) (node string, write func(context.Context) error) {
	if c := plugins.Idle(s.cluster, p); c != nil {
		delete(s.promises, p.UID)
		return "", func(ctx context.Context) error { return s.deallocate(ctx, c) }
	}
	return s.preempt(p, f)
}

// preempt looks for pods that have to go for p, which fits nowhere, and returns what has to be written for that. The pod
// is promised the node that they leave.
func (s *Scheduler) preempt(p *cluster.Pod, f *failure) (node string, evict func(context.Context) error) {
	pod := p.Pod
	promised := s.promises[p.UID].node
	if f.wakes&plugins.PodRemoved == 0 || !mayPreempt(s.cluster, p, promised) {
		return promised, nil
	}
	x := &preemptor{pl: s.placer, c: s.cluster, pod: p}
	for _, b := range s.budgets {
		x.budgets = append(x.budgets, b)
	}
	best := x.best()
	if best == nil {
		delete(s.promises, p.UID)
		return "", nil
	}
	node = s.cluster.Nodes[best.slot].Name
	outranked := s.promises.outranked(pod, node)
	for _, q := range outranked {
		delete(s.promises, q.UID)
	}
	s.promises[p.UID] = promise{pod, node}
	victims := make([]*corev1.Pod, 0, len(best.victims))
	for _, v := range best.victims {
		victims = append(victims, v.Pod)
	}
	return node, func(ctx context.Context) error {
		var errs []error
		for _, v := range victims {
			errs = append(errs, s.evict(ctx, v, pod, node))
		}
		for _, q := range outranked {
			errs = append(errs, s.status(ctx, q, func(q *corev1.Pod) { q.Status.NominatedNodeName = "" }))
		}
		return errors.Join(errs...)
	}
}

// evict marks a pod as preempted and deletes it, gracefully.
func (s *Scheduler) evict(ctx context.Context, victim, by *corev1.Pod, node string) error {
	if victim.DeletionTimestamp != nil {
		return nil
	}
	now := metav1.NewTime(time.Now())
	err := s.status(ctx, victim, func(v *corev1.Pod) {
		api.SetPodCondition(&v.Status, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: corev1.PodReasonPreemptionByScheduler, Message: s.c.Profile + ": preempting to accommodate a higher priority pod",
			ObservedGeneration: v.Generation, LastTransitionTime: now})
	})
	if err != nil {
		return fmt.Errorf("mark pod %s: %w", api.KeyOf(victim), err)
	}
	switch err := s.c.Client.Delete(ctx, victim, client.DeleteOptions{AnyRevision: true}); {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err): // gone, or another pod of the name
		return nil
	case err != nil:
		return fmt.Errorf("delete pod %s: %w", api.KeyOf(victim), err)
	}
	s.c.Log.Info("preempted a pod", "pod", api.KeyOf(victim).String(), "by", api.KeyOf(by).String(), "node", node)
	s.c.Events.Event(victim, corev1.EventTypeNormal, "Preempted", fmt.Sprintf("Preempted by pod %s on node %s", by.UID, node))
	return nil
}

// status changes a pod's status, whatever was written to the pod meanwhile. A pod that is gone needs no change.
func (s *Scheduler) status(ctx context.Context, p *corev1.Pod, change func(*corev1.Pod)) error {
	for {
		_, err := client.Mutate(ctx, s.c.Client, p, "status", change)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
		now, err := client.Get[*corev1.Pod](ctx, s.c.Client, api.KeyOf(p))
		if apierrors.IsNotFound(err) || err == nil && now.UID != p.UID {
			return nil
		}
		if err != nil {
			return err
		}
		p = now
	}
}
