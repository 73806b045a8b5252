// Package daemonset runs one pod of a DaemonSet on every Node that it is meant for. It replaces upstream's daemon set
// controller.
//
// Vocabulary: a pod's target is the Node that it runs on or, before it was scheduled, that its affinity names. A pod is
// current when it was made from the DaemonSet's present template, which a ControllerRevision records; else it is old.
//
// One pass first mends (manage: a pod where one is missing, none where none belongs) and, when nothing is to
// be mended, replaces old pods as far as the strategy allows (roll). The scheduler binds the pods.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	burst        = 250 // pods created or deleted by one pass
	firstBackoff = time.Second
	lastBackoff  = 15 * time.Minute
)

type controller struct {
	reconcile.Deps

	mu       sync.Mutex
	failures map[place]failure
}

// place is where a DaemonSet's pods fail.
type place struct {
	set  types.UID
	node string
}

// failure delays the deletion, and so the replacement, of pods that fail again and again.
type failure struct {
	pod   types.UID
	count int
	due   time.Time
}

// New returns the daemonset controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := &controller{Deps: d.Named("daemonset-controller"), failures: map[place]failure{}}
	selector := func(ds *appsv1.DaemonSet) *metav1.LabelSelector { return ds.Spec.Selector }
	return reconcile.New(c.Deps, reconcile.For[*appsv1.DaemonSet]{
		Controller: "daemonset-controller",
		Also: []reconcile.Source{
			reconcile.Children[*corev1.Pod](selector),
			reconcile.Children[*appsv1.ControllerRevision](selector),
			reconcile.Changed(func(ctx context.Context, d reconcile.Deps, before, after *corev1.Node) []api.Key {
				if before != nil && after != nil && before.Spec.Unschedulable == after.Spec.Unschedulable &&
					maps.Equal(before.Labels, after.Labels) && slices.EqualFunc(before.Spec.Taints, after.Spec.Taints,
					func(a, b corev1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value }) {
					return nil
				}
				return reconcile.Every(ctx, d, api.DaemonSetKind, "")
			}),
		},
		Write: reconcile.Writes{
			api.DaemonSetKind:          {"update/status"},
			api.PodKind:                {"create", "delete", "patch"},
			api.ControllerRevisionKind: {"create", "delete", "patch", "update"},
		},
		Reconcile: c.reconcile,
	})
}

func (c *controller) reconcile(ctx context.Context, log *slog.Logger, ds *appsv1.DaemonSet) (reconcile.Result, error) {
	selector := reconcile.Selector(ds.Spec.Selector)
	if selector.Empty() {
		c.Events.Event(ds, corev1.EventTypeWarning, "SelectingAll",
			"This daemon set is selecting all pods. A non-empty selector is required.")
		return reconcile.Result{}, nil
	}
	if ds.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	pods, err := reconcile.Claim[*corev1.Pod](ctx, c.Client, ds, selector)
	if err != nil {
		return reconcile.Result{}, err
	}
	nodes, err := client.List[*corev1.Node](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	history, err := reconcile.Claim[*appsv1.ControllerRevision](ctx, c.Client, ds, selector)
	if err != nil {
		return reconcile.Result{}, err
	}
	status := *ds.Status.DeepCopy()
	revisions := &reconcile.Revisions{Owner: ds, Template: &ds.Spec.Template, HashLabel: appsv1.DefaultDaemonSetUniqueLabelKey,
		Collided: ds.Status.CollisionCount, History: history}
	current, failure := revisions.Current(ctx, c.Client)
	status.CollisionCount = revisions.Collided
	var res reconcile.Result
	if failure == nil {
		now := time.Now()
		f := look(ds, hashOf(current), nodes, pods, now)
		res, failure = c.act(ctx, log, f)
		if failure == nil {
			failure = c.forget(ctx, ds, current, revisions, pods)
		}
		var next reconcile.Result
		status, next = f.status(status)
		res = res.Sooner(next.After)
	}
	if _, err := client.Mutate(ctx, c.Client, ds, "status", func(ds *appsv1.DaemonSet) { ds.Status = status }); err != nil {
		return res, errors.Join(failure, fmt.Errorf("write status: %w", err))
	}
	return res, failure
}

// act mends or, when there is nothing to mend, rolls.
func (c *controller) act(ctx context.Context, log *slog.Logger, f *fleet) (reconcile.Result, error) {
	var res reconcile.Result
	p := f.manage()
	for _, pod := range p.failed {
		node := target(pod)
		if left := c.delay(place{f.set.UID, node}, pod, f.now); left > 0 {
			res = res.Sooner(left)
			continue
		}
		reason, phase := "FailedDaemonPod", "failed"
		if pod.Status.Phase == corev1.PodSucceeded {
			reason, phase = "SucceededDaemonPod", "succeeded"
		}
		c.Events.Event(f.set, corev1.EventTypeWarning, reason,
			fmt.Sprintf("Found %s daemon pod %s on node %s, will try to kill it", phase, api.KeyOf(pod), node))
		p.remove = append(p.remove, pod)
	}
	if len(p.create)+len(p.remove) == 0 && f.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		p = f.roll()
	}
	create, remove := p.create[:min(len(p.create), burst)], p.remove[:min(len(p.remove), burst)]
	if len(create)+len(remove) > 0 {
		log.Debug("changing pods", "create", len(create), "delete", len(remove))
	}
	_, err := reconcile.SlowStart(len(create), func(i int) error {
		return c.CreatePod(ctx, f.set, newPod(f.set, create[i], f.hash))
	})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil
	}
	return res, errors.Join(err, reconcile.Parallel(len(remove), func(i int) error { return c.DeletePod(ctx, f.set, remove[i]) }))
}

// delay returns how long a failed pod stays before it is replaced: twice as long each time.
func (c *controller) delay(at place, pod *corev1.Pod, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, f := range c.failures { // what did not fail again for long is forgotten
		if now.Sub(f.due) > 2*lastBackoff {
			delete(c.failures, k)
		}
	}
	f, ok := c.failures[at]
	if !ok || f.pod != pod.UID {
		wait := min(lastBackoff, firstBackoff<<min(f.count, 12))
		if !ok {
			wait = 0
		}
		f = failure{pod: pod.UID, count: f.count + 1, due: now.Add(wait)}
		c.failures[at] = f
	}
	return f.due.Sub(now)
}
