package rest

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
)

// filler fills objects with what few values there are, so that shapes come again with other values in them.
type filler struct{ *rand.Rand }

func (f filler) fill(v reflect.Value, depth int) {
	if f.IntN(4) == 0 {
		return
	}
	switch v.Type() {
	case timeType:
		v.Set(reflect.ValueOf(metav1.Unix(1+f.Int64N(3), 0)))
		return
	case microTimeType:
		v.Set(reflect.ValueOf(metav1.NewMicroTime(time.Unix(1+f.Int64N(3), 0))))
		return
	case quantityType:
		v.Set(reflect.ValueOf(*resource.NewQuantity(f.Int64N(3), resource.DecimalSI)))
		return
	case intOrStringType:
		v.Set(reflect.ValueOf([]intstr.IntOrString{intstr.FromInt32(1), intstr.FromString("x")}[f.IntN(2)]))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), depth-1)
		}
	case reflect.Struct:
		if !plainStruct(v.Type()) {
			return // has no shape; nothing of it would be remembered
		}
		for i := range v.NumField() {
			f.fill(v.Field(i), depth-1)
		}
	case reflect.Slice:
		if depth > 0 {
			v.Set(reflect.MakeSlice(v.Type(), f.IntN(3), 3))
			for i := range v.Len() {
				f.fill(v.Index(i), depth-1)
			}
		}
	case reflect.Map:
		if depth > 0 && v.Type().Key().Kind() == reflect.String {
			v.Set(reflect.MakeMap(v.Type()))
			for range f.IntN(3) {
				value := reflect.New(v.Type().Elem()).Elem()
				f.fill(value, depth-1)
				v.SetMapIndex(reflect.ValueOf(f.text()).Convert(v.Type().Key()), value)
			}
		}
	case reflect.String:
		v.SetString(f.text())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.IntN(3)))
	case reflect.Uint8:
		v.SetUint(uint64(f.IntN(3)))
	case reflect.Bool:
		v.SetBool(f.IntN(2) == 0)
	}
}

func (f filler) text() string { return []string{"", "a", "b", "c"}[f.IntN(4)] }

// What is remembered of a shape is what is found of every object of the shape, of every kind.
func TestShapes(t *testing.T) {
	t.Parallel()
	f := filler{rand.New(rand.NewPCG(1, 2))}
	var m managers
	for _, k := range api.Stored() {
		a := Any{Kind: k, r: &erased{set: func(api.Object) {}, hasStatus: reflect.ValueOf(k.New()).Elem().FieldByName("Status").IsValid()}}
		r := &Request{Any: a, Manager: "test"}
		tr, err := m.get(r)
		if err != nil {
			t.Fatal(err)
		}
		for depth := range 40 {
			o := k.New()
			f.fill(reflect.ValueOf(o).Elem(), 2+depth/4)
			o.SetManagedFields(nil)
			o.GetObjectKind().SetGroupVersionKind(k.GVK())
			for range 3 {
				want, got := o.DeepCopyObject().(api.Object), o.DeepCopyObject().(api.Object)
				if _, err := tr.Update(k.New(), want, r.Manager); err != nil {
					want.SetManagedFields(nil)
				}
				tr.create(r, got)
				same(t, k, o, got.GetManagedFields(), want.GetManagedFields())
				alter(f, reflect.ValueOf(o).Elem())
			}
		}
		t.Logf("%v: %d shapes", k, len(tr.shapes.fields))
	}
}

// alter gives scalars other values, so that the shape stays where they are no part of it.
func alter(f filler, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			alter(f, v.Elem())
		}
	case reflect.Struct:
		if plainStruct(v.Type()) {
			for i := range v.NumField() {
				if v.Type().Field(i).Name != "TypeMeta" {
					alter(f, v.Field(i))
				}
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			alter(f, v.Index(i))
		}
	case reflect.String:
		if v.String() != "" {
			v.SetString(v.String() + "z")
		}
	case reflect.Int32, reflect.Int64:
		if v.Int() != 0 {
			v.SetInt(v.Int() + 1)
		}
	}
}

func same(t *testing.T, k *api.Kind, o api.Object, got, want []metav1.ManagedFieldsEntry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%v: %v, want %v, of %+v", k, got, want, o)
	}
	for i := range want {
		g, w := got[i], want[i]
		if !bytes.Equal(g.FieldsV1.Raw, w.FieldsV1.Raw) {
			t.Fatalf("%v: %s\nwant %s\nof %+v", k, g.FieldsV1.Raw, w.FieldsV1.Raw, o)
		}
		g.FieldsV1, w.FieldsV1, g.Time, w.Time = nil, nil, nil, nil
		if !reflect.DeepEqual(g, w) {
			t.Errorf("%v: %+v, want %+v", k, g, w)
		}
	}
}

// Pods of a template are of one shape, whatever their names are; what a list holds is part of it.
func TestShape(t *testing.T) {
	t.Parallel()
	shape := func(change func(cm *metav1.ObjectMeta)) string {
		o := api.PodKind.New()
		m := &metav1.ObjectMeta{Name: "a", Labels: map[string]string{"a": "b", "c": "d"}, OwnerReferences: []metav1.OwnerReference{{UID: "u"}}}
		change(m)
		reflect.ValueOf(o).Elem().FieldByName("ObjectMeta").Set(reflect.ValueOf(*m))
		b, ok := shapeOf(nil, o)
		if !ok {
			t.Fatal("a pod has no shape")
		}
		return string(b)
	}
	usual := shape(func(*metav1.ObjectMeta) {})
	for name, tt := range map[string]struct {
		change func(m *metav1.ObjectMeta)
		same   bool
	}{
		"name":        {func(m *metav1.ObjectMeta) { m.Name = "b" }, true},
		"no name":     {func(m *metav1.ObjectMeta) { m.Name = "" }, false},
		"label":       {func(m *metav1.ObjectMeta) { m.Labels["a"] = "x" }, true},
		"more labels": {func(m *metav1.ObjectMeta) { m.Labels["e"] = "" }, false},
		"owner":       {func(m *metav1.ObjectMeta) { m.OwnerReferences[0].UID = "v" }, false},
		"time":        {func(m *metav1.ObjectMeta) { m.CreationTimestamp = metav1.Now() }, false},
	} {
		if got := shape(tt.change) == usual; got != tt.same {
			t.Errorf("%s: same is %v", name, got)
		}
	}
}

func BenchmarkTrackCreate(b *testing.B) {
	var m managers
	r := &Request{Any: Any{Kind: api.ConfigMapKind, r: &erased{set: func(api.Object) {}}}, Manager: "test"}
	for _, known := range []bool{false, true} {
		b.Run(map[bool]string{false: "new shape", true: "known shape"}[known], func(b *testing.B) {
			for b.Loop() {
				o := api.ConfigMapKind.New()
				o.SetName("a")
				o.SetUID("u")
				o.SetLabels(map[string]string{"a": "b"})
				tr, err := m.get(r)
				if err != nil {
					b.Fatal(err)
				}
				if !known {
					tr.shapes.fields = nil
				}
				tr.create(r, o)
			}
		})
	}
}
