package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	pdbstatus "k8s.io/component-helpers/apps/poddisruptionbudget"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

const (
	// evictAttempts is how often an eviction is tried while others write the pod or its budget, and evictPause the time between.
	evictAttempts = 20
	evictPause    = 50 * time.Millisecond
	// maxDisrupted bounds how many evictions the controller of a budget may be behind.
	maxDisrupted = 2000
)

// eviction is one request to evict a pod: a deletion that waits until no disruption budget forbids it.
type eviction struct {
	Deps
	key  api.Key
	opts metav1.DeleteOptions
	dry  bool
}

func (d Deps) evictPod(ctx context.Context, parent, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	e := eviction{Deps: d, key: api.KeyOf(parent)}
	if o := body.(*policyv1.Eviction).DeleteOptions; o != nil {
		e.opts = *o
	}
	if deref(e.opts.IgnoreStoreReadErrorWithClusterBreakingPotential) {
		return nil, apierrors.NewInvalid(api.EvictionKind.GVK().GroupKind(), e.key.Name, field.ErrorList{field.Invalid(
			field.NewPath("deleteOptions", "ignoreStoreReadErrorWithClusterBreakingPotential"), true, "can not be set for pod eviction, try after removing the option")})
	}
	if a, b := opts.DryRun, e.opts.DryRun; len(a) > 0 && len(b) > 0 && !slices.Equal(a, b) {
		return nil, apierrors.NewInternalError(fmt.Errorf("Non-matching dry-run options in request and content: %v and %v", a, b))
	}
	e.dry = len(opts.DryRun)+len(e.opts.DryRun) > 0
	for n := 0; ; n++ {
		settled, err := e.once(ctx)
		if settled || !apierrors.IsConflict(err) || e.wantsRevision() || n == evictAttempts {
			return evicted(err)
		}
		if err := run.Pause(ctx, evictPause); err != nil {
			return nil, err
		}
	}
}

func evicted(err error) (runtime.Object, error) {
	if err != nil {
		return nil, err
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}, nil
}

// wantsRevision says that the client names the state of the pod that it means.
func (e *eviction) wantsRevision() bool {
	return e.opts.Preconditions != nil && e.opts.Preconditions.ResourceVersion != nil
}

// once evicts the pod as it is now. A pod that ends, or has not begun, disrupts nothing. Settled says that a conflict is the
// answer, since the budget has paid.
func (e *eviction) once(ctx context.Context) (settled bool, err error) {
	o, err := e.fresh(ctx, api.PodKind, e.key)
	if err != nil {
		return true, err
	}
	pod := o.(*corev1.Pod)
	switch {
	case api.PodTerminal(pod) || pod.DeletionTimestamp != nil:
		return false, e.remove(ctx, pod, "")
	case pod.Status.Phase == corev1.PodPending:
		return false, e.remove(ctx, pod, pod.ResourceVersion) // it may become ready meanwhile
	}
	budgets := e.budgets(pod)
	switch len(budgets) {
	case 0:
		return false, e.remove(ctx, pod, "")
	case 1:
	default:
		err := apierrors.NewInternalError(errors.New(""))
		err.ErrStatus.Message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
		err.ErrStatus.Reason, err.ErrStatus.Details = "", nil
		return true, err
	}
	b := budgets[0]
	if !api.PodReady(pod) && guardsOnlyHealthy(b) {
		err := e.remove(ctx, pod, pod.ResourceVersion)
		if apierrors.IsConflict(err) && !e.wantsRevision() {
			err = notYet(b)
		}
		return true, err
	}
	if err := e.spend(ctx, b); err != nil {
		return false, err
	}
	return true, e.remove(ctx, pod, "")
}

// budgets are those that select the pod.
func (e *eviction) budgets(pod *corev1.Pod) (found []*policyv1.PodDisruptionBudget) {
	for entry := range e.Store.Snapshot(api.PodDisruptionBudgetKind).All(pod.Namespace, api.Key{}) {
		if b := entry.Object.(*policyv1.PodDisruptionBudget); podspec.SelectorMatches(b.Spec.Selector, pod.Labels) {
			found = append(found, b)
		}
	}
	return found
}

// guardsOnlyHealthy says that pods that are not ready can go without regard to what b allows.
func guardsOnlyHealthy(b *policyv1.PodDisruptionBudget) bool {
	return deref(b.Spec.UnhealthyPodEvictionPolicy) == policyv1.AlwaysAllow ||
		b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// spend takes one disruption from the budget, or says why there is none.
func (e *eviction) spend(ctx context.Context, b *policyv1.PodDisruptionBudget) error {
	if err := exhausted(b); err != nil || e.dry {
		return err
	}
	next := b.DeepCopy()
	if next.Status.DisruptionsAllowed--; next.Status.DisruptionsAllowed == 0 {
		pdbstatus.UpdateDisruptionAllowedCondition(next)
	}
	// The controller does not count the pod as healthy from now on, and waits for its deletion for a while.
	if next.Status.DisruptedPods == nil {
		next.Status.DisruptedPods = map[string]metav1.Time{}
	}
	next.Status.DisruptedPods[e.key.Name] = metav1.Now()
	_, err := e.Client.Update(ctx, next, "status")
	return err
}

// notYet is the refusal of an eviction that can be tried again soon.
func notYet(b *policyv1.PodDisruptionBudget) error {
	return refused(apierrors.NewTooManyRequests(violates, 10), fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
}

const violates = "Cannot evict pod as it would violate the pod's disruption budget."

// refused adds the cause by which clients know that a budget is the reason.
func refused(err *apierrors.StatusError, why string) error {
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: why})
	return err
}

// exhausted says why b allows no disruption now.
func exhausted(b *policyv1.PodDisruptionBudget) error {
	s := &b.Status
	never := func(text, why string) error {
		return refused(apierrors.NewForbidden(schema.GroupResource{Group: "policy", Resource: "poddisruptionbudget"}, b.Name, errors.New(text)),
			fmt.Sprintf("The disruption budget %s does not allow evicting pods currently: %s", b.Name, why))
	}
	switch {
	case s.ObservedGeneration < b.Generation:
		return notYet(b)
	case s.DisruptionsAllowed < 0:
		return never("pdb disruptions allowed is negative", "pdb disruptions allowed is negative")
	case len(s.DisruptedPods) > maxDisrupted:
		return never("DisruptedPods map too big - too many evictions not confirmed by PDB controller", "too many pending evictions not confirmed by PDB controller")
	case s.DisruptionsAllowed > 0:
		return nil
	}
	c := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	said := c != nil && c.Status == metav1.ConditionFalse && c.Message != ""
	why := fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", b.Name)
	switch {
	case said && c.Reason == policyv1.SyncFailedReason:
		why += " because it failed sync: " + c.Message
	case s.CurrentHealthy <= s.DesiredHealthy:
		why = fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy)
	case said:
		why += fmt.Sprintf(" (%s): %s", c.Reason, c.Message)
	}
	return refused(apierrors.NewTooManyRequests(violates, 0), why)
}

// remove deletes the pod: in the state that the client named, in state rev where that is not empty, else in any.
func (e *eviction) remove(ctx context.Context, pod *corev1.Pod, rev string) error {
	want := client.DeleteOptions{AnyRevision: true, Grace: e.opts.GracePeriodSeconds, Propagation: deref(e.opts.PropagationPolicy)}
	target := &corev1.Pod{TypeMeta: pod.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: rev}}
	if p := e.opts.Preconditions; p != nil {
		if p.UID != nil && *p.UID != pod.UID {
			return apierrors.NewConflict(api.PodKind.GroupResource(), pod.Name, fmt.Errorf(
				"Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, pod.UID))
		}
		if p.ResourceVersion != nil {
			target.ResourceVersion = *p.ResourceVersion
		}
	}
	if e.dry {
		return nil
	}
	want.AnyRevision = target.ResourceVersion == ""
	if err := e.mark(ctx, pod, target); err != nil {
		return err
	}
	return e.Client.Delete(ctx, target, want)
}

// mark says in the pod's status why it will end: what a Job counts as a failure depends on it. The precondition of
// target, if there is one, follows the write.
func (e *eviction) mark(ctx context.Context, pod, target *corev1.Pod) error {
	if api.PodTerminal(pod) || pod.DeletionTimestamp != nil {
		return nil
	}
	meta := map[string]any{"uid": pod.UID}
	if target.ResourceVersion != "" {
		meta["resourceVersion"] = target.ResourceVersion
	}
	data, err := json.Marshal(map[string]any{"metadata": meta, "status": map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI",
		Message: "Eviction API: evicting", LastTransitionTime: metav1.Now(), ObservedGeneration: pod.Generation,
	}}}})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	marked, err := e.Client.Patch(ctx, api.PodKind, api.KeyOf(pod), client.Patch{Type: types.StrategicMergePatchType, Data: data, Sub: "status"})
	if err != nil {
		return err
	}
	if target.ResourceVersion != "" {
		target.ResourceVersion = marked.GetResourceVersion()
	}
	return nil
}
