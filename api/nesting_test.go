package api

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Only the types that are known to contain themselves do: others bound the depth of what is read into them.
func TestNests(t *testing.T) {
	t.Parallel()
	var selfish func(t reflect.Type, above []reflect.Type) bool
	selfish = func(t reflect.Type, above []reflect.Type) bool {
		for _, a := range above {
			if a == t {
				return true
			}
		}
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			return selfish(t.Elem(), above)
		case reflect.Struct:
			above = append(above[:len(above):len(above)], t)
			for i := range t.NumField() {
				if selfish(t.Field(i).Type, above) {
					return true
				}
			}
		}
		return false
	}
	for _, k := range Stored() {
		if o := k.New(); selfish(reflect.TypeOf(o), nil) != nests(o) {
			t.Errorf("%v: nests is %v", k, nests(o))
		}
	}
}

func TestShallow(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"as deep as may be": {strings.Repeat("[", MostNested) + strings.Repeat("]", MostNested), true},
		"deeper":            {strings.Repeat("[", MostNested+1), false},
		"wide":              {"[" + strings.Repeat("{},", 1000) + "{}]", true},
		"text":              {`"` + strings.Repeat(`[`, 1000) + `"`, true},
		"quotes in text":    {`"\"` + strings.Repeat(`[`, 1000) + `\\"`, true},
		"after a text":      {`["\\",` + strings.Repeat(`[`, 1000), false},
	} {
		if err := ShallowJSON([]byte(tt.text)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestYAMLToJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ yaml, json, strict, err string }{
		{"a: 1\nb: [x, true]\n", `{"a":1,"b":["x",true]}`, "", ""},
		{"a: &x {k: v}\nb: *x\n", `{"a":{"k":"v"},"b":{"k":"v"}}`, "", ""},
		{"a: &x {k: v}\nb: {<<: *x, l: w}\n", `{"a":{"k":"v"},"b":{"k":"v","l":"w"}}`, "", ""},
		{"a: 'R&D *'\n", `{"a":"R\u0026D *"}`, "", ""},
		{"a: 1\na: 2\n", `{"a":2}`, "already set", ""},
		{"a: &x " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*x,", 14) + "]\n", "", "", ""},
		{"a: &x " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*x,", 16) + "]\n", "", "", "excessive aliasing"},
		{"a: &a [*a]", "", "", "contains itself"},
		{"{", "", "", "did not find"},
	} {
		json, strict, err := YAMLToJSON([]byte(tt.yaml))
		switch {
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)),
			tt.err == "" && err != nil,
			tt.strict != "" && (strict == nil || !strings.Contains(strict.Error(), tt.strict)),
			tt.strict == "" && tt.err == "" && strict != nil,
			tt.json != "" && string(json) != tt.json:
			t.Errorf("%.40q: %.80s, %v, %v", tt.yaml, json, strict, err)
		}
	}
}

// Where messages are in messages is read from the types' own tags: each encoding of a filled object is walked to its end.
func TestMessages(t *testing.T) {
	t.Parallel()
	// A container, its ports, and a map of the pod's.
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b", "c": "d"}, OwnerReferences: []metav1.OwnerReference{{}}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{}, {}}, Resources: corev1.ResourceRequirements{
			Limits: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}}}
	raw, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	// pod, metadata, a creation time, an owner; spec, its container with its resources, a limit and its quantity, and two
	// ports; status
	const messages = 12
	for n, want := range map[int]error{messages: nil, messages - 1: errMany} {
		b := bounds{10, n}
		if err := b.proto(reflect.TypeFor[corev1.Pod](), raw, 10); err != want {
			t.Errorf("%d objects: %v, and %d are left", n, err, b.objects)
		}
	}
	for levels, want := range map[int]error{6: nil, 5: errNested} {
		b := bounds{levels, 100}
		if err := b.proto(reflect.TypeFor[corev1.Pod](), raw, levels); err != want {
			t.Errorf("%d levels: %v", levels, err)
		}
	}
}
