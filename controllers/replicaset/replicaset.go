// Package replicaset keeps the number of pods that a ReplicaSet asks for. It replaces upstream's
// replicaset controller.
//
// Vocabulary: a pod is active when it is neither terminal nor being deleted; only active pods count as replicas.
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

type controller struct{ reconcile.Deps }

// New returns the replicaset controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("replicaset-controller")}
	return reconcile.New(c.Deps, reconcile.For[*appsv1.ReplicaSet]{
		Controller: "replicaset-controller",
		Also: []reconcile.Source{reconcile.Children[*corev1.Pod](func(rs *appsv1.ReplicaSet) *metav1.LabelSelector {
			return rs.Spec.Selector
		})},
		Write: reconcile.Writes{
			api.PodKind:        {"create", "delete", "patch"},
			api.ReplicaSetKind: {"update/status"},
		},
		Reconcile: c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, rs *appsv1.ReplicaSet) (reconcile.Result, error) {
	pods, err := reconcile.Claim(ctx, c.Client, rs, reconcile.Selector(rs.Spec.Selector), api.PodActive)
	if err != nil {
		return reconcile.Result{}, err
	}
	var failure *failed
	if rs.DeletionTimestamp == nil {
		failure = c.scale(ctx, log, rs, pods)
	}
	status, res := statusOf(rs, pods, failure, time.Now())
	if _, err := client.Mutate(ctx, c.Client, rs, "status", func(rs *appsv1.ReplicaSet) { rs.Status = status }); err != nil {
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
func (c controller) scale(ctx context.Context, log *slog.Logger, rs *appsv1.ReplicaSet, pods []*corev1.Pod) *failed {
	active := filter(pods, api.PodActive)
	switch diff := len(active) - int(*rs.Spec.Replicas); {
	case diff < 0:
		n := min(-diff, burst)
		log.Debug("creating pods", "count", n)
		_, err := reconcile.SlowStart(n, func(int) error {
			return c.CreatePod(ctx, rs, reconcile.NewPod(&rs.Spec.Template, rs))
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
		if err := reconcile.Parallel(len(doomed), func(i int) error { return c.DeletePod(ctx, rs, doomed[i]) }); err != nil {
			return &failed{"FailedDelete", err}
		}
	}
	return nil
}

// siblings returns the active pods of all ReplicaSets that rs's controller (a Deployment) controls, rs's own
// included: pods on a node with many of them go first.
func (c controller) siblings(ctx context.Context, rs *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	sets := []*appsv1.ReplicaSet{rs}
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil {
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
