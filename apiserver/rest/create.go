package rest

import (
	"context"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

type fieldErrors = field.ErrorList

const (
	nameTries  = 8  // attempts at a generated name that is free
	nameLength = 63 // of a generated name
	nameSuffix = 5  // random characters in it
)

// Create stores o, which it takes over. An object without a name gets one from its generateName.
func (p *Pipeline) Create(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	r = r.inside()
	e, err := p.createNamed(ctx, r, r.as().Store(o))
	return r.show(e), err
}

// createNamed stores o under its name or one that is made for it.
func (p *Pipeline) createNamed(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	if err := r.matchNamespace(o); err != nil {
		return nil, err
	}
	prefix := o.GetGenerateName()
	if prefix == "" || o.GetName() != "" {
		return p.create(ctx, r, o, "")
	}
	for try := 1; ; try++ {
		next := o
		if try < nameTries {
			next = o.DeepCopyObject().(api.Object)
		}
		name := generateName(prefix)
		e, err := p.create(ctx, r, next, name)
		if !apierrors.IsAlreadyExists(err) {
			return e, err
		}
		if try == nameTries {
			return nil, apierrors.NewGenerateNameConflict(r.group(), name, 1)
		}
	}
}

func generateName(prefix string) string {
	if most := nameLength - nameSuffix; len(prefix) > most {
		prefix = prefix[:most]
	}
	return prefix + utilrand.String(nameSuffix)
}

// create stores o, under the name that was made for it where it has none when admission has seen it. What the server chooses is set
// after admission: webhooks see what the client sent.
func (p *Pipeline) create(ctx context.Context, r *Request, o api.Object, made string) (*store.Entry, error) {
	named := *r
	named.Key = api.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
	r = &named
	e := r.Any.r
	// What admission goes by is as new as what other servers have acknowledged.
	if err := p.store.Sync(ctx); err != nil {
		return nil, storeError(err, r)
	}
	if err := p.terminating(r); err != nil {
		return nil, err
	}
	if o.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	unborn(o)
	o.GetObjectKind().SetGroupVersionKind(r.Any.Kind.GVK())
	e.set(o)
	r.uniqueOwners(o, false)
	if err := p.managers.track(r, nil, o); err != nil {
		return nil, err
	}
	a := p.admitting(ctx, r, OpCreate, o, nil)
	if err := p.mutate(ctx, a); err != nil {
		return nil, err
	}
	o = a.Object
	if err := r.ofKind(o); err != nil {
		return nil, err
	}
	if err := r.afterAdmission(a); err != nil {
		return nil, err
	}
	unborn(o)
	if o.GetName() == "" {
		o.SetName(made)
	}
	o.SetUID(uuid.NewUUID())
	o.SetCreationTimestamp(metav1.Now())
	r.Key.Name, a.Key.Name = o.GetName(), o.GetName()
	r.uniqueOwners(o, true)
	if err := p.prepareCreate(ctx, r, o); err != nil {
		return nil, err
	}
	if err := p.validate(ctx, a); err != nil {
		return nil, err
	}
	return p.commitCreate(ctx, r, o)
}

// unborn clears what only the server says of an object.
func unborn(o api.Object) {
	o.SetUID("")
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetSelfLink("")
}

// prepareCreate sets what clients may not choose and checks the whole.
func (p *Pipeline) prepareCreate(ctx context.Context, r *Request, o api.Object) error {
	e := r.Any.r
	if err := r.matchNamespace(o); err != nil {
		return err
	}
	if e.hasStatus && !e.statusAtCreate {
		e.parts.clearStatus(o)
	}
	if e.hasSpec && !e.noGeneration {
		o.SetGeneration(1)
	}
	e.prepareFor(ctx, o)
	e.prepare(o)
	meta := field.NewPath("metadata")
	errs := validation.ValidateObjectMetaAccessor(o, r.Any.Kind.Namespaced, e.nameOf(o), meta)
	errs = append(errs, e.finalizers(o, meta.Child("finalizers"))...)
	errs = append(errs, e.validate(o)...)
	errs = append(errs, e.validateCreate(o)...)
	errs = append(errs, e.validateIn(ctx, o, nil)...)
	if len(errs) == 0 {
		errs = append(errs, segment(o.GetName(), meta.Child("name"))...)
	}
	if len(errs) == 0 {
		errs = e.permit(ctx, o, nil)
	}
	if err := r.invalid(o.GetName(), unique(errs)); err != nil {
		return err
	}
	for _, w := range e.warn(o, nil) {
		r.warn(w)
	}
	return nil
}

// finalizers checks that each is one of Kubernetes' own or has a domain.
func (e *erased) finalizers(o api.Object, at *field.Path) (errs fieldErrors) {
	if e.anyFinalizer {
		return nil
	}
	for i, name := range o.GetFinalizers() {
		errs = append(errs, StandardFinalizer(name, at.Index(i))...)
	}
	return errs
}

// StandardFinalizer refuses a finalizer without a domain that is none of Kubernetes' own.
func StandardFinalizer(name string, at *field.Path) field.ErrorList {
	switch {
	case strings.Contains(name, "/"), name == string(corev1.FinalizerKubernetes), name == metav1.FinalizerOrphanDependents, name == metav1.FinalizerDeleteDependents:
		return nil
	}
	return field.ErrorList{field.Invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified")}
}

// segment checks that a name can stand in a URL, whatever the kind's own rule allows.
func segment(name string, at *field.Path) (errs fieldErrors) {
	for _, msg := range path.IsValidPathSegmentName(name) {
		errs = append(errs, field.Invalid(at, name, msg))
	}
	return errs
}

func (p *Pipeline) commitCreate(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	for n := 0; ; n++ {
		next := o
		if r.Any.r.hold != nil { // which fills in what another attempt must choose anew
			next = o.DeepCopyObject().(api.Object)
		}
		e, err := p.commitNew(ctx, r, next)
		if !errors.Is(err, store.ErrOvertaken) || n == attempts {
			return e, storeError(err, r)
		}
		if err := pause(ctx, n); err != nil {
			return nil, storeError(err, r)
		}
	}
}

// commitNew is one attempt.
func (p *Pipeline) commitNew(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	commit, done, err := hold(ctx, r, o, nil)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		defer done(nil)
		switch old, err := p.current(ctx, r); {
		case err != nil:
			return nil, err
		case old != nil:
			return nil, r.exists(old)
		}
		return &store.Entry{Object: o, Key: r.Key}, nil
	}
	again := r.slim(o)
	entry, err := p.storeNew(commit, r, o)
	if errors.Is(err, store.ErrTooLarge) && again != nil {
		entry, err = p.storeNew(commit, r, again)
	}
	done(err)
	if errors.Is(err, store.ErrConflict) {
		return nil, r.exists(p.store.Snapshot(r.Any.Kept()).Get(r.Key))
	}
	return entry, err
}

// exists says that there is such an object already; old is it, as far as it is known.
func (r *Request) exists(old *store.Entry) error {
	err := apierrors.NewAlreadyExists(r.group(), r.Key.Name)
	if old != nil && old.Err() == nil && old.Object.GetDeletionTimestamp() != nil {
		err.ErrStatus.Message = "object is being deleted: " + err.ErrStatus.Message
	}
	return err
}

// slim returns a copy of a large object without its managedFields, to be stored where the database does not take the
// whole; nil of an object that is not near any limit.
func (r *Request) slim(o api.Object) api.Object {
	if m, ok := o.(interface{ Size() int }); !ok || m.Size() < largeObject || r.owned || len(o.GetManagedFields()) == 0 {
		return nil
	}
	o = o.DeepCopyObject().(api.Object)
	o.SetManagedFields(nil)
	return o
}

// largeObject is from where on a database may refuse an object.
const largeObject = 1 << 20

// Answer serves a kind that is not stored: the client posts a question and gets it back answered, or a Status of what was done.
func (p *Pipeline) Answer(ctx context.Context, r *Request, o api.Object) (runtime.Object, error) {
	if r.Any.Kind.Namespaced {
		if err := r.matchNamespace(o); err != nil {
			return nil, err
		}
	}
	e := r.Any.r
	if e.answer == nil {
		return nil, apierrors.NewMethodNotSupported(r.group(), "create")
	}
	o.GetObjectKind().SetGroupVersionKind(r.Any.Kind.GVK())
	e.set(o)
	if err := p.managers.track(r, nil, o); err != nil {
		return nil, err
	}
	a := p.admitting(ctx, r, OpCreate, o, nil)
	if err := p.mutate(ctx, a); err != nil {
		return nil, err
	}
	if errs := e.validate(a.Object); len(errs) > 0 {
		// Upstream names neither the kind nor the object here, which has no name.
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: r.Any.Kind.Group}, "", unique(errs))
	}
	if err := p.validate(ctx, a); err != nil {
		return nil, err
	}
	out, err := e.answer(ctx, a.Object, r.DryRun)
	if err != nil {
		return nil, storeError(err, r)
	}
	return out, nil
}

// Post serves a creating subresource: it hands body to the kind's own function.
func (p *Pipeline) Post(ctx context.Context, r *Request, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	r = r.inside()
	sub := r.Any.r.sub[r.Sub]
	if sub == nil || sub.Create == nil {
		return nil, r.notFound()
	}
	e, err := p.current(ctx, r)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, r.notFound()
	}
	if err := r.matchNamespace(body); err != nil {
		return nil, err
	}
	switch name := body.GetName(); {
	case name == "":
		body.SetName(r.Key.Name)
	case name != r.Key.Name && !strings.EqualFold(r.Sub, "token"):
		return nil, apierrors.NewBadRequest("the name of the object (" + name + ") does not match the name on the URL (" + r.Key.Name + ")")
	}
	body.GetObjectKind().SetGroupVersionKind(sub.Body.GVK())
	asBody := *r
	asBody.Any = Any{Kind: sub.Body, r: &erased{set: func(api.Object) {}}}
	if err := p.managers.track(&asBody, nil, body); err != nil {
		return nil, err
	}
	a := p.admitting(ctx, r, OpCreate, body, nil)
	if err := p.mutate(ctx, a); err != nil {
		return nil, err
	}
	if err := p.validate(ctx, a); err != nil {
		return nil, err
	}
	out, err := sub.Create(ctx, e.Object, a.Object, opts)
	if err != nil {
		return nil, storeError(err, r)
	}
	return out, nil
}
