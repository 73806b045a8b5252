package openapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"

	"github.com/yare-dev/yare/apiserver/openapi"
)

// TestUpstream compares the definitions of custom resources, and the paths, with those of upstream's builder.
func TestUpstream(t *testing.T) {
	crd := definition(t, "testdata/crd.yaml")
	for _, v := range crd.Spec.Versions {
		var upstream [4]any
		var err error
		if upstream[openapi.V2], err = builder.BuildOpenAPIV2(crd, v.Name, builder.Options{V2: true, IncludeSelectableFields: true}); err != nil {
			t.Fatal(err)
		}
		if upstream[openapi.V3], err = builder.BuildOpenAPIV3(crd, v.Name, builder.Options{IncludeSelectableFields: true}); err != nil {
			t.Fatal(err)
		}
		for _, form := range []openapi.Form{openapi.V2, openapi.V3} {
			ours, err := openapi.Custom(form, crd, v.Name)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(compared(t, form, upstream[form]), compared(t, form, ours)); d != "" {
				t.Errorf("%s of version %d (-upstream +ours):\n%s", v.Name, form, d)
			}
		}
	}
}

// compared is what is compared of a document: definitions of its own, and the methods of paths.
func compared(t *testing.T, form openapi.Form, doc any) map[string]any {
	t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, string(text))
	out := map[string]any{}
	definitions, _ := all["definitions"].(openapi.Doc)
	if form == openapi.V3 {
		definitions = all["components"].(openapi.Doc)["schemas"].(openapi.Doc)
	}
	for name, d := range definitions {
		if !strings.HasPrefix(name, "io.k8s.") {
			if form == openapi.V2 {
				prune(d)
			}
			out[name] = d
		}
	}
	if len(out) != 2 {
		t.Fatalf("definitions of a kind and its list: %d", len(out))
	}
	for path, item := range all["paths"].(openapi.Doc) {
		var methods []string
		for _, m := range []string{"get", "put", "post", "patch", "delete"} {
			if item.(openapi.Doc)[m] != nil {
				methods = append(methods, m)
			}
		}
		out[path] = methods
	}
	return out
}

// prune removes the defaults, as upstream does before it publishes the document of version 2.
func prune(v any) {
	switch v := v.(type) {
	case openapi.Doc:
		if _, isProperty := v["default"].(openapi.Doc); !isProperty || v["type"] != nil {
			delete(v, "default")
		}
		for _, inner := range v {
			prune(inner)
		}
	case []any:
		for _, inner := range v {
			prune(inner)
		}
	}
}
