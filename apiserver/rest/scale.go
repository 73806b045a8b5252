package rest

import (
	"context"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// GetScale returns the object's scale.
func (p *Pipeline) GetScale(ctx context.Context, r *Request, version string) (*store.Entry, error) {
	if r.Any.r.scale == nil {
		return nil, r.notFound()
	}
	e, err := p.Get(ctx, r, version)
	if err != nil {
		return nil, err
	}
	return r.scaleEntry(e), nil
}

// scaleOf returns o's scale.
func (r *Request) scaleOf(o api.Object) *autoscalingv1.Scale {
	s := api.ScaleKind.New().(*autoscalingv1.Scale)
	s.ObjectMeta = metav1.ObjectMeta{
		Name: o.GetName(), Namespace: o.GetNamespace(), UID: o.GetUID(),
		ResourceVersion: o.GetResourceVersion(), CreationTimestamp: o.GetCreationTimestamp(),
	}
	s.Spec.Replicas, s.Status.Replicas = r.Any.r.scale.replicas(o)
	s.Status.Selector = r.Any.r.scale.selector(o)
	return s
}

func (r *Request) scaleEntry(e *store.Entry) *store.Entry {
	return &store.Entry{Object: r.scaleOf(e.Object), Key: e.Key, Revision: e.Revision}
}

// scaleBy changes the object through change, which gets its present scale and returns the wanted one.
func (p *Pipeline) scaleBy(ctx context.Context, r *Request, change func(now *autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (*store.Entry, error) {
	if r.Any.r.scale == nil {
		return nil, r.notFound()
	}
	e, _, err := p.modify(ctx, r, false, func(old api.Object) (api.Object, error) {
		want, err := change(r.scaleOf(old))
		if err != nil {
			return nil, err
		}
		if err := r.checkName(want); err != nil {
			return nil, err
		}
		if want.Spec.Replicas < 0 {
			return nil, apierrors.NewInvalid(api.ScaleKind.GVK().GroupKind(), want.Name, fieldErrors{
				field.Invalid(field.NewPath("spec", "replicas"), want.Spec.Replicas, "must be greater than or equal to 0")})
		}
		now := old.DeepCopyObject().(api.Object)
		now.SetResourceVersion(want.ResourceVersion)
		now.SetUID(want.UID)
		r.Any.r.scale.set(now, want.Spec.Replicas)
		return now, nil
	})
	if err != nil {
		return nil, err
	}
	return r.scaleEntry(e), nil
}

func (p *Pipeline) updateScale(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	if r.Any.r.scale != nil && api.KindOf(o) == r.Any.Kind {
		o = r.scaleOf(o) // a component gives the object itself
	}
	want, ok := o.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest("expected a Scale of autoscaling/v1")
	}
	return p.scaleBy(ctx, r, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return want, nil })
}

func (p *Pipeline) patchScale(ctx context.Context, r *Request, patch Patch) (*store.Entry, error) {
	change, err := r.patcher(patch)
	if err != nil {
		return nil, err
	}
	return p.scaleBy(ctx, r, func(now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		rv := now.ResourceVersion
		o, err := change(now, api.ScaleKind.New())
		if err != nil {
			return nil, err
		}
		s := o.(*autoscalingv1.Scale)
		if s.ResourceVersion == rv { // the patch did not name one
			s.ResourceVersion = ""
		}
		return s, nil
	})
}

// applyScale serves server-side apply of a Scale: the replicas become the manager's.
func (p *Pipeline) applyScale(ctx context.Context, r *Request, u *unstructured.Unstructured) (*store.Entry, error) {
	want := api.ScaleKind.New().(*autoscalingv1.Scale)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, want); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return p.scaleBy(ctx, r, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return want, nil })
}
