package rest

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/yare-dev/yare/api"
)

// managers holds the field manager of each kind and subresource: it knows which fields belong to whom
// (metadata.managedFields) and merges what is applied. Its schema is read at the first write. The zero value is ready.
type managers struct {
	mu   sync.Mutex
	made map[managerKey]*tracker
}

// tracker is the field manager of one kind, with what it need not find again.
type tracker struct {
	*managedfields.FieldManager
	shapes shapes
}

type managerKey struct {
	kind *api.Kind // what clients speak of
	sub  string
}

func (m *managers) get(r *Request) (*tracker, error) {
	a, sub := r.Any, r.Sub
	if c := a.r.custom; c != nil {
		m = &c.managers
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := managerKey{r.as(), sub}
	if f := m.made[key]; f != nil {
		return f, nil
	}
	f, err := a.fieldManager(r, sub)
	if err != nil {
		return nil, fmt.Errorf("make the field manager of %v: %w", a.Kind, err)
	}
	if m.made == nil {
		m.made = map[managerKey]*tracker{}
	}
	m.made[key] = &tracker{FieldManager: f}
	return m.made[key], nil
}

func (a Any) fieldManager(r *Request, sub string) (*managedfields.FieldManager, error) {
	if c := a.r.custom; c != nil {
		fs := customForms{a}
		return managedfields.NewDefaultCRDFieldManager(c.Types(), fs, fs, fs, a.Kind.GVK(), a.Kind.GroupVersion(), sub, resetFields(a, sub))
	}
	fs := forms{a, r.as()}
	return managedfields.NewDefaultFieldManager(MergeTypes(a.Kind), fs, fs, fs, r.as().GVK(), a.Kind.GroupVersion(), sub, resetFields(a, sub))
}

// resetFields are those that a write cannot own since it cannot change them.
func resetFields(a Any, sub string) map[fieldpath.APIVersion]fieldpath.Filter {
	if !a.Has(status) {
		return nil
	}
	paths := a.r.reset[sub]
	switch {
	case paths != nil:
	case sub == "":
		paths = []string{status}
	case sub == status && a.r.strictStatus:
		paths = []string{"spec", "metadata"}
	case sub == status:
		paths = []string{"spec"}
	default:
		return nil
	}
	reset := fieldpath.NewSet()
	for _, p := range paths {
		var path fieldpath.Path
		for name := range strings.SplitSeq(p, ".") {
			path = append(path, fieldpath.PathElement{FieldName: &name})
		}
		reset.Insert(path)
	}
	sets := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, k := range a.Kind.Forms() {
		sets[fieldpath.APIVersion(k.APIVersion())] = reset
	}
	if c := a.r.custom; c != nil && sub == status {
		for _, v := range c.Definition.Spec.Versions {
			sets[fieldpath.APIVersion(schema.GroupVersion{Group: a.Kind.Group, Version: v.Name}.String())] = reset
		}
	}
	return fieldpath.NewExcludeFilterSetMap(sets)
}

// track notes in now, who changed what since old (nil on create). A change that cannot be attributed leaves the
// ownership as it was: it is no reason to refuse a write.
func (m *managers) track(r *Request, old, now api.Object) (err error) {
	if r.owned {
		return nil
	}
	defer refuse(&err)
	f, err := m.get(r)
	if err != nil {
		return err
	}
	if old == nil {
		f.create(r, now)
		return nil
	}
	if _, err := f.Update(old, now, r.Manager); err != nil {
		now.SetManagedFields(old.GetManagedFields())
	}
	return nil
}

// refuse turns a panic into an error for the client: the library takes an object for one that can be written and read as JSON, and
// objects can hold pieces of JSON, as the client sent them, with numbers that are none for it (1e400).
func refuse(err *error) {
	if p := recover(); p != nil {
		*err = apierrors.NewBadRequest(fmt.Sprintf("the object cannot be read as JSON: %v", p))
	}
}

// create notes in o, which is new, that its fields are the request's.
func (t *tracker) create(r *Request, o api.Object) {
	var room [1 << 10]byte
	shape, ok := shapeOf(room[:0], o)
	ok = ok && len(o.GetManagedFields()) == 0 // what the client says about ownership counts
	if ok {
		if fields, known := t.shapes.get(shape); known {
			o.SetManagedFields(r.owns(fields))
			return
		}
	}
	if _, err := t.Update(r.Any.Kind.New(), o, r.Manager); err != nil {
		o.SetManagedFields(nil)
		return
	}
	switch all := o.GetManagedFields(); {
	case !ok || len(all) > 1:
	case len(all) == 0:
		t.shapes.put(shape, nil)
	default:
		t.shapes.put(shape, all[0].FieldsV1)
	}
}

// owns says that the request's manager owns fields as of now; nil are none.
func (r *Request) owns(fields *metav1.FieldsV1) []metav1.ManagedFieldsEntry {
	if fields == nil {
		return nil
	}
	return []metav1.ManagedFieldsEntry{{
		Manager: cmp.Or(r.Manager, "unknown"), Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: r.as().APIVersion(),
		Time: &metav1.Time{Time: time.Now().UTC()}, FieldsType: "FieldsV1", FieldsV1: fields, Subresource: r.Sub,
	}}
}

// apply merges the configuration given by patch into old (nil: into nothing) and returns a new object.
func (m *managers) apply(r *Request, old api.Object, patch *unstructured.Unstructured, force bool) (_ api.Object, err error) {
	defer refuse(&err)
	f, err := m.get(r)
	if err != nil {
		return nil, err
	}
	live := old
	if live == nil {
		live = r.Any.Kind.New()
	}
	o, err := f.Apply(live, patch, r.Manager, force)
	if err != nil {
		return nil, err
	}
	now, ok := o.(api.Object)
	if !ok {
		return nil, fmt.Errorf("apply of %v made a %T", r.Any.Kind, o)
	}
	if now == live {
		now = live.DeepCopyObject().(api.Object)
	}
	return now, nil
}

// forms is upstream's view of one kind: creating, converting and defaulting its objects in each of their forms, the stored one being
// the form that everything is converted through.
type forms struct {
	a  Any       // the stored kind
	as *api.Kind // what the client speaks of
}

func (f forms) New(schema.GroupVersionKind) (runtime.Object, error) { return f.as.New(), nil }

func (f forms) Default(o runtime.Object) {
	// What another form leaves out is filled in after it has been converted.
	if o, ok := o.(api.Object); ok && api.KindOf(o) == f.a.Kind {
		f.a.r.set(o)
	}
}

func (f forms) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	o, from, err := f.read(in)
	if err != nil {
		return nil, err
	}
	for _, to := range f.a.Kind.Forms() {
		// A group and version accept other versions of the group and name their own.
		if is, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{to.GVK()}); !ok || is != to.GVK() {
			continue
		}
		if to == from {
			return o, nil
		}
		return to.Show(from.Store(o)), nil
	}
	return nil, runtime.NewNotRegisteredErrForTarget("", reflect.TypeOf(o), target)
}

// read returns in as an object of its form.
func (f forms) read(in runtime.Object) (api.Object, *api.Kind, error) {
	u, ok := in.(*unstructured.Unstructured)
	for _, k := range f.a.Kind.Forms() {
		switch {
		case !ok && api.KindOf(in) == k:
			return in.(api.Object), k, nil
		case ok && u.GroupVersionKind() == k.GVK():
			out := k.New()
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
				return nil, nil, fmt.Errorf("read %s: %w", k.Kind, err)
			}
			return out, k, nil
		}
	}
	return nil, nil, runtime.NewNotRegisteredErrForKind("", in.GetObjectKind().GroupVersionKind())
}

func (f forms) Convert(_, _, _ any) error {
	return errors.New("objects are converted to a version")
}

func (f forms) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
