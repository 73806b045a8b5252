package rest

import (
	"fmt"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

// Copies can double a document each, or copy it over and over: both end early. What is no attack is applied as the
// library applies it in one piece.
func TestCopiesAreBounded(t *testing.T) {
	repeat := func(n int, form string) string {
		ops := make([]string, n)
		for i := range ops {
			ops[i] = strings.ReplaceAll(form, "#", fmt.Sprint(i))
		}
		return "[" + strings.Join(ops, ",") + "]"
	}
	const copied = `{"op":"copy","from":"/a","path":"/b"}`
	for name, tt := range map[string]struct {
		doc, patch string
		want       string // "" means that it is refused as too large
	}{
		"nothing":      {`{"a":1}`, `[]`, `{"a":1}`},
		"no copy":      {`{"a":1}`, `[{"op":"add","path":"/b","value":2},{"op":"remove","path":"/a"}]`, `{"b":2}`},
		"copies":       {`{"a":1}`, `[` + copied + `,{"op":"test","path":"/b","value":1},{"op":"copy","from":"/b","path":"/c"},{"op":"remove","path":"/b"}]`, `{"a":1,"c":1}`},
		"many copies":  {`{"a":1}`, repeat(1000, copied), `{"a":1,"b":1}`},
		"doubling":     {`{"a":{"x":1}}`, repeat(60, `{"op":"copy","from":"/a","path":"/a/k#"}`), ""},
		"nesting":      {`{"a":{"x":1}}`, repeat(10000, `{"op":"copy","from":"/a","path":"/a/x"}`), ""},
		"large thrice": {`{"a":"` + strings.Repeat("x", 1<<20) + `"}`, repeat(3, `{"op":"copy","from":"/a","path":"/k#"}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ops, err := jsonpatch.DecodePatch([]byte(tt.patch))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ApplyJSONPatch(ops, []byte(tt.doc))
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), "too large") {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if err != nil || string(got) != tt.want {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}
