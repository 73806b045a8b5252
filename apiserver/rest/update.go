package rest

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// status is the subresource that writes nothing but the status.
const status = "status"

// edit makes the new state of an object from its old one, which is nil where the object does not exist and may be
// created. The new object is the caller's own.
type edit func(old api.Object) (now api.Object, err error)

// Update replaces the object, or its subresource, by o, which it takes over. It says whether the object was created.
func (p *Pipeline) Update(ctx context.Context, r *Request, o api.Object) (*store.Entry, bool, error) {
	if r.Sub == "scale" {
		e, err := p.updateScale(ctx, r, o)
		return e, false, err
	}
	r = r.inside()
	o = r.as().Store(o)
	if err := r.checkName(o); err != nil {
		return nil, false, err
	}
	used := false
	return p.modify(ctx, r, r.Any.r.createOnUpdate && r.Sub == "", func(old api.Object) (api.Object, error) {
		now := o
		if used { // the pipeline changes what it is given, so that another attempt needs a fresh one
			return nil, errUsed
		}
		if o.GetResourceVersion() == "" {
			now = o.DeepCopyObject().(api.Object)
		} else {
			used = true
		}
		r.Any.r.set(now)
		return now, nil
	})
}

// errUsed says that an update that named its revision was overtaken, so that another attempt is useless.
var errUsed = errors.New("update was overtaken")

func (r *Request) checkName(o api.Object) error {
	if err := r.matchNamespace(o); err != nil {
		return err
	}
	switch name := o.GetName(); name {
	case r.Key.Name:
		return nil
	case "":
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", r.Key.Name))
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", name, r.Key.Name))
	}
}

// modify brings the object from its current state to the one that change makes and returns it as the client knows it.
func (p *Pipeline) modify(ctx context.Context, r *Request, mayCreate bool, change edit) (*store.Entry, bool, error) {
	r = r.inside()
	e, created, err := p.modifyStored(ctx, r, mayCreate, change)
	return r.show(e), created, err
}

// modifyStored brings the object from its current state to the one that change makes, again when another writer was
// faster and the new state names no revision.
func (p *Pipeline) modifyStored(ctx context.Context, r *Request, mayCreate bool, change edit) (*store.Entry, bool, error) {
	for n := 0; ; n++ {
		e, created, err := p.modifyOnce(ctx, r, mayCreate, change)
		var again retry
		if !errors.As(err, &again) {
			return e, created, err
		}
		if n == attempts {
			return nil, false, again.error
		}
		if err := pause(ctx, n); err != nil {
			return nil, false, storeError(err, r)
		}
	}
}

// retry is a conflict that another attempt may resolve.
type retry struct{ error }

func (p *Pipeline) modifyOnce(ctx context.Context, r *Request, mayCreate bool, change edit) (*store.Entry, bool, error) {
	entry, err := p.current(ctx, r)
	if err != nil {
		return nil, false, err
	}
	if entry == nil {
		if !mayCreate {
			return nil, false, r.notFound()
		}
		e, err := p.createByUpdate(ctx, r, change)
		return e, true, err
	}
	old := entry.Object
	now, err := change(old)
	if errors.Is(err, errUsed) {
		return nil, false, r.conflict()
	}
	if err != nil {
		return nil, false, err
	}
	if err := r.preconditions(old, now); err != nil {
		return nil, false, err
	}
	r.uniqueOwners(now, false)
	now.GetObjectKind().SetGroupVersionKind(r.Any.Kind.GVK())
	r.restore(now, old)
	if err := p.managers.track(r, old, now); err != nil {
		return nil, false, err
	}
	keepTimes(now, old)
	a := p.admitting(ctx, r, OpUpdate, now, old)
	if err := p.mutate(ctx, a); err != nil {
		return nil, false, err
	}
	now = a.Object
	if err := r.ofKind(now); err != nil {
		return nil, false, err
	}
	if err := r.afterAdmission(a); err != nil {
		return nil, false, err
	}
	r.uniqueOwners(now, true)
	if err := p.prepareUpdate(ctx, r, now, old); err != nil {
		return nil, false, err
	}
	a.Object = now
	if err := p.validate(ctx, a); err != nil {
		return nil, false, err
	}
	e, err := p.commitUpdate(ctx, r, entry, now)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrOvertaken) {
		return nil, false, retry{storeError(err, r)}
	}
	return e, false, storeError(err, r)
}

// createByUpdate serves an update or apply of an object that does not exist.
func (p *Pipeline) createByUpdate(ctx context.Context, r *Request, change edit) (*store.Entry, error) {
	o, err := change(nil)
	if errors.Is(err, errUsed) { // it named a revision of what is deleted now
		return nil, r.notFound()
	}
	if err != nil {
		return nil, err
	}
	if r.MayCreate != nil {
		if err := r.MayCreate(ctx); err != nil {
			return nil, err
		}
	}
	if uid := o.GetUID(); uid != "" {
		return nil, apierrors.NewConflict(r.group(), r.Key.Name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
	}
	if o.GetResourceVersion() != "" {
		return nil, r.notFound()
	}
	if err := r.checkName(o); err != nil {
		return nil, err
	}
	e, err := p.create(ctx, r, o, "")
	if apierrors.IsAlreadyExists(err) {
		return nil, retry{err}
	}
	return e, err
}

// preconditions checks the UID and resourceVersion that the client named.
func (r *Request) preconditions(old, now api.Object) error {
	if uid := now.GetUID(); uid != "" && uid != old.GetUID() && !r.patching {
		return r.precondition("UID", string(uid), string(old.GetUID()))
	}
	rv := now.GetResourceVersion()
	switch {
	case rv == "" && r.Any.r.requireRevision:
		// Upstream names the resource here, not the kind.
		return apierrors.NewInvalid(schema.GroupKind{Group: r.group().Group, Kind: r.group().Resource}, r.Key.Name,
			fieldErrors{field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update")})
	case rv != "" && rv != old.GetResourceVersion():
		if _, err := api.ParseRevision(rv); err != nil {
			return r.invalid(r.Key.Name, fieldErrors{field.Invalid(field.NewPath("metadata", "resourceVersion"), rv, err.Error())})
		}
		return r.conflict()
	}
	now.SetResourceVersion(old.GetResourceVersion())
	return nil
}

// restore sets back in now what updates change in vain or leave out. What they may not change is found by validation.
func (r *Request) restore(now, old api.Object) {
	if now.GetUID() == "" {
		now.SetUID(old.GetUID())
	}
	now.SetCreationTimestamp(old.GetCreationTimestamp())
	if at := old.GetDeletionTimestamp(); at != nil {
		now.SetDeletionTimestamp(at)
	}
	if grace := old.GetDeletionGracePeriodSeconds(); grace != nil && now.GetDeletionGracePeriodSeconds() == nil {
		now.SetDeletionGracePeriodSeconds(grace)
	}
	now.SetGeneration(old.GetGeneration())
	now.SetSelfLink("")
	if now.GetGenerateName() == "" {
		now.SetGenerateName(old.GetGenerateName())
	}
}

// prepareUpdate sets back what this write may not change, and checks the rest.
func (p *Pipeline) prepareUpdate(ctx context.Context, r *Request, now, old api.Object) error {
	e := r.Any.r
	if err := r.matchNamespace(now); err != nil {
		return err
	}
	r.restore(now, old)
	meta := field.NewPath("metadata")
	var errs fieldErrors
	sub := e.sub[r.Sub]
	switch {
	case r.Sub == status && e.hasStatus:
		e.parts.restoreAllButStatus(now, old)
		if e.strictStatus {
			KeepMeta(now, old)
		}
		e.prepareStatus(now, old)
		errs = append(e.validateStatus(now, old), e.validateStatusIn(ctx, now, old)...)
	case sub != nil && sub.Update != nil:
		if e.hasStatus {
			e.parts.copyStatus(now, old)
		}
		errs = sub.Update(ctx, now, old)
	default:
		if e.hasStatus {
			e.parts.copyStatus(now, old)
		}
		e.prepareUpdate(now, old)
		errs = append(e.validate(now), e.validateUpdate(now, old)...)
		errs = append(errs, e.validateIn(ctx, now, old)...)
	}
	if r.Sub != status && e.hasSpec && !e.noGeneration && !e.parts.sameSpec(now, old) {
		now.SetGeneration(old.GetGeneration() + 1)
	}
	errs = append(validateMetadata(r, now, old, meta), errs...)
	if len(errs) == 0 && r.Sub == "" {
		errs = e.permit(ctx, now, old)
	}
	if err := r.invalid(now.GetName(), unique(errs)); err != nil {
		return err
	}
	if r.Sub == "" {
		for _, w := range e.warn(now, old) {
			r.warn(w)
		}
	}
	return nil
}

func validateMetadata(r *Request, now, old api.Object, at *field.Path) fieldErrors {
	name := validation.ValidateNameFunc(anyName)
	if r.Any.r.nameAgain && r.Sub == "" {
		name = r.Any.r.nameOf(now)
	}
	errs := validation.ValidateObjectMetaAccessor(now, r.Any.Kind.Namespaced, name, at)
	errs = append(errs, r.Any.r.finalizers(now, at.Child("finalizers"))...)
	return append(errs, validation.ValidateObjectMetaAccessorUpdate(now, old, at)...)
}

// anyName accepts the names of objects that exist: rules may have become stricter since.
func anyName(string, bool) []string { return nil }

// unique drops errors that two checks found alike.
func unique(errs fieldErrors) fieldErrors {
	seen := map[string]bool{}
	var out fieldErrors
	size := 0
	for i, e := range errs {
		s := e.Error()
		if seen[s] {
			continue
		}
		if size += len(s); len(out) == mostProblems || size > mostProblemText && len(out) > 0 {
			return append(out, field.Forbidden(field.NewPath(e.Field), fmt.Sprintf("%d more problems begin here, which are not listed", len(errs)-i)))
		}
		seen[s] = true
		out = append(out, e)
	}
	return out
}

// How many problems a client is told of, and how much text, in bytes, they are at most: putting together the text of all takes time by the
// square of it, and a body of some hundred kilobytes can have a problem in every third byte.
const (
	mostProblems    = 1000
	mostProblemText = 128 << 10
)

// restoreAllButStatus sets now to a copy of old that has now's status, labels, annotations, finalizers
// and managedFields, as upstream lets status writers have them.
func restoreAllButStatus(now, old api.Object) {
	next := old.DeepCopyObject().(api.Object)
	if part(now, "Status").IsValid() {
		part(next, "Status").Set(part(now, "Status"))
	}
	next.SetLabels(now.GetLabels())
	next.SetAnnotations(now.GetAnnotations())
	next.SetManagedFields(now.GetManagedFields())
	next.SetFinalizers(now.GetFinalizers())
	assign(now, next)
}

// KeepMeta sets back what a strict status write may not change of the metadata.
func KeepMeta(now, old api.Object) {
	now.SetLabels(old.GetLabels())
	now.SetAnnotations(old.GetAnnotations())
	now.SetFinalizers(old.GetFinalizers())
	now.SetOwnerReferences(old.GetOwnerReferences())
}

// keepTimes keeps the time of those managedFields entries that did not change otherwise, so that a write without
// effect is seen as such.
func keepTimes(now, old api.Object) {
	before, after := old.GetManagedFields(), now.GetManagedFields()
	if len(before) != len(after) {
		return
	}
	for i := range after {
		a, b := after[i], before[i]
		a.Time, b.Time = nil, nil
		if !equality.Semantic.DeepEqual(a, b) {
			return
		}
	}
	now.SetManagedFields(append([]metav1.ManagedFieldsEntry(nil), before...))
}

// commitUpdate stores now in place of entry, or removes the object if nothing holds it any more. A write without
// effect is not done.
func (p *Pipeline) commitUpdate(ctx context.Context, r *Request, entry *store.Entry, now api.Object) (*store.Entry, error) {
	old := entry.Object
	if r.released(now) {
		return p.commitDelete(ctx, r, entry, now)
	}
	if r.Any.r.ttl == 0 && !entry.Stale() {
		same, err := r.unchanged(ctx, entry, now)
		if err != nil {
			return nil, err
		}
		if same {
			return entry, nil
		}
	}
	commit, done, err := hold(ctx, r, now, old)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		done(nil)
		return &store.Entry{Object: now, Key: r.Key, Revision: entry.Revision}, nil
	}
	again := r.slim(now)
	e, err := p.storeNext(commit, r, now, entry.Revision)
	if errors.Is(err, store.ErrTooLarge) && again != nil {
		e, err = p.storeNext(commit, r, again, entry.Revision)
	}
	done(err)
	return e, err
}

// released says that o is being deleted and nothing holds it any more.
func (r *Request) released(o api.Object) bool {
	grace := o.GetDeletionGracePeriodSeconds()
	return o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) == 0 && (grace == nil || *grace == 0) &&
		!r.Any.r.finalizing(o)
}
