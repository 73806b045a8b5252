package rest

import (
	"errors"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/yare-dev/yare/api"
)

// managers holds the field manager of each kind and subresource: it knows which fields belong to whom
// (metadata.managedFields) and merges what is applied. Its schema is read at the first write. The zero value is ready.
type managers struct {
	once  sync.Once
	types managedfields.TypeConverter

	mu   sync.Mutex
	made map[managerKey]*managedfields.FieldManager
}

type managerKey struct {
	kind *api.Kind
	sub  string
}

func (m *managers) load() { m.types = applyconfigurations.NewTypeConverter(scheme.Scheme) }

func (m *managers) get(a Any, sub string) (*managedfields.FieldManager, error) {
	m.once.Do(m.load)
	m.mu.Lock()
	defer m.mu.Unlock()
	key := managerKey{a.Kind, sub}
	if f := m.made[key]; f != nil {
		return f, nil
	}
	one, types := single{a}, m.types
	if a.Kind == api.ScaleKind { // client-go has no schema of it, but scalars alone need none
		types = managedfields.NewDeducedTypeConverter()
	}
	f, err := managedfields.NewDefaultFieldManager(types, one, one, one, a.Kind.GVK(), a.Kind.GroupVersion(), sub, resetFields(a, sub))
	if err != nil {
		return nil, fmt.Errorf("make the field manager of %v: %w", a.Kind, err)
	}
	if m.made == nil {
		m.made = map[managerKey]*managedfields.FieldManager{}
	}
	m.made[key] = f
	return f, nil
}

// resetFields are those that a write cannot own since it cannot change them.
func resetFields(a Any, sub string) map[fieldpath.APIVersion]fieldpath.Filter {
	if !a.Has(status) {
		return nil
	}
	reset := fieldpath.NewSet()
	switch sub {
	case "":
		reset.Insert(fieldpath.MakePathOrDie("status"))
	case "status":
		reset.Insert(fieldpath.MakePathOrDie("spec"))
	default:
		return nil
	}
	return fieldpath.NewExcludeFilterSetMap(map[fieldpath.APIVersion]*fieldpath.Set{
		fieldpath.APIVersion(a.Kind.APIVersion()): reset,
	})
}

// track notes in now, who changed what since old (nil on create). A change that cannot be attributed leaves the
// ownership as it was: it is no reason to refuse a write.
func (m *managers) track(r *Request, old, now api.Object) error {
	if r.owned {
		return nil
	}
	f, err := m.get(r.Any, r.Sub)
	if err != nil {
		return err
	}
	live := old
	if live == nil {
		live = r.Any.Kind.New()
	}
	if _, err := f.Update(live, now, r.Manager); err != nil {
		now.SetManagedFields(live.GetManagedFields())
	}
	return nil
}

// apply merges the configuration given by patch into old (nil: into nothing) and returns a new object.
func (m *managers) apply(r *Request, old api.Object, patch *unstructured.Unstructured, force bool) (api.Object, error) {
	f, err := m.get(r.Any, r.Sub)
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

// single is upstream's view of one kind with one version: creating, converting and defaulting of nothing else.
type single struct{ a Any }

func (s single) New(schema.GroupVersionKind) (runtime.Object, error) { return s.a.Kind.New(), nil }
func (s single) Default(o runtime.Object) {
	if o, ok := o.(api.Object); ok {
		s.a.r.set(o)
	}
}

func (s single) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return in, nil
	}
	out := s.a.Kind.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, fmt.Errorf("read %s: %w", s.a.Kind.Kind, err)
	}
	return out, nil
}

func (s single) Convert(_, _, _ any) error {
	return errors.New("kinds of one version are not converted")
}

func (s single) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
