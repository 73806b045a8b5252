// Package statefulset keeps the pods of a StatefulSet, each with a name, a host name and claims of its own that outlive
// it. It replaces upstream's statefulset controller.
//
// Vocabulary: a replica is what an ordinal stands for; its pod and its claims are named after it. The current revision is
// the template that the replicas have, the update revision the one that they shall have; they are the same when nothing is
// rolled out. A pod is condemned when its ordinal is not wanted.
//
//	ordered    one thing at a time: a replica is created when all before it are available, removed when all are
//	parallel   everything at once; only an update is bounded by maxUnavailable
//
// What a pass does is decided by view.plan, which is pure.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// hashLabel is the label of revisions that tells what they record.
const hashLabel = "controller.kubernetes.io/hash"

type controller struct{ reconcile.Deps }

// New returns the statefulset controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("statefulset-controller")}
	selector := func(s *appsv1.StatefulSet) *metav1.LabelSelector { return s.Spec.Selector }
	return reconcile.New(c.Deps, reconcile.For[*appsv1.StatefulSet]{
		Controller: "statefulset-controller",
		Also: []reconcile.Source{
			reconcile.Children[*corev1.Pod](selector),
			reconcile.Children[*appsv1.ControllerRevision](selector),
			reconcile.Changed(claimGone),
		},
		Write: reconcile.Writes{
			api.StatefulSetKind:           {"update/status"},
			api.PodKind:                   {"create", "delete", "patch", "update"},
			api.PersistentVolumeClaimKind: {"create", "update"},
			api.ControllerRevisionKind:    {"create", "delete", "patch", "update"},
		},
		Reconcile: c.reconcile,
	})
}

// claimGone wakes the sets in whose way a claim may have been.
func claimGone(ctx context.Context, d reconcile.Deps, before, after *corev1.PersistentVolumeClaim) (keys []api.Key) {
	if after != nil {
		return nil
	}
	for _, key := range reconcile.Every(ctx, d, api.StatefulSetKind, before.Namespace) {
		if strings.Contains(before.Name, "-"+key.Name+"-") {
			keys = append(keys, key)
		}
	}
	return keys
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, set *appsv1.StatefulSet) (reconcile.Result, error) {
	selector := reconcile.Selector(set.Spec.Selector)
	pods, err := reconcile.Claim(ctx, c.Client, set, selector, func(p *corev1.Pod) bool {
		_, ok := ordinal(set, p)
		return ok
	})
	if err != nil {
		return reconcile.Result{}, err
	}
	history, err := reconcile.Claim[*appsv1.ControllerRevision](ctx, c.Client, set, selector)
	if err != nil {
		return reconcile.Result{}, err
	}
	claims, err := c.claims(ctx, set)
	if err != nil {
		return reconcile.Result{}, err
	}
	revisions := &reconcile.Revisions{Owner: set, Template: &set.Spec.Template, HashLabel: hashLabel, Collided: set.Status.CollisionCount, History: history}
	current, update, failure := c.revisions(ctx, set, revisions)
	if failure != nil {
		if _, err := client.Mutate(ctx, c.Client, set, "status", func(s *appsv1.StatefulSet) { s.Status.CollisionCount = revisions.Collided }); err != nil {
			failure = errors.Join(failure, fmt.Errorf("write status: %w", err))
		}
		return reconcile.Result{}, failure
	}
	v := look(set, current, update, pods, claims, time.Now())
	p := v.plan()
	failure = c.act(ctx, log, v, p)
	if failure != nil {
		p.outdated = 0
	}
	status, after := v.status(p.outdated)
	if _, err := client.Mutate(ctx, c.Client, set, "status", func(s *appsv1.StatefulSet) { s.Status = status }); err != nil {
		failure = errors.Join(failure, fmt.Errorf("write status: %w", err))
	}
	live := map[string]bool{current.name: true, update.name: true}
	for _, pod := range pods {
		live[revisionOf(pod)] = true
	}
	err = revisions.Forget(ctx, c.Client, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool { return live[r.Name] })
	return reconcile.Result{After: after}, errors.Join(failure, err)
}

// claims returns the claims of the namespace, if the set has any, by name.
func (c controller) claims(ctx context.Context, set *appsv1.StatefulSet) (map[string]*corev1.PersistentVolumeClaim, error) {
	if len(set.Spec.VolumeClaimTemplates) == 0 {
		return nil, nil
	}
	all, err := client.List[*corev1.PersistentVolumeClaim](ctx, c.Client, client.Query{Namespace: set.Namespace})
	if err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	named := map[string]*corev1.PersistentVolumeClaim{}
	for _, claim := range all {
		named[claim.Name] = claim
	}
	return named, nil
}

// revisions returns the revision that the set has and the one that it shall have.
func (c controller) revisions(ctx context.Context, set *appsv1.StatefulSet, r *reconcile.Revisions) (current, update revision, err error) {
	newest, err := r.Current(ctx, c.Client)
	if err != nil {
		return current, update, err
	}
	update = revision{newest.Name, &set.Spec.Template}
	current = update
	for _, rev := range r.History {
		if rev.Name == set.Status.CurrentRevision && rev.Name != newest.Name {
			template, err := reconcile.RevisionTemplate(rev)
			if err != nil {
				return current, update, err
			}
			current = revision{rev.Name, template}
		}
	}
	return current, update, nil
}

// act does what was planned.
func (c controller) act(ctx context.Context, log *slog.Logger, v *view, p plan) error {
	if len(p.mend)+len(p.create)+len(p.remove) == 0 {
		return nil
	}
	log.Debug("changing pods", "mend", len(p.mend), "create", len(p.create), "delete", len(p.remove))
	for _, pod := range p.mend {
		if err := c.mend(ctx, v, pod); err != nil {
			return c.record(v.set, pod, "Update", err)
		}
	}
	if _, err := reconcile.SlowStart(len(p.create), func(i int) error { return c.create(ctx, v, p.create[i]) }); err != nil {
		return err
	}
	return reconcile.Parallel(len(p.remove), func(i int) error {
		pod := p.remove[i]
		err := c.Client.Delete(ctx, pod, client.DeleteOptions{AnyRevision: true})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // Conflict: a new pod has taken the name
			return nil
		}
		return c.record(v.set, pod, "Delete", err)
	})
}

// record tells how a change of a pod went and returns its error.
func (c controller) record(set *appsv1.StatefulSet, pod *corev1.Pod, verb string, err error) error {
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.Events.Event(set, corev1.EventTypeWarning, "Failed"+verb, fmt.Sprintf("%s Pod %s in StatefulSet %s failed error: %v", verb, pod.Name, set.Name, err))
		}
		return fmt.Errorf("%s pod %s: %w", strings.ToLower(verb), pod.Name, err)
	}
	c.Events.Event(set, corev1.EventTypeNormal, "Successful"+verb, fmt.Sprintf("%s Pod %s in StatefulSet %s successful", verb, pod.Name, set.Name))
	return nil
}

func (c controller) create(ctx context.Context, v *view, pod *corev1.Pod) error {
	err := c.claim(ctx, v, pod)
	if err == nil {
		err = c.keep(ctx, v, pod)
	}
	name := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}}
	if err == nil {
		_, err = client.Create(ctx, c.Client, pod)
		if apierrors.IsAlreadyExists(err) {
			return err // a pod that is not ours, or not yet gone: its end wakes us
		}
	}
	return c.record(v.set, name, "Create", err)
}

// mend brings a pod that exists and its claims into order.
func (c controller) mend(ctx context.Context, v *view, pod *corev1.Pod) error {
	n, _ := ordinal(v.set, pod)
	if inRange(v.set, n) {
		if err := c.claim(ctx, v, pod); err != nil {
			return err
		}
		if !v.identified(pod) {
			if _, err := client.Mutate(ctx, c.Client, pod, "", func(p *corev1.Pod) {
				volumes := p.Spec.Volumes
				v.identify(p, n)
				p.Spec.Volumes = volumes
			}); err != nil {
				return fmt.Errorf("label pod: %w", err)
			}
		}
	}
	return c.keep(ctx, v, pod)
}

// claim creates the claims that pod's replica lacks.
func (c controller) claim(ctx context.Context, v *view, pod *corev1.Pod) error {
	for _, claim := range v.claimsOf(pod) {
		if claim.DeletionTimestamp != nil && pod.UID == "" {
			return fmt.Errorf("claim %s is being deleted", claim.Name)
		}
	}
	for _, claim := range v.newClaims(pod) {
		name := claim.Name
		_, err := client.Create(ctx, c.Client, claim)
		switch {
		case err == nil:
			c.Events.Event(v.set, corev1.EventTypeNormal, "SuccessfulCreate",
				fmt.Sprintf("Create Claim %s Pod %s in StatefulSet %s success", name, pod.Name, v.set.Name))
		case !apierrors.IsAlreadyExists(err):
			c.Events.Event(v.set, corev1.EventTypeWarning, "FailedCreate",
				fmt.Sprintf("Create Claim %s for Pod %s in StatefulSet %s failed error: %v", name, pod.Name, v.set.Name, err))
			return fmt.Errorf("create claim %s: %w", name, err)
		}
	}
	return nil
}

// keep gives the claims of pod the owners that the retention policy asks for.
func (c controller) keep(ctx context.Context, v *view, pod *corev1.Pod) error {
	for _, claim := range v.claimsOf(pod) {
		refs, change := v.owners(claim, pod)
		if !change {
			continue
		}
		if _, err := client.Mutate(ctx, c.Client, claim, "", func(o *corev1.PersistentVolumeClaim) { o.OwnerReferences = refs }); err != nil {
			return fmt.Errorf("keep claim %s: %w", claim.Name, err)
		}
	}
	return nil
}
