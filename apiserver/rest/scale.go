package rest

import (
	"context"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

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
	if err := r.Any.r.scale.check(e.Object); err != nil {
		return nil, err
	}
	return r.scaleEntry(e), nil
}

// replicasPaths are the fields that /scale writes, by the apiVersions in which fields may be owned.
func (a Any) replicasPaths() managedfields.ResourcePathMappings {
	if c := a.r.custom; c != nil {
		return c.ReplicasPaths
	}
	return managedfields.ResourcePathMappings{a.Kind.APIVersion(): fieldpath.MakePathOrDie("spec", "replicas")}
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

// scaleBy changes the object through change, which gets its present scale with the part of the managedFields that is about
// it, and returns the wanted one. Who owns the replicas is settled as for any object, and carried over to the parent.
func (p *Pipeline) scaleBy(ctx context.Context, r *Request, change func(scale *Request, now *autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (*store.Entry, error) {
	if r.Any.r.scale == nil {
		return nil, r.notFound()
	}
	k := r.Any.Kind
	asScale := *r
	asScale.Any = Any{Kind: api.ScaleKind, r: &erased{set: func(api.Object) {}}}
	owned := *r
	owned.owned = true
	e, _, err := p.modify(ctx, &owned, false, func(old api.Object) (api.Object, error) {
		if err := r.Any.r.scale.check(old); err != nil {
			return nil, err
		}
		owners := managedfields.NewScaleHandler(old.GetManagedFields(), k.GroupVersion(), r.Any.replicasPaths())
		present := r.scaleOf(old)
		var err error
		if present.ManagedFields, err = owners.ToSubresource(); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		want, err := change(&asScale, present.DeepCopy())
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
		if want.ResourceVersion != "" {
			now.SetResourceVersion(want.ResourceVersion)
		}
		now.SetUID(want.UID)
		r.Any.r.scale.set(now, want.Spec.Replicas)
		entries, err := owners.ToParent(want.ManagedFields)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		now.SetManagedFields(entries)
		return now, nil
	})
	if err != nil {
		return nil, err
	}
	return r.scaleEntry(e), nil
}

// claim makes what want changes of now the manager's.
func (p *Pipeline) claim(scale *Request, now, want *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	want = want.DeepCopy()
	want.GetObjectKind().SetGroupVersionKind(api.ScaleKind.GVK())
	want.ManagedFields = now.ManagedFields
	return want, p.managers.track(scale, now, want)
}

func (p *Pipeline) updateScale(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	want, ok := o.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest("expected a Scale of autoscaling/v1")
	}
	return p.scaleBy(ctx, r, func(scale *Request, now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		return p.claim(scale, now, want)
	})
}

func (p *Pipeline) patchScale(ctx context.Context, r *Request, patch Patch) (*store.Entry, error) {
	change, err := r.patcher(patch)
	if err != nil {
		return nil, err
	}
	return p.scaleBy(ctx, r, func(scale *Request, now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		rv := now.ResourceVersion
		o, err := change(now, api.ScaleKind.New())
		if err != nil {
			return nil, err
		}
		s := o.(*autoscalingv1.Scale)
		if s.ResourceVersion == rv { // the patch did not name one
			s.ResourceVersion = ""
		}
		return p.claim(scale, now, s)
	})
}

// applyScale serves server-side apply of a Scale: the replicas become the manager's.
func (p *Pipeline) applyScale(ctx context.Context, r *Request, u *unstructured.Unstructured, force bool) (*store.Entry, error) {
	return p.scaleBy(ctx, r, func(scale *Request, now *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		rv := now.ResourceVersion
		o, err := p.managers.apply(scale, now, u, force)
		if err != nil {
			return nil, applyError(err)
		}
		s := o.(*autoscalingv1.Scale)
		if s.ResourceVersion == rv && u.GetResourceVersion() == "" {
			s.ResourceVersion = ""
		}
		return s, nil
	})
}
