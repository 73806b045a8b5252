package rest

import (
	"context"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
)

// Any is a Resource whose type parameter has been erased, so that one list holds all kinds. The built-in kinds come
// from Register; a CustomResourceDefinition makes the same value at run time.
type Any struct {
	Kind *api.Kind
	r    *erased
}

// erased has the fields of Resource with T replaced by api.Object. No function is nil unless said so.
type erased struct {
	custom *Custom // nil: a built-in kind
	parts  parts

	set            func(o api.Object)
	prepare        func(o api.Object)
	prepareFor     func(ctx context.Context, o api.Object)
	prepareUpdate  func(now, old api.Object)
	validate       func(o api.Object) field.ErrorList
	validateCreate func(o api.Object) field.ErrorList
	validateUpdate func(now, old api.Object) field.ErrorList
	validateIn     func(ctx context.Context, now, old api.Object) field.ErrorList
	permit         func(ctx context.Context, now, old api.Object) field.ErrorList
	warn           func(o, old api.Object) []string
	nameOf         func(o api.Object) validation.ValidateNameFunc
	nameAgain      bool // updates check the name too

	hasStatus      bool // the type has a status that only /status writes
	hasSpec        bool
	noGeneration   bool
	statusAtCreate bool
	strictStatus   bool
	reset          map[string][]string
	validateStatus func(now, old api.Object) field.ErrorList

	validateStatusIn func(ctx context.Context, now, old api.Object) field.ErrorList
	prepareStatus    func(now, old api.Object)

	fields  func(o api.Object) fields.Set // nil: only the metadata fields
	columns []erasedColumn
	scale   *erasedScale // nil: none
	sub     map[string]*Subresource

	grace           func(o api.Object, opts *metav1.DeleteOptions) int64 // nil: none
	deleting        func(o api.Object)
	answerDeleted   bool
	orphan          bool
	orphanWarning   string
	noCollection    bool
	finalizing      func(o api.Object) bool
	ownFinalizers   bool // finalizing may say so
	ttl             time.Duration
	createOnUpdate  bool
	requireRevision bool
	anyFinalizer    bool
	ungathered      bool
	deprecated      string
	hold            func(ctx context.Context, now, old api.Object, dryRun bool) (*Held, error)   // nil: none
	made            func(ctx context.Context, w Wanted) []api.Object                             // nil: stored kind
	answer          func(ctx context.Context, o api.Object, dryRun bool) (runtime.Object, error) // nil: stored kind
}

type erasedColumn struct {
	metav1.TableColumnDefinition
	cell func(o api.Object) any
}

type erasedScale struct {
	replicas func(o api.Object) (spec, status int32)
	set      func(o api.Object, replicas int32)
	selector func(o api.Object) string
	check    func(o api.Object) error
}

// Register erases the type of r, which describes kind k. It is called once per kind, when the server is put together.
func Register[T api.Object](k *api.Kind, r *Resource[T]) Any {
	e := &erased{
		custom:         r.Custom,
		set:            one(r.Default),
		prepare:        one(r.Prepare),
		prepareUpdate:  two(r.PrepareUpdate),
		prepareFor:     func(context.Context, api.Object) {},
		validate:       oneErrs(r.Validate),
		validateCreate: oneErrs(r.ValidateCreate),
		validateUpdate: twoErrs(r.ValidateUpdate),
		validateStatus: twoErrs(r.ValidateStatus),
		prepareStatus:  two(r.PrepareStatus),
		validateIn:     inContext(r.ValidateIn), validateStatusIn: inContext(r.ValidateStatusIn),
		permit:         inContext(r.Permit),
		warn:           func(_, _ api.Object) []string { return nil },
		noGeneration:   r.NoGeneration,
		statusAtCreate: r.StatusAtCreate,
		strictStatus:   r.StrictStatus,
		reset:          r.Reset,
		sub:            r.Sub,
		deleting:       one(r.Deleting),
		answerDeleted:  r.AnswerDeleted,
		orphan:         r.Orphan,
		orphanWarning:  r.OrphanWarning,
		noCollection:   r.NoCollection,
		finalizing:     func(api.Object) bool { return false },
		ttl:            r.TTL,
		createOnUpdate: r.CreateOnUpdate, requireRevision: r.RequireRevision, anyFinalizer: r.AnyFinalizer, ungathered: r.Ungathered, deprecated: r.Deprecated,
	}
	e.nameOf, e.nameAgain = names(r.Name, r.NameOf), r.NameOf != nil
	if r.PrepareFor != nil {
		e.prepareFor = func(ctx context.Context, o api.Object) { r.PrepareFor(ctx, o.(T)) }
	}
	if r.Warn != nil {
		e.warn = func(o, old api.Object) []string { return r.Warn(as[T](o), as[T](old)) }
	}
	if r.Fields != nil {
		e.fields = func(o api.Object) fields.Set { return r.Fields(o.(T)) }
	}
	if r.Finalizing != nil {
		e.ownFinalizers = true
		e.finalizing = func(o api.Object) bool { return r.Finalizing(o.(T)) }
	}
	if r.Grace != nil {
		e.grace = func(o api.Object, opts *metav1.DeleteOptions) int64 { return r.Grace(o.(T), opts) }
	}
	if r.Hold != nil {
		e.hold = func(ctx context.Context, now, old api.Object, dry bool) (*Held, error) {
			return r.Hold(ctx, as[T](now), as[T](old), dry)
		}
	}
	e.answer = answers(k, r)
	if r.Made != nil {
		e.made = func(ctx context.Context, w Wanted) (all []api.Object) {
			for _, o := range r.Made(ctx, w) {
				all = append(all, o)
			}
			return all
		}
	}
	if s := r.Scale; s != nil {
		e.scale = &erasedScale{
			replicas: func(o api.Object) (int32, int32) { return s.Replicas(o.(T)) },
			set:      func(o api.Object, n int32) { s.Set(o.(T), n) },
			selector: func(o api.Object) string { return s.Selector(o.(T)) },
			check:    func(api.Object) error { return nil },
		}
		if s.Check != nil {
			e.scale.check = func(o api.Object) error { return s.Check(o.(T)) }
		}
	}
	e.columns = eraseColumns(r.Columns)
	e.takeApart(reflect.TypeFor[T]().Elem())
	e.hasStatus = e.hasStatus && !r.NoStatus && r.Answer == nil && r.Act == nil
	return Any{Kind: k, r: e}
}

// takeApart finds what objects of the type t consist of.
func (e *erased) takeApart(t reflect.Type) {
	if e.custom != nil {
		e.hasSpec, e.hasStatus, e.parts = true, e.custom.Status, mapParts{}
		return
	}
	_, e.hasSpec = t.FieldByName("Spec")
	_, e.hasStatus = t.FieldByName("Status")
	e.parts = structParts{}
}

// answers is what a kind that is not stored does with what is posted; nil of a stored one.
func answers[T api.Object](k *api.Kind, r *Resource[T]) func(ctx context.Context, o api.Object, dryRun bool) (runtime.Object, error) {
	switch {
	case r.Answer != nil:
		return func(ctx context.Context, o api.Object, _ bool) (runtime.Object, error) {
			out, err := r.Answer(ctx, o.(T))
			if err != nil {
				return nil, err
			}
			out.GetObjectKind().SetGroupVersionKind(k.GVK())
			return out, nil
		}
	case r.Act != nil:
		return func(ctx context.Context, o api.Object, dry bool) (runtime.Object, error) {
			out, err := r.Act(ctx, o.(T), dry)
			if err != nil {
				return nil, err
			}
			return out, nil
		}
	}
	return nil
}

// as is o's T, or T's zero value (a nil pointer) when o is nil.
func as[T api.Object](o api.Object) T {
	t, _ := o.(T)
	return t
}

// names returns the check of an object's names.
func names[T api.Object](fixed validation.ValidateNameFunc, of func(o T, name string, prefix bool) []string) func(o api.Object) validation.ValidateNameFunc {
	if of != nil {
		return func(o api.Object) validation.ValidateNameFunc {
			return func(name string, prefix bool) []string { return of(o.(T), name, prefix) }
		}
	}
	if fixed == nil {
		fixed = validation.NameIsDNSSubdomain
	}
	return func(api.Object) validation.ValidateNameFunc { return fixed }
}

func inContext[T api.Object](f func(ctx context.Context, now, old T) field.ErrorList) func(ctx context.Context, now, old api.Object) field.ErrorList {
	if f == nil {
		return func(context.Context, api.Object, api.Object) field.ErrorList { return nil }
	}
	return func(ctx context.Context, now, old api.Object) field.ErrorList { return f(ctx, now.(T), as[T](old)) }
}

func one[T api.Object](f func(T)) func(api.Object) {
	if f == nil {
		return func(api.Object) {}
	}
	return func(o api.Object) { f(o.(T)) }
}

func oneErrs[T api.Object](f func(T) field.ErrorList) func(api.Object) field.ErrorList {
	if f == nil {
		return func(api.Object) field.ErrorList { return nil }
	}
	return func(o api.Object) field.ErrorList { return f(o.(T)) }
}

func two[T api.Object](f func(now, old T)) func(now, old api.Object) {
	if f == nil {
		return func(_, _ api.Object) {}
	}
	return func(now, old api.Object) { f(now.(T), old.(T)) }
}

func twoErrs[T api.Object](f func(now, old T) field.ErrorList) func(now, old api.Object) field.ErrorList {
	if f == nil {
		return func(_, _ api.Object) field.ErrorList { return nil }
	}
	return func(now, old api.Object) field.ErrorList { return f(now.(T), old.(T)) }
}

func eraseColumns[T api.Object](cs []Column[T]) []erasedColumn {
	var out []erasedColumn
	for _, c := range cs {
		d := metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: c.Description}
		if d.Type == "" {
			d.Type = "string"
		}
		if c.Wide {
			d.Priority = 1
		}
		if c.Priority != 0 {
			d.Priority = c.Priority
		}
		col := erasedColumn{TableColumnDefinition: d}
		if c.Cell != nil {
			col.cell = func(o api.Object) any { return c.Cell(o.(T)) }
		}
		out = append(out, col)
	}
	return out
}

// part returns the Spec or Status field of o, settable. Precondition: o has it.
func part(o api.Object, name string) reflect.Value {
	return reflect.ValueOf(o).Elem().FieldByName(name)
}

// samePart says whether a and b have equal Specs (or Statuses), empty and absent lists being the same.
func samePart(a, b api.Object, name string) bool {
	return equality.Semantic.DeepEqual(part(a, name).Addr().Interface(), part(b, name).Addr().Interface())
}

// copyPart sets dst's Spec or Status to a copy of src's that shares nothing with it.
func copyPart(dst, src api.Object, name string) {
	part(dst, name).Set(part(src.DeepCopyObject().(api.Object), name))
}

// assign sets *dst to *src. Both are of the same type.
func assign(dst, src api.Object) { reflect.ValueOf(dst).Elem().Set(reflect.ValueOf(src).Elem()) }
