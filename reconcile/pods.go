package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// NewPod returns a pod as t describes it, controlled by owner, with a name generated from owner's.
func NewPod(t *corev1.PodTemplateSpec, owner api.Object) *corev1.Pod {
	prefix := owner.GetName() + "-"
	// A name that is no DNS label cannot be a hostname; a trailing dash would then be one thing more that is wrong.
	if len(validation.IsDNS1123Subdomain(owner.GetName()+"-x")) > 0 {
		prefix = owner.GetName()
	}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), GenerateName: prefix,
			Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations),
			Finalizers:      slices.Clone(t.Finalizers),
			OwnerReferences: []metav1.OwnerReference{*ControllerRef(owner)},
		},
		Spec: *t.Spec.DeepCopy(),
	}
}

// CreatePod creates pod for owner and records it. A namespace that is being deleted is reported without an event.
func (d Deps) CreatePod(ctx context.Context, owner api.Object, pod *corev1.Pod) error {
	got, err := client.Create(ctx, d.Client, pod)
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			d.Events.Event(owner, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating: %v", err))
		}
		return fmt.Errorf("create pod: %w", err)
	}
	d.Events.Event(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+got.Name)
	return nil
}

// DeletePod deletes pod for owner, whatever its revision, and records it. One that is gone is deleted.
func (d Deps) DeletePod(ctx context.Context, owner api.Object, pod *corev1.Pod) error {
	err := d.Client.Delete(ctx, pod, client.DeleteOptions{AnyRevision: true})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // Conflict: a new pod has taken the name
		return nil
	}
	if err != nil {
		d.Events.Event(owner, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Error deleting: %v", err))
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	}
	d.Events.Event(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pod.Name)
	return nil
}
