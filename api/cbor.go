package api

import (
	"bytes"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
)

// EncodeCBOR returns o as one item of CBOR with the magic number before it, as upstream's encoder does. The apiVersion and
// kind must be set in o.
func EncodeCBOR(o runtime.Object) ([]byte, error) {
	var b bytes.Buffer
	if err := cbor.NewSerializer(into{o}, into{o}).Encode(o, &b); err != nil {
		return nil, fmt.Errorf("encode %s as CBOR: %w", o.GetObjectKind().GroupVersionKind().Kind, err)
	}
	return b.Bytes(), nil
}

// DecodeCBOR reads CBOR into o, whatever type the data names. The first value tells of an unknown field; a field given
// twice is an error in CBOR.
func DecodeCBOR(data []byte, o runtime.Object) (strict []error, err error) {
	if b, ok := boundsOf(o, 2*len(data)); ok { // an empty object takes one byte
		if err := b.cbor(data); err != nil {
			return nil, fmt.Errorf("decode CBOR: %w", err)
		}
	}
	_, _, err = cbor.NewSerializer(into{o}, into{o}, cbor.Strict(true)).Decode(data, nil, o)
	if s, ok := runtime.AsStrictDecodingError(err); ok {
		return s.Errors(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("decode CBOR: %w", err)
	}
	return nil, nil
}

// into is upstream's view of one object that is read into: every type is its type.
type into struct{ o runtime.Object }

func (i into) New(schema.GroupVersionKind) (runtime.Object, error) { return i.o, nil }

func (i into) ObjectKinds(o runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{o.GetObjectKind().GroupVersionKind()}, false, nil
}

func (i into) Recognizes(schema.GroupVersionKind) bool { return true }

// EncodeCBOREvent returns a watch event around an object in CBOR.
func EncodeCBOREvent(kind string, object []byte) ([]byte, error) {
	var b bytes.Buffer
	ev := &metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}}
	if err := cbor.NewSerializer(nil, nil, cbor.Transcode(false)).Encode(ev, &b); err != nil {
		return nil, fmt.Errorf("encode a watch event as CBOR: %w", err)
	}
	return b.Bytes(), nil
}
