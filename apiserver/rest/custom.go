package rest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Custom is what is known of a kind that is defined at run time, in the version of its Any, beside the functions of its Resource.
//
// The Store holds custom resources in the version that they were written in. A request sees them in its own: entries are shown in it
// when they are read, and what is written is converted to the version that is stored, last of all.
type Custom struct {
	// Definition is shared and read-only; Any.Kind.Version says which of its versions the Any is.
	Definition *apiextensionsv1.CustomResourceDefinition
	// Stored is the kind that the Store holds the objects as, whatever the version that they were written in: one value as long as the
	// definition lives.
	Stored *api.Kind
	// Forms are the kinds of all versions that are served, that of the Any among them. Shared and read-only.
	Forms []*api.Kind
	// Status says that there is /status.
	Status bool
	// Convert returns objects, which it leaves alone, in a version; those that are in it already as they are. The errors are for
	// the client.
	Convert func(ctx context.Context, os []api.Object, version string) ([]api.Object, error)
	// ConvertAlone is Convert of one object for the bookkeeping of who owns which field, which knows no request.
	ConvertAlone func(o api.Object, version string) (api.Object, error)
	// Settle makes o, of any version, what the schema of its version has it be: without unknown fields, with defaults. Repair says that
	// what is wrong with its metadata is dropped, as it is where o was stored already.
	Settle func(o api.Object, repair bool) error
	// Coerce does the same for what a client sent, but for defaults, and returns the paths of unknown fields.
	Coerce func(o api.Object) (unknown []string, err error)
	// Types returns what knows how objects of all versions merge.
	Types func() managedfields.TypeConverter
	// Serving ends when the definition has become another: watches end then, since what they show would be by a schema of old, and
	// clients begin them anew from where they were.
	Serving context.Context
	// ReplicasPaths say where /scale has the replicas, by apiVersion: of every version, nil where it has no /scale. They are shared and
	// read-only.
	ReplicasPaths managedfields.ResourcePathMappings

	managers managers // of this Any: they go when it does
	forming  forming
}

// Custom returns what is known of a kind that is defined at run time, nil of a built-in one.
func (a Any) Custom() *Custom { return a.r.custom }

// storage is the version that objects are stored in.
func (c *Custom) storage() string {
	if v, err := apihelpers.GetCRDStorageVersion(c.Definition); err == nil {
		return v
	}
	return c.Stored.Version
}

// servesStorage says that the version that is stored is served too.
func (c *Custom) servesStorage() bool {
	return slices.ContainsFunc(c.Definition.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Storage && v.Served })
}

// verbs are in upstream's order, and fewer where the definition is about to go.
func (c *Custom) verbs() metav1.Verbs {
	if apihelpers.IsCRDConditionTrue(c.Definition, apiextensionsv1.Terminating) {
		return metav1.Verbs{"delete", "deletecollection", "get", "list", "watch"}
	}
	return metav1.Verbs{"delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"}
}

// unknown are the errors of strict decoding about what c has no fields for.
func (c *Custom) unknown(o api.Object) ([]error, error) {
	if c == nil {
		return nil, nil
	}
	paths, err := c.Coerce(o)
	errs := make([]error, len(paths))
	for i, p := range paths {
		errs[i] = fmt.Errorf("unknown field %q", p)
	}
	return errs, err
}

// Unknown drops from o, which a client sent, what the kind does not know, and returns an error for each such field. The last is
// of what is no object of the kind at all.
func (a Any) Unknown(o api.Object) ([]error, error) { return a.r.custom.unknown(o) }

// afterAdmission has the object be what its schema says, whatever admission made of it: what a webhook adds that the schema does not know
// is dropped as if a client had sent it. An object that admission took as it was sent is so already.
func (r *Request) afterAdmission(a *Admitting) error {
	c := r.Any.r.custom
	if c == nil || !a.taken {
		return nil
	}
	if err := c.Settle(a.Object, false); err != nil {
		return apierrors.NewInternalError(err)
	}
	return nil
}

// ofKind refuses a custom resource that admission has made one of another kind.
func (r *Request) ofKind(o api.Object) error {
	k := r.Any.Kind
	if !k.Custom() {
		return nil
	}
	version, kind := o.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	var errs fieldErrors
	if kind != k.Kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), kind, "must be "+k.Kind))
	}
	if version != k.APIVersion() {
		errs = append(errs, field.Invalid(field.NewPath("apiVersion"), version, "must be "+k.APIVersion()))
	}
	return r.invalid(o.GetName(), errs)
}

// terminating refuses to create what would hold up the end of its definition.
func (p *Pipeline) terminating(r *Request) error {
	c := r.Any.r.custom
	if c == nil {
		return nil
	}
	now := p.store.Snapshot(api.CustomResourceDefinitionKind).Get(api.KeyOf(c.Definition)) // newer than what is served
	if now == nil || now.Err() != nil || now.Object.GetDeletionTimestamp() == nil {
		return nil
	}
	err := apierrors.NewMethodNotSupported(r.group(), "create")
	err.ErrStatus.Message = "create not allowed while custom resource definition is terminating"
	return err
}

// internal keeps errors of the API.
func internal(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return apierrors.NewInternalError(err)
}

// shownOne is shown for one entry, which may be nil.
func (p *Pipeline) shownOne(ctx context.Context, r *Request, e *store.Entry, err error) (*store.Entry, error) {
	if err != nil || e == nil || r.Any.r.custom == nil {
		return e, err
	}
	es, err := p.shown(ctx, r, []*store.Entry{e})
	if err != nil {
		return nil, err
	}
	return es[0], nil
}

// convertAtOnce is how many objects are converted together.
const convertAtOnce = 500

// showing yields entries as the request's kind has them. An error ends it, and is left in failed.
func (p *Pipeline) showing(ctx context.Context, r *Request, es iter.Seq[*store.Entry], failed *error) iter.Seq[*store.Entry] {
	if r.Any.r.custom == nil {
		return es
	}
	return func(yield func(*store.Entry) bool) {
		batch := make([]*store.Entry, 0, convertAtOnce)
		flush := func() bool {
			out, err := p.shown(ctx, r, batch)
			if err != nil {
				*failed = err
				return false
			}
			batch = batch[:0]
			for _, e := range out {
				if !yield(e) {
					return false
				}
			}
			return true
		}
		for e := range es {
			if batch = append(batch, e); len(batch) == convertAtOnce && !flush() {
				return
			}
		}
		flush()
	}
}

// keeping returns o as it is stored: o itself where that is the form that it has.
func (r *Request) keeping(ctx context.Context, o api.Object) (api.Object, error) {
	c := r.Any.r.custom
	if c == nil {
		return o, nil
	}
	out, err := c.Convert(ctx, []api.Object{o}, c.storage())
	if err != nil {
		return nil, internal(err)
	}
	if out[0] == o {
		return o, nil
	}
	kept := out[0].DeepCopyObject().(api.Object)
	if _, err := c.Coerce(kept); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return kept, nil
}

// unchanged says that storing o would leave what is stored as entry as it is.
func (r *Request) unchanged(ctx context.Context, entry *store.Entry, o api.Object) (bool, error) {
	if entry.Of == nil || r.Any.r.custom == nil {
		return equality.Semantic.DeepEqual(o, entry.Object), nil
	}
	kept, err := r.keeping(ctx, o)
	if err != nil {
		return false, err
	}
	return equality.Semantic.DeepEqual(kept, entry.Of.Object), nil
}

// storeNew stores o, which is new, and returns its entry as the request's kind has it. Admission may have taken long: a definition that
// has begun to end meanwhile may be empty already.
func (p *Pipeline) storeNew(ctx context.Context, r *Request, o api.Object) (*store.Entry, error) {
	if err := p.terminating(r); err != nil {
		return nil, err
	}
	kept, err := r.keeping(ctx, o)
	if err != nil {
		return nil, err
	}
	e, err := p.store.Create(ctx, r.Any.Kept(), kept, r.Any.r.ttl)
	return p.kept(ctx, r, e, kept == o, err)
}

// storeNext stores o in place of the state of a revision.
func (p *Pipeline) storeNext(ctx context.Context, r *Request, o api.Object, rev api.Revision) (*store.Entry, error) {
	kept, err := r.keeping(ctx, o)
	if err != nil {
		return nil, err
	}
	e, err := p.store.Update(ctx, r.Any.Kept(), kept, rev, r.Any.r.ttl)
	return p.kept(ctx, r, e, kept == o, err)
}

// kept returns the entry of what was written as the request's kind has it. Same says that it was stored in that form.
func (p *Pipeline) kept(ctx context.Context, r *Request, e *store.Entry, same bool, err error) (*store.Entry, error) {
	if err == nil && same && r.Any.r.custom != nil {
		return e.SetForm(r.Any.Kind, e.Object), nil
	}
	return p.shownOne(ctx, r, e, err)
}

// customForms is upstream's view of a custom resource in all its versions.
type customForms struct{ a Any }

func (f customForms) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	o := f.a.Kind.New()
	o.GetObjectKind().SetGroupVersionKind(gvk)
	return o, nil
}

// Default sets what the version's schema has defaults for. An object that is no good is found to be so elsewhere.
func (f customForms) Default(o runtime.Object) {
	if o, ok := o.(api.Object); ok {
		f.a.r.set(o)
	}
}

func (f customForms) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	o, ok := in.(api.Object)
	if !ok {
		return nil, fmt.Errorf("%T is no object", in)
	}
	gvk, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{in.GetObjectKind().GroupVersionKind()})
	c := f.a.r.custom
	if !ok || !slices.ContainsFunc(c.Definition.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == gvk.Version }) {
		return nil, runtime.NewNotRegisteredErrForTarget("", nil, target)
	}
	out, err := c.ConvertAlone(o, gvk.Version)
	if err != nil {
		return nil, err
	}
	return out.DeepCopyObject(), nil
}

func (f customForms) Convert(_, _, _ any) error {
	return errors.New("objects are converted to a version")
}

func (f customForms) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// noStrategic says that custom resources have no types that would say how their lists merge.
func (r *Request) noStrategic() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
	}}
}
