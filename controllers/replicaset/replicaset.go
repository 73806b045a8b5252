// Package replicaset keeps the number of pods that a ReplicaSet or a ReplicationController asks for. It replaces upstream's
// replicaset and replication controllers, which are one here too: a ReplicationController is looked at as a ReplicaSet.
//
// Vocabulary: a pod is active when it is neither terminal nor being deleted; only active pods count as replicas. A view is
// an object as a ReplicaSet; the object itself, which owns the pods, is the owner.
package replicaset

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// burst is how many pods one pass creates or deletes at most.
const burst = 500

type controller[T api.Object] struct {
	reconcile.Deps
	view  func(T) *appsv1.ReplicaSet // which is only read
	store func(T, *appsv1.ReplicaSetStatus)
}

// New returns the replicaset controller.
func New(d reconcile.Deps) *reconcile.Controller {
	return controller[*appsv1.ReplicaSet]{
		Deps:  d.Named("replicaset-controller"),
		view:  func(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet { return rs },
		store: func(rs *appsv1.ReplicaSet, s *appsv1.ReplicaSetStatus) { rs.Status = *s },
	}.declare("replicaset-controller")
}

// NewReplicationController returns the replicationcontroller controller.
func NewReplicationController(d reconcile.Deps) *reconcile.Controller {
	return controller[*corev1.ReplicationController]{
		Deps: d.Named("replication-controller"), view: viewOf, store: storeIn,
	}.declare("replicationcontroller-controller")
}

func (c controller[T]) declare(name string) *reconcile.Controller {
	return reconcile.New(c.Deps, reconcile.For[T]{
		Controller: name,
		Also:       []reconcile.Source{reconcile.Children[*corev1.Pod](func(o T) *metav1.LabelSelector { return c.view(o).Spec.Selector })},
		Write: reconcile.Writes{
			api.PodKind:      {"create", "delete", "patch"},
			api.KindFor[T](): {"update/status"},
		},
		Reconcile: c.reconcile,
	})
}

func (c controller[T]) reconcile(ctx context.Context, log *slog.Logger, owner T) (reconcile.Result, error) {
	rs := c.view(owner)
	pods, err := reconcile.Claim(ctx, c.Client, owner, reconcile.Selector(rs.Spec.Selector), api.PodActive)
	if err != nil {
		return reconcile.Result{}, err
	}
	var failure *failed
	if rs.DeletionTimestamp == nil {
		failure = c.scale(ctx, log, owner, rs, pods)
	}
	status, res := statusOf(rs, pods, failure, time.Now())
	if _, err := client.Mutate(ctx, c.Client, owner, "status", func(o T) { c.store(o, &status) }); err != nil {
		return res, fmt.Errorf("write status: %w", err)
	}
	if failure != nil {
		return res, failure.err
	}
	return res, nil
}

// failed is a change of the number of pods that did not succeed.
type failed struct {
	reason string
	err    error
}

// scale creates or deletes pods.
func (c controller[T]) scale(ctx context.Context, log *slog.Logger, owner T, rs *appsv1.ReplicaSet, pods []*corev1.Pod) *failed {
	active := filter(pods, api.PodActive)
	switch diff := len(active) - int(*rs.Spec.Replicas); {
	case diff < 0:
		n := min(-diff, burst)
		log.Debug("creating pods", "count", n)
		_, err := reconcile.SlowStart(n, func(int) error {
			return c.CreatePod(ctx, owner, reconcile.NewPod(&rs.Spec.Template, owner))
		})
		if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return &failed{"FailedCreate", err}
		}
	case diff > 0:
		n := min(diff, burst)
		siblings, err := c.siblings(ctx, rs)
		if err != nil {
			return &failed{"FailedDelete", err}
		}
		doomed := victims(active, siblings, n, time.Now())
		log.Debug("deleting pods", "count", n)
		if err := reconcile.Parallel(len(doomed), func(i int) error { return c.DeletePod(ctx, owner, doomed[i]) }); err != nil {
			return &failed{"FailedDelete", err}
		}
	}
	return nil
}

// siblings returns the active pods of all ReplicaSets that rs's controller (a Deployment) controls, rs's own
// included: pods on a node with many of them go first.
func (c controller[T]) siblings(ctx context.Context, rs *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	sets := []*appsv1.ReplicaSet{rs}
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil && api.KindFor[T]() == api.ReplicaSetKind {
		all, err := client.List[*appsv1.ReplicaSet](ctx, c.Client, client.Query{Namespace: rs.Namespace, Owner: ref.UID})
		if err != nil {
			return nil, fmt.Errorf("list sibling replicasets: %w", err)
		}
		sets = filter(all, func(o *appsv1.ReplicaSet) bool {
			r := metav1.GetControllerOfNoCopy(o)
			return r != nil && r.UID == ref.UID
		})
	}
	var pods []*corev1.Pod
	for _, s := range sets {
		own, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Namespace: rs.Namespace, Owner: s.UID})
		if err != nil {
			return nil, fmt.Errorf("list sibling pods: %w", err)
		}
		pods = append(pods, filter(own, api.PodActive)...)
	}
	return pods, nil
}

func filter[T any](in []T, keep func(T) bool) []T {
	var out []T
	for _, x := range in {
		if keep(x) {
			out = append(out, x)
		}
	}
	return out
}
