package builtin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// bindAttempts is how often a binding is tried while others write the pod, and bindPause the time between.
const (
	bindAttempts = 8
	bindPause    = 10 * time.Millisecond
)

// bindings gives pods their nodes, as pods/binding does; the Binding's name says which pod.
func bindings(d Deps) *rest.Resource[*corev1.Binding] {
	return &rest.Resource[*corev1.Binding]{
		Name: anyName,
		Act: func(ctx context.Context, b *corev1.Binding, dryRun bool) (*metav1.Status, error) {
			if b.Name == "" {
				return nil, apierrors.NewBadRequest("Name parameter required.")
			}
			if err := checkBinding(b); err != nil {
				return nil, err
			}
			pod, err := d.fresh(ctx, api.PodKind, api.KeyOf(b))
			if err != nil {
				return nil, err
			}
			return d.assign(ctx, pod.(*corev1.Pod), b, dryRun)
		},
	}
}

// bindPod gives the parent, a pod, its node.
func (d Deps) bindPod(ctx context.Context, parent, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	b := body.(*corev1.Binding)
	if err := checkBinding(b); err != nil {
		return nil, err
	}
	st, err := d.assign(ctx, parent.(*corev1.Pod), b, len(opts.DryRun) > 0)
	if err != nil {
		return nil, err
	}
	return st, nil
}

func checkBinding(b *corev1.Binding) error {
	var errs field.ErrorList
	target := field.NewPath("target")
	if k := b.Target.Kind; k != "" && k != "Node" {
		errs = append(errs, field.NotSupported(target.Child("kind"), k, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(target.Child("name"), ""))
	} else if len(errs) == 0 {
		errs = texts(target.Child("name"), b.Target.Name, isName(b.Target.Name))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(api.BindingKind.GVK().GroupKind(), b.Name, errs)
	}
	return nil
}

// assign writes the pod past the pipeline, since no update may change spec.nodeName.
func (d Deps) assign(ctx context.Context, pod *corev1.Pod, b *corev1.Binding, dryRun bool) (*metav1.Status, error) {
	done := &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: http.StatusCreated}
	for n := 1; ; n++ {
		next, err := bound(pod, b)
		if err != nil {
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, err)
		}
		if dryRun {
			return done, nil
		}
		_, err = d.Store.Update(ctx, api.PodKind, next, api.RevisionOf(pod), 0)
		switch {
		case err == nil:
			return done, nil
		case !errors.Is(err, store.ErrConflict):
			return nil, fmt.Errorf("bind pod %s to node %s: %w", api.KeyOf(pod), b.Target.Name, err)
		case n == bindAttempts:
			return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, fmt.Errorf("others have written the pod %d times meanwhile", n))
		}
		if err := run.Pause(ctx, bindPause); err != nil {
			return nil, err
		}
		o, err := d.fresh(ctx, api.PodKind, api.KeyOf(pod))
		if err != nil {
			return nil, err
		}
		pod = o.(*corev1.Pod)
	}
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
