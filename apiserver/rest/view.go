package rest

import (
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// View declares what is special about a kind that is another form of a stored one (autoscaling/v1 of autoscaling/v2,
// events.k8s.io of core events). T is the stored kind's type: requests are converted when they come in and answers when they go
// out, so that everything between knows one form. Defaults, columns, admission and errors are the stored kind's.
type View[T api.Object] struct {
	// Validate, ValidateCreate and ValidateUpdate, where one of them is set, take the place of all three of the stored kind.
	Validate       func(o T) field.ErrorList
	ValidateCreate func(o T) field.ErrorList
	ValidateUpdate func(now, old T) field.ErrorList
	// Name and StandardFinalizers are as in Resource (AnyFinalizer being the opposite), the stored kind's where they are not set.
	Name               func(name string, prefix bool) []string
	StandardFinalizers bool
	// Fields are the selectable fields by the names that they have in this form, the stored kind's where it is nil.
	Fields func(o T) fields.Set
}

// RegisterView erases the type of v, which describes kind k, another form of the kind of stored.
func RegisterView[T api.Object](k *api.Kind, stored Any, v *View[T]) Any {
	e := *stored.r
	if v.Validate != nil || v.ValidateCreate != nil || v.ValidateUpdate != nil {
		e.validate, e.validateCreate, e.validateUpdate = oneErrs(v.Validate), oneErrs(v.ValidateCreate), twoErrs(v.ValidateUpdate)
	}
	if v.Name != nil {
		e.nameOf = names[T](v.Name, nil)
	}
	if v.StandardFinalizers {
		e.anyFinalizer = false
	}
	if v.Fields != nil {
		e.fields = func(o api.Object) fields.Set { return v.Fields(o.(T)) }
	}
	return Any{Kind: k, r: &e}
}

// Kept returns the kind that the Store has the objects as.
func (a Any) Kept() *api.Kind {
	if c := a.r.custom; c != nil {
		return c.Stored
	}
	if of := a.Kind.Of(); of != nil {
		return of
	}
	return a.Kind
}

// inside returns r as the pipeline has it: about the stored kind, whatever form the client speaks.
func (r *Request) inside() *Request {
	if r.Any.Kind.Of() == nil {
		return r
	}
	in := *r
	in.form, in.Any = r.Any.Kind, Any{Kind: r.Any.Kept(), r: r.Any.r}
	return &in
}

// as returns the kind that the client speaks of.
func (r *Request) as() *api.Kind {
	if r.form != nil {
		return r.form
	}
	return r.Any.Kind
}

// show returns e as the client knows it.
func (r *Request) show(e *store.Entry) *store.Entry { return e.As(r.as()) }

// showAll is show for lists. It leaves the list alone.
func (r *Request) showAll(es []*store.Entry) []*store.Entry {
	if r.form == nil {
		return es
	}
	out := make([]*store.Entry, len(es))
	for i, e := range es {
		out[i] = r.show(e)
	}
	return out
}
