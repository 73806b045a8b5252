package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/store"
)

// bindAttempts is how often a binding is tried while others write the pod.
const bindAttempts = 8

// bindPod gives a pod its node. It is written past the pipeline, since no update may change spec.nodeName.
func (d Deps) bindPod(ctx context.Context, parent, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	b := body.(*corev1.Binding)
	var errs field.ErrorList
	if k := b.Target.Kind; k != "" && k != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), k, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(api.BindingKind.GVK().GroupKind(), b.Name, errs)
	}
	pod := parent.(*corev1.Pod)
	for range bindAttempts {
		next, err := bound(pod, b)
		if err != nil {
			return nil, apierrors.NewConflict(api.BindingKind.GroupResource(), pod.Name, err)
		}
		if len(opts.DryRun) > 0 {
			break
		}
		_, err = d.Store.Update(ctx, api.PodKind, next, api.RevisionOf(pod), 0)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, fmt.Errorf("bind pod %s to node %s: %w", api.KeyOf(pod), b.Target.Name, err)
		}
		o, err := d.fresh(ctx, api.PodKind, api.KeyOf(pod))
		if err != nil {
			return nil, err
		}
		pod = o.(*corev1.Pod)
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}, nil
}

// fresh reads an object after everything that was written before has arrived.
func (d Deps) fresh(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if err := d.Store.Sync(ctx); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return d.lookup(ctx, k, key)
}

// bound is pod on the node of b, or says why it cannot go there.
func bound(pod *corev1.Pod, b *corev1.Binding) (*corev1.Pod, error) {
	switch {
	case b.UID != "" && b.UID != pod.UID:
		return nil, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID)
	case b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion:
		return nil, fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, pod.ResourceVersion)
	case pod.DeletionTimestamp != nil:
		return nil, fmt.Errorf("pod %v is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return nil, fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return nil, fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	next := pod.DeepCopy()
	next.Spec.NodeName = b.Target.Name
	next.Status.NominatedNodeName = ""
	// The generation stays: it counts what users change of the spec.
	for k, v := range b.Annotations {
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[k] = v
	}
	for k, v := range b.Labels {
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		next.Labels[k] = v
	}
	api.SetPodCondition(&next.Status, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
	})
	return next, nil
}

// evictPod deletes a pod as the owner of the node asks. There are no disruption budgets in this release, so that none
// can forbid it.
func (d Deps) evictPod(ctx context.Context, parent, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	e := body.(*policyv1.Eviction)
	pod := parent.(*corev1.Pod)
	want := client.DeleteOptions{AnyRevision: true}
	target := &corev1.Pod{TypeMeta: pod.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
	if o := e.DeleteOptions; o != nil {
		want.Grace = o.GracePeriodSeconds
		if o.PropagationPolicy != nil {
			want.Propagation = *o.PropagationPolicy
		}
		if p := o.Preconditions; p != nil {
			if p.UID != nil && *p.UID != pod.UID {
				return nil, apierrors.NewConflict(api.PodKind.GroupResource(), pod.Name, fmt.Errorf(
					"Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, pod.UID))
			}
			if p.ResourceVersion != nil {
				want.AnyRevision = false
				target.ResourceVersion = *p.ResourceVersion
			}
		}
		opts.DryRun = append(opts.DryRun, o.DryRun...)
	}
	if len(opts.DryRun) == 0 {
		if err := d.markEvicted(ctx, pod, target); err != nil {
			return nil, err
		}
		if err := d.Client.Delete(ctx, target, want); err != nil {
			return nil, err
		}
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}, nil
}

// markEvicted says in the pod's status why it will end: what a Job counts as a failure depends on it. The precondition
// of target, if there is one, follows the write.
func (d Deps) markEvicted(ctx context.Context, pod, target *corev1.Pod) error {
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
	marked, err := d.Client.Patch(ctx, api.PodKind, api.KeyOf(pod), client.Patch{Type: types.StrategicMergePatchType, Data: data, Sub: "status"})
	if err != nil {
		return err
	}
	if target.ResourceVersion != "" {
		target.ResourceVersion = marked.GetResourceVersion()
	}
	return nil
}
