package oci

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// filled returns a value of the type in which every field is set, to a depth at which types that hold themselves end.
func filled(t reflect.Type, depth int) reflect.Value {
	v := reflect.New(t).Elem()
	switch t.Kind() {
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(t.Elem()))
			v.Elem().Set(filled(t.Elem(), depth-1))
		}
	case reflect.Struct:
		for i := range t.NumField() {
			v.Field(i).Set(filled(t.Field(i).Type, depth-1))
		}
	case reflect.Slice:
		v = reflect.Append(v, filled(t.Elem(), depth-1))
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		v.SetMapIndex(filled(t.Key(), depth-1), filled(t.Elem(), depth-1))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	}
	return v
}

// Nothing that a spec can hold is lost, also of a later version of the specification.
func TestDecodeSpec(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*specs.Spec{
		"full":  filled(reflect.TypeFor[specs.Spec](), 12).Addr().Interface().(*specs.Spec),
		"usual": DefaultSpec(),
		"none":  {},
		"linux": {Linux: &specs.Linux{}},
	} {
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		want := new(specs.Spec)
		if err := json.Unmarshal(text, want); err != nil {
			t.Fatal(err)
		}
		if got, err := decodeSpec(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, text := range []string{`{`, `{"linux":{"resources":7}}`, `{"hooks":"x"}`, `{"linux":null,"hooks":null}x`} {
		if _, err := decodeSpec([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
	if _, err := decodeSpec([]byte(`{"process":{"rlimits":[{},{"hard":"many"}]}}`)); err == nil || !strings.HasPrefix(err.Error(), "process: rlimits: [1]: hard: ") {
		t.Errorf("a wrong limit: %v", err)
	}
	if s, err := decodeSpec([]byte(` {"Process":{"CWD":"/"}, "PROCESS": {"cwd":"/"}} `)); err != nil || s.Process == nil || s.Process.Cwd != "/" {
		t.Errorf("names in another case: got %+v, %v", s, err)
	}
	if s, err := decodeSpec([]byte(`{"linux":null,"hooks":null}`)); err != nil || s.Linux != nil || s.Hooks != nil {
		t.Errorf("null: got %+v, %v", s, err)
	}
}
