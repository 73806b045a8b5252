package api

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// Every stored kind goes through both encodings, and upstream's own protobuf codec reads
// what we write.
func TestRoundTrip(t *testing.T) {
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(all); err != nil {
			t.Fatal(err)
		}
	}
	upstream := protobuf.NewSerializer(all, all)
	for _, k := range slices.Concat(Stored(), viewed) {
		t.Run(k.Kind+k.Version, func(t *testing.T) {
			o := k.New()
			o.SetName("a")
			o.SetUID("u")
			o.SetLabels(map[string]string{"k": "v"})
			o.SetCreationTimestamp(metav1.Unix(1700000000, 0))

			j, err := EncodeJSON(o)
			if err != nil {
				t.Fatal(err)
			}
			fromJSON := k.New()
			if strict, err := DecodeJSON(j, fromJSON); err != nil || strict != nil {
				t.Fatal(strict, err)
			}
			p, err := EncodeProto(o)
			if err != nil {
				t.Fatal(err)
			}
			fromProto := k.New()
			if err := DecodeProto(p, fromProto); err != nil {
				t.Fatal(err)
			}
			tm, err := ProtoType(p)
			if err != nil || tm.APIVersion != k.APIVersion() || tm.Kind != k.Kind {
				t.Errorf("envelope names %v, %v", tm, err)
			}
			theirs, _, err := upstream.Decode(p, nil, nil)
			if err != nil {
				t.Fatal("upstream's codec:", err)
			}
			theirs.GetObjectKind().SetGroupVersionKind(k.GVK())
			for name, got := range map[string]runtime.Object{"JSON": fromJSON, "protobuf": fromProto, "upstream": theirs} {
				if d := cmp.Diff(runtime.Object(o), got); d != "" {
					t.Errorf("%s: %s", name, d)
				}
			}
			if KindOf(o) != k {
				t.Error("KindOf finds another kind")
			}
		})
	}
}

// A StatefulSet that was stored is what was made: its claim templates have their type, which cannot change.
func TestClaimTemplatesKeepType(t *testing.T) {
	s := StatefulSetKind.New().(*appsv1.StatefulSet)
	s.SetGroupVersionKind(StatefulSetKind.GVK())
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}, ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	p, err := EncodeProto(s)
	if err != nil {
		t.Fatal(err)
	}
	got := StatefulSetKind.New().(*appsv1.StatefulSet)
	if err := DecodeStored(p, got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s.Spec, got.Spec); d != "" {
		t.Error(d)
	}
}

func TestDecodeJSONStrict(t *testing.T) {
	var cm corev1.ConfigMap
	strict, err := DecodeJSON([]byte(`{"data":{"a":"1","a":"2"},"dta":{}}`), &cm)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`duplicate field "data.a"`, `unknown field "dta"`}
	var got []string
	for _, e := range strict {
		got = append(got, e.Error())
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := DecodeJSON([]byte(`{"data":[]}`), &cm); err == nil {
		t.Error("a list was taken for a map")
	}
}

func TestProtoGarbage(t *testing.T) {
	for _, b := range []string{"", "k8s", "k8s\x00\xff\xff", "{}"} {
		if err := DecodeProto([]byte(b), &corev1.Pod{}); err == nil {
			t.Errorf("%q was decoded", b)
		}
	}
}

func FuzzDecodeProto(f *testing.F) {
	b, _ := EncodeProto(PodKind.New())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _ = DecodeProto(b, &corev1.Pod{}) })
}
