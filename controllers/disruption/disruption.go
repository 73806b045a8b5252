// Package disruption computes how many pods of a PodDisruptionBudget may be evicted, and takes back the mark of pods that
// were to be disrupted and were not. It replaces upstream's disruption controller.
//
// Vocabulary: a pod is healthy when it is ready and nobody is about to delete it. The API server takes from what is allowed
// with each eviction, and notes the pod as disrupted; this controller forgets the note when the pod is being deleted, or
// was not within two minutes.
//
// Keys are "budget:NAME" and "pod:NAME".
package disruption

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	budgetKey = "budget:"
	podKey    = "pod:"
)

type controller struct{ reconcile.Deps }

// New returns the disruption controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("controllermanager")}
	return reconcile.NewKeyed(c.Deps, reconcile.Keyed{
		Controller: "disruption-controller",
		Sources: []reconcile.Source{
			reconcile.Mapped(func(b *policyv1.PodDisruptionBudget) []api.Key {
				return []api.Key{{Namespace: b.Namespace, Name: budgetKey + b.Name}}
			}),
			reconcile.MappedBy(budgetsOf, api.PodDisruptionBudgetKind),
		},
		Read: []*api.Kind{api.DeploymentKind, api.ReplicaSetKind, api.StatefulSetKind, api.ReplicationControllerKind,
			api.CustomResourceDefinitionKind},
		Write: reconcile.Writes{
			api.PodDisruptionBudgetKind: {"update/status"},
			api.PodKind:                 {"update/status"},
			nil:                         {"get/scale"},
		},
		Run: c.run,
	})
}

// budgetsOf returns the keys of p, if it is a target of disruption, and of the budgets that select it.
func budgetsOf(ctx context.Context, d reconcile.Deps, p *corev1.Pod) (keys []api.Key) {
	if _, ok := stale(p, time.Now()); ok {
		keys = append(keys, api.Key{Namespace: p.Namespace, Name: podKey + p.Name})
	}
	budgets, err := client.List[*policyv1.PodDisruptionBudget](ctx, d.Client, client.Query{Namespace: p.Namespace})
	if err != nil {
		d.Log.Warn("list disruption budgets", "err", err)
		return keys
	}
	for _, b := range budgets {
		if reconcile.Selector(b.Spec.Selector).Matches(labels.Set(p.Labels)) {
			keys = append(keys, api.Key{Namespace: b.Namespace, Name: budgetKey + b.Name})
		}
	}
	return keys
}

func (c controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	var res reconcile.Result
	var err error
	if name, ok := strings.CutPrefix(key.Name, podKey); ok {
		res, err = c.pod(ctx, api.Key{Namespace: key.Namespace, Name: name})
	} else {
		res, err = c.budget(ctx, log, api.Key{Namespace: key.Namespace, Name: strings.TrimPrefix(key.Name, budgetKey)})
	}
	if apierrors.IsNotFound(err) { // gone meanwhile
		return reconcile.Result{}, nil
	}
	return res, err
}

// pod takes back the mark of a pod that was not disrupted.
func (c controller) pod(ctx context.Context, key api.Key) (reconcile.Result, error) {
	p, err := client.Get[*corev1.Pod](ctx, c.Client, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	left, ok := stale(p, time.Now())
	if !ok || left > 0 {
		return reconcile.Result{After: left}, nil
	}
	_, err = client.Mutate(ctx, c.Client, p, "status", func(p *corev1.Pod) {
		api.SetPodCondition(&p.Status, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse,
			ObservedGeneration: p.Generation, LastTransitionTime: metav1.Now()})
	})
	return reconcile.Result{}, err
}

// budget writes a budget's status. What cannot be computed allows nothing.
func (c controller) budget(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	b, err := client.Get[*policyv1.PodDisruptionBudget](ctx, c.Client, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	now := time.Now()
	status, res, failure := c.compute(ctx, b, now)
	if failure != nil {
		log.Debug("budget is not known", "err", failure)
		status = closed(b, failure, now)
	}
	if _, err := client.Mutate(ctx, c.Client, b, "status", func(b *policyv1.PodDisruptionBudget) { b.Status = status }); err != nil {
		return res, fmt.Errorf("write status: %w", err)
	}
	return res, nil // a change of the pods brings us back
}

func (c controller) compute(ctx context.Context, b *policyv1.PodDisruptionBudget, now time.Time) (s policyv1.PodDisruptionBudgetStatus, res reconcile.Result, err error) {
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Namespace: b.Namespace, Labels: reconcile.Selector(b.Spec.Selector)})
	if err != nil {
		return s, res, fmt.Errorf("list pods: %w", err)
	}
	if len(pods) == 0 {
		c.Events.Event(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	n, err := count(b, len(pods), func() (int32, error) { return c.scale(ctx, b, pods) })
	if err != nil {
		c.Events.Event(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", fmt.Sprintf("Failed to calculate the number of expected pods: %v", err))
		return s, res, err
	}
	still, late, after := pending(b, pods, now)
	for _, p := range late {
		c.Events.Event(p, corev1.EventTypeWarning, "NotDeleted",
			fmt.Sprintf("Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name))
	}
	return statusOf(b, pods, n, still), reconcile.Result{After: after}, nil
}

// scale returns how many pods the controllers of these shall have.
func (c controller) scale(ctx context.Context, b *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (int32, error) {
	seen := map[types.UID]bool{}
	total := int32(0)
	var unmanaged bool
	for _, p := range pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			unmanaged = true
			continue
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		owner, n, err := c.replicas(ctx, p, ref)
		if err != nil {
			return 0, err
		}
		if owner == ref.UID || !seen[owner] { // a Deployment may have several ReplicaSets
			total += n
		}
		seen[owner] = true
	}
	if unmanaged {
		c.Events.Event(b, corev1.EventTypeWarning, "UnmanagedPods", fmt.Sprintf("Pods selected by this PodDisruptionBudget (selector: %v) were found to be unmanaged. "+
			"As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.", b.Spec.Selector))
	}
	return total, nil
}

// replicas returns who decides how many pods there are beside p, and how many.
func (c controller) replicas(ctx context.Context, p *corev1.Pod, ref *metav1.OwnerReference) (types.UID, int32, error) {
	key := api.Key{Namespace: p.Namespace, Name: ref.Name}
	switch {
	case ref.Kind == api.ReplicationControllerKind.Kind && ref.APIVersion == "v1":
		return replicas(ctx, c, key, ref, func(o *corev1.ReplicationController) *int32 { return o.Spec.Replicas })
	case ref.Kind == api.StatefulSetKind.Kind && ref.APIVersion == "apps/v1":
		return replicas(ctx, c, key, ref, func(o *appsv1.StatefulSet) *int32 { return o.Spec.Replicas })
	case ref.Kind != api.ReplicaSetKind.Kind || ref.APIVersion != "apps/v1":
		return c.scaled(ctx, p, ref)
	}
	rs, err := client.Get[*appsv1.ReplicaSet](ctx, c.Client, key)
	if err == nil && rs.UID == ref.UID {
		if d := metav1.GetControllerOfNoCopy(rs); d != nil && d.Kind == api.DeploymentKind.Kind && d.APIVersion == "apps/v1" {
			return replicas(ctx, c, api.Key{Namespace: p.Namespace, Name: d.Name}, d, func(o *appsv1.Deployment) *int32 { return o.Spec.Replicas })
		}
	}
	return replicas(ctx, c, key, ref, func(o *appsv1.ReplicaSet) *int32 { return o.Spec.Replicas })
}

// scaled is replicas for a controller of any other kind, if it has a scale.
func (c controller) scaled(ctx context.Context, p *corev1.Pod, ref *metav1.OwnerReference) (types.UID, int32, error) {
	kind, err := reconcile.KindNamed(ctx, c.Client, ref.APIVersion, ref.Kind)
	if apimeta.IsNoMatchError(err) {
		return "", 0, noScale(p, ref)
	}
	if err != nil {
		return "", 0, fmt.Errorf("find kind %s of %s: %w", ref.Kind, ref.APIVersion, err)
	}
	s, err := c.Client.GetScale(ctx, kind, api.Key{Namespace: p.Namespace, Name: ref.Name})
	switch {
	case apierrors.IsNotFound(err):
		return "", 0, noScale(p, ref)
	case err != nil:
		return "", 0, fmt.Errorf("get scale of %s %s: %w", ref.Kind, ref.Name, err)
	case s.UID != ref.UID:
		return "", 0, noController(ref)
	}
	return s.UID, s.Spec.Replicas, nil
}

func noController(ref *metav1.OwnerReference) error {
	return fmt.Errorf("found no controllers for pods of %s %s", ref.Kind, ref.Name)
}

func replicas[T api.Object](ctx context.Context, c controller, key api.Key, ref *metav1.OwnerReference, of func(T) *int32) (types.UID, int32, error) {
	o, err := client.Get[T](ctx, c.Client, key)
	switch {
	case apierrors.IsNotFound(err) || err == nil && o.GetUID() != ref.UID:
		return "", 0, noController(ref)
	case err != nil:
		return "", 0, fmt.Errorf("get %s: %w", ref.Name, err)
	}
	n := of(o)
	if n == nil {
		return "", 0, errors.New(ref.Name + " says no number of replicas")
	}
	return o.GetUID(), *n, nil
}
