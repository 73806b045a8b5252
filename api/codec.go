package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
)

// protoMagic opens every protobuf object, on the wire and in etcd
// (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
const protoMagic = "k8s\x00"

// ErrNotProtobuf says that bytes do not open with Kubernetes' protobuf magic.
var ErrNotProtobuf = errors.New("not a Kubernetes protobuf object")

// protoMessage is what upstream's generated types implement.
type protoMessage interface {
	runtime.ProtobufReverseMarshaller
	Size() int
	MarshalTo([]byte) (int, error)
	Unmarshal([]byte) error
}

// EncodeJSON returns o as JSON, closed by a newline as upstream's encoder does. The apiVersion and
// kind must be set in o.
func EncodeJSON(o runtime.Object) ([]byte, error) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(o); err != nil {
		return nil, fmt.Errorf("encode %s as JSON: %w", o.GetObjectKind().GroupVersionKind().Kind, err)
	}
	return b.Bytes(), nil
}

// DecodeJSON reads JSON into o: case-sensitive, integers kept. The second value lists fields that are
// unknown or given twice (with their path); they are left out of o, and the caller decides what they mean
// (fieldValidation).
func DecodeJSON(data []byte, o any) (strict []error, err error) {
	if b, ok := boundsOf(o, len(data)); ok {
		if err := b.json(data); err != nil {
			return nil, fmt.Errorf("decode JSON: %w", err)
		}
	}
	if u, ok := o.(*unstructured.Unstructured); ok {
		o = &u.Object // whatever it calls itself
	}
	strict, err = kjson.UnmarshalStrict(data, o)
	if err != nil {
		return nil, fmt.Errorf("decode JSON: %w", err)
	}
	return strict, nil
}

// EncodeProto returns o in upstream's protobuf envelope: magic, then runtime.Unknown with o's type and
// its bytes. apiVersion and kind must be set in o.
func EncodeProto(o runtime.Object) ([]byte, error) {
	gvk := o.GetObjectKind().GroupVersionKind()
	m, ok := o.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("encode %s as protobuf: the type has no protobuf form", gvk.Kind)
	}
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
	size := m.Size()
	// NestedMarshalTo writes the envelope back to front around the object, so that it is copied only once.
	buf := make([]byte, len(protoMagic)+size+u.Size()+16)
	n, err := u.NestedMarshalTo(buf[len(protoMagic):], m, uint64(size))
	if err != nil {
		return nil, fmt.Errorf("encode %s as protobuf: %w", gvk.Kind, err)
	}
	copy(buf, protoMagic)
	return buf[:len(protoMagic)+n], nil
}

// DecodeProto reads what EncodeProto writes into o, which must be of the type that the envelope names:
// see ProtoType.
func DecodeProto(data []byte, o runtime.Object) error {
	u, err := envelope(data)
	if err != nil {
		return err
	}
	m, ok := o.(protoMessage)
	if !ok {
		return fmt.Errorf("decode %s: the type has no protobuf form", u.Kind)
	}
	if b, ok := boundsOf(o, len(u.Raw)); ok {
		if err := b.proto(reflect.TypeOf(o).Elem(), u.Raw, b.levels); err != nil {
			return fmt.Errorf("decode %s: %w", u.Kind, err)
		}
	}
	if err := m.Unmarshal(u.Raw); err != nil {
		return fmt.Errorf("decode %s: %w", u.Kind, err)
	}
	if carriesJSON(reflect.TypeOf(o)) { // which nobody has looked at
		if _, err := json.Marshal(o); err != nil {
			return fmt.Errorf("decode %s: %w", u.Kind, err)
		}
	}
	return nil
}

// DecodeStored is DecodeProto for what the database has. It adds what protobuf has no place for: the type of a StatefulSet's claim templates, which
// defaults had given them. Who sends back what he was shown would seem to change these, and they cannot change.
func DecodeStored(data []byte, o runtime.Object) error {
	if err := DecodeProto(data, o); err != nil {
		return err
	}
	if s, ok := o.(*appsv1.StatefulSet); ok {
		for i := range s.Spec.VolumeClaimTemplates {
			s.Spec.VolumeClaimTemplates[i].SetGroupVersionKind(PersistentVolumeClaimKind.GVK())
		}
	}
	return nil
}

// carriers remembers what carriesJSON found: reflect.Type -> bool.
var carriers sync.Map

// carriesJSON says that values of t have parts that are JSON as it came, in protobuf too: data of a ControllerRevision.
func carriesJSON(t reflect.Type) bool {
	if known, ok := carriers.Load(t); ok {
		return known.(bool)
	}
	found := findJSON(t, map[reflect.Type]bool{})
	carriers.Store(t, found)
	return found
}

func findJSON(t reflect.Type, seen map[reflect.Type]bool) bool {
	switch t {
	case reflect.TypeFor[runtime.RawExtension](), reflect.TypeFor[apiextensionsv1.JSON]():
		return true
	}
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return findJSON(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if findJSON(t.Field(i).Type, seen) {
				return true
			}
		}
	}
	return false
}

// ProtoType returns the apiVersion and kind of a protobuf envelope.
func ProtoType(data []byte) (runtime.TypeMeta, error) {
	u, err := envelope(data)
	if err != nil {
		return runtime.TypeMeta{}, err
	}
	return u.TypeMeta, nil
}

func envelope(data []byte) (*runtime.Unknown, error) {
	raw, ok := bytes.CutPrefix(data, []byte(protoMagic))
	if !ok {
		return nil, ErrNotProtobuf
	}
	u := new(runtime.Unknown)
	if err := u.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode protobuf envelope: %w", err)
	}
	return u, nil
}
