package oci

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// compare checks that decodeSpec takes a text as encoding/json does.
func compare(t *testing.T, text string) {
	t.Helper()
	want := new(specs.Spec)
	refused := json.Unmarshal([]byte(text), want)
	got, err := decodeSpec([]byte(text))
	if (err == nil) != (refused == nil) {
		t.Fatalf("%s: got %v, want %v", text, err, refused)
	}
	if err == nil && !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %+v, want %+v", text, got, want)
	}
}

// TestDecodeAsOthers has what is easily taken otherwise than it is by encoding/json.
func TestDecodeAsOthers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"process":{"cwd":"/"},"process":{"terminal":true}}`,
		`{"Process":{"cwd":"/a"},"PROCESS":{"cwd":"/b"},"pRocess":{"cwd":"/c"}}`,
		`{"proceſſ":5}`, `{"proce\u017fs":{"cwd":"/"}}`, "{\"\xff\":1}",
		`{"mounts":[{"source":"a"},{"source":"b"}],"mounts":[{"destination":"c"}],"mounts":[{},{}]}`,
		`{"mounts":[{"source":"a"}],"mounts":[],"mounts":[{}]}`,
		`{"mounts":[{"source":"a"}],"mounts":null}`, `{"process":{"cwd":"/"},"process":null,"process":{}}`,
		`{"linux":{"resources":{"blockIO":{"weightDevice":[{"Major":1,"minor":2,"weight":3},null]}}}}`,
		`{"mounts":{}}`, `{"root":[]}`, `{"process":5}`, `{"process":{"user":null,"user":"root"}}`,
		`null`, ` { "root" : { "path" : "a\"}" } , "mounts" : [ { } , { "source" : "]" } ] } `, ``, `{`, `{}}`, `[]`, `1`, `"a"`,
		strings.Repeat(`{"a":`, 10001) + "1" + strings.Repeat("}", 10001),
	} {
		compare(t, text)
	}
}

// FuzzDecodeSpec compares texts that are made at random after the spec's types, with all that they should not have.
func FuzzDecodeSpec(f *testing.F) {
	f.Add(uint64(0), "")
	for seed := range uint64(200) {
		f.Add(seed, "{}")
	}
	f.Fuzz(func(t *testing.T, seed uint64, text string) {
		compare(t, text)
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 1))}
		w.value(reflect.TypeFor[specs.Spec](), 7)
		compare(t, w.String())
		if at := w.IntN(w.Len() + 1); len(text) < 20 {
			compare(t, w.String()[:at]+text+w.String()[at:])
		}
	})
}

// writer writes JSON at random.
type writer struct {
	*rand.Rand
	strings.Builder
}

func (w *writer) one(texts ...string) { w.WriteString(texts[w.IntN(len(texts))]) }

func (w *writer) rarely() bool { return w.IntN(60) == 0 }

func (w *writer) space() { w.one("", "", "", "", " ", "\n", "\t\r ") }

func (w *writer) value(t reflect.Type, depth int) {
	w.space()
	defer w.space()
	switch {
	case w.rarely() || depth == 0:
		w.one("null", "null", "{}", "[]", "[null]", `""`, "0", "true", "-1.5e3", `{"a":[{"b":"]}"}]}`, "1e999", "nul", `"\u00e9\"\\"`)
		return
	case t.Kind() == reflect.Pointer:
		w.value(t.Elem(), depth)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		w.object(membersOf(t), t, depth-1)
	case reflect.Map:
		w.WriteString(`{"k":`)
		w.value(t.Elem(), depth-1)
		w.WriteString(`}`)
	case reflect.Slice:
		w.WriteString("[")
		for i := range w.IntN(3) {
			if i > 0 {
				w.WriteString(",")
			}
			w.value(t.Elem(), depth-1)
		}
		w.WriteString("]")
	case reflect.String:
		w.one(`"a"`, `""`, `"/b\n"`, `"}"`, `"é"`, `"\ud800"`, "\"\xff\"", `"\\"`, `"\""`)
	case reflect.Bool:
		w.one("true", "false")
	default:
		w.one("0", "7", "438", "100000", "3e2")
	}
}

func (w *writer) object(members []member, t reflect.Type, depth int) {
	w.WriteString("{")
	for i, n := 0, w.IntN(5); i < n && len(members) > 0; i++ {
		if i > 0 {
			w.WriteString(",")
		}
		m := members[w.IntN(len(members))]
		name := strconv.Quote(m.name)
		switch w.IntN(12) {
		case 0:
			name = strings.ToUpper(name)
		case 1:
			name = strings.ReplaceAll(name, "s", []string{"ſ", `\u0073`, "S"}[w.IntN(3)])
		case 2:
			name = `"unknown"`
		}
		w.space()
		w.WriteString(name)
		w.space()
		w.WriteString(":")
		w.value(t.FieldByIndex(m.index).Type, depth)
	}
	w.WriteString("}")
}
