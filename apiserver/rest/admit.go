package rest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
)

// Operation is what admission is asked about.
type Operation string

// The operations of admission.
const (
	OpCreate  Operation = "CREATE"
	OpUpdate  Operation = "UPDATE"
	OpDelete  Operation = "DELETE"
	OpConnect Operation = "CONNECT"
)

// Admitting is a request under admission.
type Admitting struct {
	User      *authn.User
	Operation Operation
	Kind      *api.Kind
	Sub       string
	// Key names the object. The name is empty while a name that the client left to the server is not made yet.
	Key    api.Key
	Object api.Object // may be changed by Mutate, a custom resource by Take alone; nil on delete and connect
	Old    api.Object // nil on create; the parent on connect
	// Opens is what is asked for on connect, PodExecOptions and its kin; nil otherwise.
	Opens  runtime.Object
	DryRun bool
	Warn   func(text string)
	Audit  func(key, value string) // adds an annotation to the audit event; may be nil

	// Again says that the plug-ins are asked to change the object for the second time, since one of them used AskAgain.
	Again bool
	// Notes are what plug-ins keep from the first time to the second, by their names.
	Notes map[string]any

	again bool           // AskAgain was used
	taken bool           // Take was used
	r     *Request       // nil only in tests of plug-ins
	sent  runtime.Object // the options that the client sent; nil: none
}

// Admission is one admission plug-in. Either function may be nil. Errors are API status errors (Forbidden mostly).
type Admission struct {
	Name     string
	Mutate   func(ctx context.Context, a *Admitting) error
	Validate func(ctx context.Context, a *Admitting) error
}

// Annotate notes something in the audit log.
func (a *Admitting) Annotate(key, value string) {
	if a.Audit != nil {
		a.Audit(key, value)
	}
}

// AskAgain has all plug-ins be asked to change the object once more, since what one did may matter to those before it.
func (a *Admitting) AskAgain() { a.again = true }

// Form is the form of the kind that the client speaks of.
func (a *Admitting) Form() *api.Kind {
	if a.r == nil {
		return a.Kind
	}
	return a.r.as()
}

// body is the kind of the object where that is the subresource's own, or nil.
func (a *Admitting) body() *api.Kind {
	if a.r == nil || a.Sub == "" {
		return nil
	}
	if b := (Any{Kind: a.Kind, r: a.r.Any.r}).Body(a.Sub); b != a.Kind {
		return b
	}
	return nil
}

// GVK says what the objects of the request are, to who speaks of the form.
func (a *Admitting) GVK(form *api.Kind) schema.GroupVersionKind {
	if a.Opens != nil {
		return a.Opens.GetObjectKind().GroupVersionKind()
	}
	if b := a.body(); b != nil {
		return b.GVK()
	}
	return form.GVK()
}

// Forms are the kinds that the object can be spoken of in: the request's, and those in which the same can be read and written.
func (a *Admitting) Forms() []*api.Kind {
	if c := a.custom(); c != nil {
		return c.Forms
	}
	return a.Kind.Forms()
}

// custom is what is known of a kind that is defined at run time, nil of a built-in one.
func (a *Admitting) custom() *Custom {
	if a.r == nil {
		return nil
	}
	return a.r.Any.r.custom
}

// converts returns what converts the object between its version and the form's, nil where they are one.
func (a *Admitting) converts(form *api.Kind) *Custom {
	if form.Version == a.Kind.Version || a.body() != nil {
		return nil
	}
	return a.custom()
}

// Types knows how the request's objects are merged, to who speaks of the form; nil of what is opened, which is no kind.
func (a *Admitting) Types(form *api.Kind) managedfields.TypeConverter {
	b, c := a.body(), a.custom()
	switch {
	case a.Opens != nil:
		return nil
	case b != nil:
		return MergeTypes(b)
	case c != nil:
		return c.Types()
	}
	return MergeTypes(form)
}

// As returns the object and the old one as who speaks of the form knows them; nil where there is none. They are read-only. The errors are
// for the client: custom resources are converted by others.
func (a *Admitting) As(ctx context.Context, form *api.Kind) (now, old runtime.Object, err error) {
	if a.Operation == OpConnect {
		return a.Opens, nil, nil
	}
	os := [2]api.Object{a.Object, a.Old}
	if c := a.converts(form); c != nil {
		if os, err = c.both(ctx, os, form.Version); err != nil {
			return nil, nil, internal(err)
		}
	}
	return a.show(form, os[0]), a.show(form, os[1]), nil
}

// both converts an object and its old state, either of which may be missing, at one time.
func (c *Custom) both(ctx context.Context, os [2]api.Object, version string) (out [2]api.Object, err error) {
	var at []int
	var some []api.Object
	for i, o := range os {
		if o != nil {
			at, some = append(at, i), append(some, o)
		}
	}
	if some, err = c.Convert(ctx, some, version); err != nil {
		return out, err
	}
	for n, i := range at {
		out[i] = some[n]
	}
	return out, nil
}

func (a *Admitting) show(form *api.Kind, o api.Object) runtime.Object {
	switch b := a.body(); {
	case o == nil:
		return nil
	case b == nil:
		return form.Show(o)
	case b == api.ScaleKind:
		return a.r.scaleOf(o)
	}
	return o
}

// Empty returns an object of the form to read a changed one into.
func (a *Admitting) Empty(form *api.Kind) runtime.Object {
	if a.Opens != nil {
		return reflect.New(reflect.TypeOf(a.Opens).Elem()).Interface().(runtime.Object)
	}
	if b := a.body(); b != nil {
		return b.New()
	}
	return form.New()
}

// Take puts now, which has the form, in the place of the object, and fills in what it leaves out. It takes now over.
func (a *Admitting) Take(ctx context.Context, form *api.Kind, now runtime.Object) error {
	a.taken = true
	if a.Opens != nil {
		a.Opens = now
		return nil
	}
	o, ok := now.(api.Object)
	if !ok || a.Object == nil {
		return fmt.Errorf("a %T cannot take the place of what is sent to %v", now, a.Kind)
	}
	switch b := a.body(); {
	case b == nil:
		o, err := a.store(ctx, form, o)
		if err != nil {
			return err
		}
		if a.r != nil {
			a.r.Any.r.set(o)
		}
		a.Object = o
	case b == api.ScaleKind:
		a.r.Any.r.scale.set(a.Object, o.(*autoscalingv1.Scale).Spec.Replicas)
	default:
		a.Object = o
	}
	return nil
}

// store returns o, which has the form, as an object of the request's kind.
func (a *Admitting) store(ctx context.Context, form *api.Kind, o api.Object) (api.Object, error) {
	if a.custom() == nil {
		return form.Store(o), nil
	}
	o.GetObjectKind().SetGroupVersionKind(form.GVK()) // it is what is converted by, and may be changed like any field
	c := a.converts(form)
	if c == nil {
		return o, nil
	}
	if err := c.Settle(o, false); err != nil {
		return nil, internal(err)
	}
	out, err := c.Convert(ctx, []api.Object{o}, a.Kind.Version)
	if err != nil {
		return nil, internal(err)
	}
	return out[0], nil
}

// Options are the CreateOptions, UpdateOptions or DeleteOptions of the request, nil on connect. A patch is an update, and what
// creates is a create, whatever the client sent.
func (a *Admitting) Options() runtime.Object {
	var dry []string
	if a.DryRun {
		dry = []string{metav1.DryRunAll}
	}
	var manager, validation string
	switch o := a.sent.(type) {
	case *metav1.CreateOptions:
		manager, validation = o.FieldManager, o.FieldValidation
	case *metav1.UpdateOptions:
		manager, validation = o.FieldManager, o.FieldValidation
	case *metav1.PatchOptions:
		manager, validation = o.FieldManager, o.FieldValidation
	}
	of := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{Kind: kind, APIVersion: metav1.SchemeGroupVersion.String()}
	}
	switch a.Operation {
	case OpCreate:
		return &metav1.CreateOptions{TypeMeta: of("CreateOptions"), DryRun: dry, FieldManager: manager, FieldValidation: validation}
	case OpUpdate:
		return &metav1.UpdateOptions{TypeMeta: of("UpdateOptions"), DryRun: dry, FieldManager: manager, FieldValidation: validation}
	case OpDelete:
		o := &metav1.DeleteOptions{DryRun: dry}
		if sent, ok := a.sent.(*metav1.DeleteOptions); ok {
			o = sent.DeepCopy()
		}
		o.TypeMeta = of("DeleteOptions")
		return o
	}
	return nil
}

func (p *Pipeline) admitting(ctx context.Context, r *Request, op Operation, now, old api.Object) *Admitting {
	return &Admitting{
		User: authn.UserFrom(ctx), Operation: op, Kind: r.Any.Kind, Sub: r.Sub, Key: r.Key,
		Object: now, Old: old, DryRun: r.DryRun, Warn: r.warn, Audit: r.Audit, r: r, sent: r.Options,
	}
}

// mutate asks the admission plug-ins, which may change a.Object, and all again where one of them wishes it. An ownership of fields that
// they made unreadable is set back.
func (p *Pipeline) mutate(ctx context.Context, a *Admitting) error {
	var owned []metav1.ManagedFieldsEntry
	if a.Object != nil {
		owned = a.Object.GetManagedFields()
	}
	of := func(ad *Admission) plugin { return ad.Mutate }
	if err := p.ask(ctx, a, "admit", of); err != nil {
		return err
	}
	if a.again {
		a.Again = true
		if err := p.ask(ctx, a, "admit", of); err != nil {
			return err
		}
	}
	if !a.taken || a.Object == nil {
		return nil
	}
	if err := managedfields.ValidateManagedFields(a.Object.GetManagedFields()); err != nil {
		a.Object.SetManagedFields(owned)
		a.Warn(fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: %v", err))
	}
	return nil
}

// validate asks the admission plug-ins for a verdict on the final object.
func (p *Pipeline) validate(ctx context.Context, a *Admitting) error {
	return p.ask(ctx, a, "validate", func(ad *Admission) plugin { return ad.Validate })
}

// plugin is a function of an Admission.
type plugin = func(ctx context.Context, a *Admitting) error

// ask asks one function of each plug-in, in order, until one refuses.
func (p *Pipeline) ask(ctx context.Context, a *Admitting, step string, of func(*Admission) plugin) error {
	begin := time.Now()
	last := begin
	var err error
	for i := range p.admission {
		ad := &p.admission[i]
		f := of(ad)
		if f == nil {
			continue
		}
		err = f(ctx, a)
		if p.Observe != nil {
			now := time.Now()
			p.Observe(ad.Name, step, a.Operation, now.Sub(last), err != nil)
			last = now
		}
		if err != nil {
			err = admissionError(ad.Name, a, err)
			break
		}
	}
	if p.Observe != nil {
		p.Observe("", step, a.Operation, last.Sub(begin), err != nil)
	}
	return err
}

// admissionError keeps errors of the API, and those of the database what they are; others are refusals.
func admissionError(name string, a *Admitting, err error) error {
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Timeout(err)
	case ofDatabase(err):
		return storeError(fmt.Errorf("%s: %w", name, err), a.r)
	}
	return apierrors.NewForbidden(a.Kind.GroupResource(), a.Key.Name, fmt.Errorf("%s: %w", name, err))
}
