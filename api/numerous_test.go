package api

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestFew(t *testing.T) {
	t.Parallel()
	pod := func(containers int) *corev1.Pod {
		return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Spec: corev1.PodSpec{Containers: make([]corev1.Container, containers)}}
	}
	secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		Data: map[string][]byte{"zeros": make([]byte, 1<<20), "lines": []byte(strings.Repeat("some text\n", 1<<16)), "brackets": []byte(strings.Repeat(`[{",`, 1<<18))}}
	for name, tt := range map[string]struct {
		few  func([]byte) error
		data []byte
		ok   bool
	}{
		"JSON":               {FewJSON, []byte("[" + strings.Repeat("{},", MostValues-1) + "{}]"), true},
		"JSON of lists":      {FewJSON, []byte("[" + strings.Repeat("[],", MostValues) + "[]]"), false},
		"JSON of texts":      {FewJSON, []byte("[" + strings.Repeat(`"",`, MostValues) + `""]`), false},
		"JSON text":          {FewJSON, []byte(`"` + strings.Repeat(`[{,\"`, MostValues) + `"`), true},
		"CBOR":               {FewCBOR, []byte(cborMagic + "\x9f" + strings.Repeat("\xa1\x41a\xa0", MostValues/2-1) + "\xff"), true},
		"CBOR of empties":    {FewCBOR, []byte("\x9f" + strings.Repeat("\xa0", MostValues) + "\xff"), false},
		"CBOR text":          {FewCBOR, []byte("\x7a\x00\x10\x00\x00" + strings.Repeat("\xa0", 1<<20)), true},
		"CBOR text in parts": {FewCBOR, []byte("\x7f\x7a\x00\x10\x00\x00" + strings.Repeat("\xa0", 1<<20) + "\xff"), true},
		"CBOR cut off":       {FewCBOR, []byte("\x7b\x00\x10\x00\x00"), true},
		"protobuf":           {FewProto, proto(t, pod(10_000)), true},
		"protobuf of many":   {FewProto, proto(t, pod(MostValues)), false},
		"protobuf of bytes":  {FewProto, proto(t, secret), true},
		"protobuf cut off":   {FewProto, proto(t, secret)[:1<<20], true},
	} {
		if err := tt.few(tt.data); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func proto(t *testing.T, o runtime.Object) []byte {
	t.Helper()
	b, err := EncodeProto(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
