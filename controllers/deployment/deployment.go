// Package deployment rolls a Deployment's template out over ReplicaSets. It replaces upstream's deployment
// controller.
//
// Vocabulary: the new set is the ReplicaSet whose template equals the Deployment's; the old sets are all others that
// it controls. A revision numbers templates; kubectl rollout undo writes an old template, which makes the old set of that
// template the new set under the next revision.
//
// One pass reads everything (gather), decides by pure functions (plan.go, progress.go), changes
// ReplicaSets (act) and writes the status, once and last. A pass that changed a set leaves the rest to the next
// one, which that change wakes.
package deployment

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

type controller struct{ reconcile.Deps }

// New returns the deployment controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("deployment-controller")}
	return reconcile.New(c.Deps, reconcile.For[*appsv1.Deployment]{
		Controller: "deployment-controller",
		Also: []reconcile.Source{
			reconcile.Children[*appsv1.ReplicaSet](func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector }),
			// Recreate waits for the last old pod to go.
			reconcile.Changed(func(ctx context.Context, d reconcile.Deps, before, after *corev1.Pod) []api.Key {
				if before == nil || after != nil && !api.PodTerminal(after) {
					return nil
				}
				return recreating(ctx, d, before)
			}, api.ReplicaSetKind),
		},
		Write: reconcile.Writes{
			api.DeploymentKind: {"update/status"},
			api.ReplicaSetKind: {"create", "update", "delete", "patch"},
		},
		Reconcile: c.reconcile,
	})
}

// recreating returns the Deployment of a pod when its strategy is Recreate.
func recreating(ctx context.Context, d reconcile.Deps, p *corev1.Pod) []api.Key {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != api.ReplicaSetKind.Kind {
		return nil
	}
	rs, err := client.Get[*appsv1.ReplicaSet](ctx, d.Client, api.Key{Namespace: p.Namespace, Name: ref.Name})
	if err != nil {
		return nil // a set that is gone has woken its Deployment itself
	}
	if ref = metav1.GetControllerOfNoCopy(rs); ref == nil || ref.Kind != api.DeploymentKind.Kind {
		return nil
	}
	dep, err := client.Get[*appsv1.Deployment](ctx, d.Client, api.Key{Namespace: p.Namespace, Name: ref.Name})
	if err != nil || dep.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []api.Key{api.KeyOf(dep)}
}

// rollout is one pass over one Deployment.
type rollout struct {
	controller
	log *slog.Logger
	now time.Time
	d   *appsv1.Deployment

	all    []*appsv1.ReplicaSet
	fresh  *appsv1.ReplicaSet   // the new set, nil while there is none
	old    []*appsv1.ReplicaSet // by age, oldest first
	status appsv1.DeploymentStatus
	scaled bool // a set was created or scaled

	revision string // to be written down with the status; "": it stays as it is
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, d *appsv1.Deployment) (reconcile.Result, error) {
	selector := reconcile.Selector(d.Spec.Selector)
	if selector.Empty() {
		c.Events.Event(d, corev1.EventTypeWarning, "SelectingAll",
			"This deployment is selecting all pods. A non-empty selector is required.")
		_, err := client.Mutate(ctx, c.Client, d, "status", func(d *appsv1.Deployment) { d.Status.ObservedGeneration = d.Generation })
		return reconcile.Result{}, err
	}
	all, err := reconcile.Claim[*appsv1.ReplicaSet](ctx, c.Client, d, selector)
	if err != nil {
		return reconcile.Result{}, err
	}
	r := &rollout{controller: c, log: log, now: time.Now(), d: d, all: all, status: *d.Status.DeepCopy()}
	r.sort()
	failure := r.act(ctx)
	res := r.finish()
	if _, err := client.Mutate(ctx, c.Client, d, "status", r.write); err != nil {
		return res, fmt.Errorf("write status: %w", err)
	}
	return res, failure
}

// write is what the pass has to say of the Deployment. The revision goes with the status, as upstream has it: an annotation that
// is written with the spec makes a new generation, which nobody asked for.
func (r *rollout) write(d *appsv1.Deployment) {
	d.Status = r.status
	if r.revision == "" {
		return
	}
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[revisionAnnotation] = r.revision
}

// sort fills fresh and old from all.
func (r *rollout) sort() {
	byAge(r.all)
	r.fresh, r.old = newSet(r.d, r.all), nil
	for _, rs := range r.all {
		if rs != r.fresh {
			r.old = append(r.old, rs)
		}
	}
}

// act changes ReplicaSets as far as one pass can.
func (r *rollout) act(ctx context.Context) error {
	switch {
	case r.d.DeletionTimestamp != nil:
		return nil
	case r.d.Spec.Paused || resized(r.d, r.all):
		if err := r.revise(ctx); err != nil {
			return err
		}
		if err := r.apply(ctx, proportional(r.d, r.fresh, r.old)); err != nil {
			return err
		}
		if r.d.Spec.Paused {
			return r.forget(ctx)
		}
		return nil
	case r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		return r.recreate(ctx)
	}
	return r.roll(ctx)
}

// roll takes a step of a rolling update.
func (r *rollout) roll(ctx context.Context) error {
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if err := r.revise(ctx); err != nil || r.scaled {
		return err
	}
	if up := grow(r.d, r.fresh, r.all); up != nil {
		return r.apply(ctx, []scaling{*up})
	}
	if err := r.apply(ctx, shrink(r.d, r.fresh, r.old)); err != nil || r.scaled {
		return err
	}
	if complete(r.d, statusOf(r.d, r.fresh, r.all)) {
		return r.forget(ctx)
	}
	return nil
}

// recreate removes all old pods before the first new one is made.
func (r *rollout) recreate(ctx context.Context) error {
	if err := r.revise(ctx); err != nil {
		return err
	}
	var down []scaling
	for _, rs := range r.old {
		if *rs.Spec.Replicas > 0 {
			down = append(down, scaling{rs, 0})
		}
	}
	if len(down) > 0 {
		return r.apply(ctx, down)
	}
	running, err := r.oldPodsRun(ctx)
	if err != nil || running {
		return err
	}
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if err := r.revise(ctx); err != nil || r.scaled {
		return err
	}
	if *r.fresh.Spec.Replicas != *r.d.Spec.Replicas {
		return r.apply(ctx, []scaling{{r.fresh, *r.d.Spec.Replicas}})
	}
	if complete(r.d, statusOf(r.d, r.fresh, r.all)) {
		return r.forget(ctx)
	}
	return nil
}

func (r *rollout) oldPodsRun(ctx context.Context) (bool, error) {
	for _, rs := range r.old {
		pods, err := client.List[*corev1.Pod](ctx, r.Client, client.Query{Namespace: rs.Namespace, Owner: rs.UID})
		if err != nil {
			return false, fmt.Errorf("list pods of %s: %w", rs.Name, err)
		}
		for _, p := range pods {
			if !api.PodTerminal(p) {
				return true, nil
			}
		}
	}
	return false, nil
}

// ensureNew creates the new set where there is none.
func (r *rollout) ensureNew(ctx context.Context) error {
	if r.fresh != nil {
		return nil
	}
	rs := makeSet(r.d, r.old)
	got, err := client.Create(ctx, r.Client, rs.DeepCopy())
	switch {
	case apierrors.IsAlreadyExists(err):
		taken, gerr := client.Get[*appsv1.ReplicaSet](ctx, r.Client, api.KeyOf(rs))
		if gerr != nil {
			return fmt.Errorf("get replicaset %s: %w", rs.Name, gerr)
		}
		if !metav1.IsControlledBy(taken, r.d) || !sameTemplate(&taken.Spec.Template, &r.d.Spec.Template) {
			// Another template has the same hash: the next pass tries with another collision count.
			n := int32(1)
			if r.status.CollisionCount != nil {
				n = *r.status.CollisionCount + 1
			}
			r.status.CollisionCount = &n
			return fmt.Errorf("create replicaset %s: %w", rs.Name, err)
		}
		got = taken
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return err
	case err != nil:
		message := fmt.Sprintf("Failed to create new replica set %q: %v", rs.Name, err)
		if hasDeadline(r.d) {
			setCondition(&r.status, progressing(corev1.ConditionFalse, "ReplicaSetCreateError", message, r.now))
		}
		r.Events.Event(r.d, corev1.EventTypeWarning, "ReplicaSetCreateError", message)
		return fmt.Errorf("create replicaset %s: %w", rs.Name, err)
	default:
		r.log.Info("created replicaset", "replicaset", got.Name)
		if n := *got.Spec.Replicas; n > 0 {
			r.Events.Event(r.d, corev1.EventTypeNormal, "ScalingReplicaSet",
				fmt.Sprintf("Scaled up replica set %s from 0 to %d", got.Name, n))
		}
		if hasDeadline(r.d) {
			setCondition(&r.status, progressing(corev1.ConditionTrue, "NewReplicaSetCreated",
				fmt.Sprintf("Created new replica set %q", got.Name), r.now))
		}
		r.scaled = true
	}
	r.all = append(r.all, got)
	r.fresh = got
	return nil
}

// revise brings the new set's annotations up to date, and notes its revision for the Deployment. Without a new set there is
// nothing to do.
func (r *rollout) revise(ctx context.Context) error {
	if r.fresh == nil {
		return nil
	}
	rs, err := client.Mutate(ctx, r.Client, r.fresh, "", func(rs *appsv1.ReplicaSet) {
		annotate(r.d, rs, lastRevision(r.old)+1)
		rs.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	})
	if err != nil {
		return fmt.Errorf("annotate replicaset %s: %w", r.fresh.Name, err)
	}
	r.replace(r.fresh, rs)
	r.revision = rs.Annotations[revisionAnnotation]
	if hasDeadline(r.d) && condition(&r.status, appsv1.DeploymentProgressing) == nil {
		setCondition(&r.status, progressing(corev1.ConditionTrue, "FoundNewReplicaSet",
			fmt.Sprintf("Found new replica set %q", rs.Name), r.now))
	}
	return nil
}

// apply scales sets. Scalings to the present size only renew annotations.
func (r *rollout) apply(ctx context.Context, ss []scaling) error {
	for _, s := range ss {
		before := *s.set.Spec.Replicas
		rs, err := client.Mutate(ctx, r.Client, s.set, "", func(rs *appsv1.ReplicaSet) {
			rs.Spec.Replicas = &s.to
			annotateSize(r.d, rs)
		})
		if err != nil {
			return fmt.Errorf("scale replicaset %s: %w", s.set.Name, err)
		}
		r.replace(s.set, rs)
		if s.to == before {
			continue
		}
		r.scaled = true
		verb := "up"
		if s.to < before {
			verb = "down"
		}
		r.Events.Event(r.d, corev1.EventTypeNormal, "ScalingReplicaSet",
			fmt.Sprintf("Scaled %s replica set %s from %d to %d", verb, rs.Name, before, s.to))
	}
	return nil
}

// replace takes now for before everywhere.
func (r *rollout) replace(before, now *appsv1.ReplicaSet) {
	for _, list := range [][]*appsv1.ReplicaSet{r.all, r.old} {
		for i := range list {
			if list[i] == before {
				list[i] = now
			}
		}
	}
	if r.fresh == before {
		r.fresh = now
	}
}

// forget deletes old sets beyond the history limit.
func (r *rollout) forget(ctx context.Context) error {
	for _, rs := range surplus(r.d, r.old) {
		err := r.Client.Delete(ctx, rs, client.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete old replicaset %s: %w", rs.Name, err)
		}
	}
	return nil
}

// finish computes the status.
func (r *rollout) finish() reconcile.Result {
	before := r.d.Status
	s := statusOf(r.d, r.fresh, r.all)
	s.CollisionCount, s.Conditions = r.status.CollisionCount, r.status.Conditions
	setCondition(&s, availability(r.d, &s, r.now))
	r.status = s
	if r.d.DeletionTimestamp != nil {
		return reconcile.Result{}
	}
	pause(r.d, &r.status, r.now)
	if r.d.Spec.Paused {
		return reconcile.Result{}
	}
	return progress(r.d, before, &r.status, r.fresh, r.old, r.now)
}
