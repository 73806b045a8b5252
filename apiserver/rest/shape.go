package rest

import (
	"encoding/binary"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
)

// The fields that a creation owns depend on the object's shape alone: on which fields are set, on the keys of maps, and on
// what stands in lists, whose items may be known by it. Objects of one shape are made by the thousand, pods of a template above
// all, so the fields are remembered by the shape, which costs a twentieth of finding them.

// shapes are what is remembered of one kind.
type shapes struct {
	mu     sync.Mutex
	fields map[string]*metav1.FieldsV1 // nil where nothing is owned; shared and read-only
}

// Large shapes are of large objects, which are few; past mostShapes, all are forgotten.
const (
	mostShapes = 250
	largeShape = 4 << 10
)

func (s *shapes) get(shape []byte) (fields *metav1.FieldsV1, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fields, known = s.fields[string(shape)]
	return fields, known
}

func (s *shapes) put(shape []byte, fields *metav1.FieldsV1) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fields == nil || len(s.fields) >= mostShapes {
		s.fields = map[string]*metav1.FieldsV1{}
	}
	s.fields[string(shape)] = fields
}

// shapeOf appends the shape of o, and says false where it has none that could be remembered.
func shapeOf(b []byte, o api.Object) ([]byte, bool) {
	b, ok := appendShape(b, reflect.ValueOf(o).Elem(), false)
	return b, ok && len(b) <= largeShape
}

// appendShape appends v's part of the shape. Exact says that values count, since v stands in a list.
func appendShape(b []byte, v reflect.Value, exact bool) ([]byte, bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0), true
		}
		return appendShape(append(b, 1), v.Elem(), exact)
	case reflect.Struct:
		return appendStruct(b, v, exact)
	case reflect.Map:
		return appendMap(b, v, exact)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 { // a scalar: it is encoded as a string
			b = appendSet(b, !v.IsNil(), v.Len() > 0)
			if exact {
				b = appendText(b, string(v.Bytes()))
			}
			return b, true
		}
		b = binary.AppendUvarint(appendSet(b, !v.IsNil()), uint64(v.Len()))
		ok := true
		for i := 0; ok && i < v.Len(); i++ {
			b, ok = appendShape(b, v.Index(i), true)
		}
		return b, ok
	case reflect.String:
		if exact {
			return appendText(b, v.String()), true
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if exact {
			return binary.AppendVarint(b, v.Int()), true
		}
	case reflect.Bool:
	default:
		return b, false
	}
	return appendSet(b, !v.IsZero()), true
}

func appendStruct(b []byte, v reflect.Value, exact bool) ([]byte, bool) {
	switch v.Type() {
	case timeType, microTimeType, durationType, quantityType, intOrStringType: // scalars, by which no list item is known
		b = appendSet(b, !v.IsZero())
		if !exact {
			return b, true
		}
		text, err := v.Addr().Interface().(json.Marshaler).MarshalJSON()
		return appendText(b, string(text)), err == nil
	}
	if !plainStruct(v.Type()) {
		return b, false
	}
	ok := true
	for i := 0; ok && i < v.NumField(); i++ {
		b, ok = appendShape(b, v.Field(i), exact)
	}
	return b, ok
}

func appendMap(b []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if v.Type().Key().Kind() != reflect.String {
		return b, false
	}
	b = binary.AppendUvarint(appendSet(b, !v.IsNil()), uint64(v.Len()))
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	ok := true
	for i := 0; ok && i < len(keys); i++ {
		value := v.MapIndex(keys[i])
		if value.Kind() == reflect.Struct { // its methods need an address
			at := reflect.New(value.Type()).Elem()
			at.Set(value)
			value = at
		}
		b, ok = appendShape(appendText(b, keys[i].String()), value, exact)
	}
	return b, ok
}

func appendSet(b []byte, set ...bool) []byte {
	for _, s := range set {
		if s {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var (
	timeType        = reflect.TypeFor[metav1.Time]()
	microTimeType   = reflect.TypeFor[metav1.MicroTime]()
	durationType    = reflect.TypeFor[metav1.Duration]()
	quantityType    = reflect.TypeFor[resource.Quantity]()
	intOrStringType = reflect.TypeFor[intstr.IntOrString]()
	marshalerType   = reflect.TypeFor[json.Marshaler]()

	plain sync.Map // reflect.Type -> bool
)

// plainStruct says that a struct is encoded field by field: it has no encoding of its own, and nothing that is hidden.
func plainStruct(t reflect.Type) bool {
	if p, ok := plain.Load(t); ok {
		return p.(bool)
	}
	p := !reflect.PointerTo(t).Implements(marshalerType)
	for i := 0; i < t.NumField(); i++ {
		p = p && t.Field(i).IsExported()
	}
	plain.Store(t, p)
	return p
}
