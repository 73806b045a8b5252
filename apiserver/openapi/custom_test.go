package openapi_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver/openapi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func definition(t *testing.T, file string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	crd := new(apiextensionsv1.CustomResourceDefinition)
	if err := yaml.UnmarshalStrict(text, crd); err != nil {
		t.Fatal(err)
	}
	return crd
}

// TestCustom compares the documents of the versions of a definition with golden files. Built-in definitions are left out of these; that
// clients' parsers read the documents, and find what they refer to, is checked of the whole.
func TestCustom(t *testing.T) {
	crd := definition(t, "testdata/crd.yaml")
	for _, v := range crd.Spec.Versions {
		for _, form := range []openapi.Form{openapi.V2, openapi.V3} {
			name := map[openapi.Form]string{openapi.V2: "v2", openapi.V3: "v3"}[form]
			t.Run(v.Name+" "+name, func(t *testing.T) {
				doc, err := openapi.Custom(form, crd, v.Name)
				if err != nil {
					t.Fatal(err)
				}
				text, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				if form == openapi.V2 {
					_, err = openapi_v2.ParseDocument(text)
				} else {
					_, err = openapi_v3.ParseDocument(text)
				}
				if err != nil {
					t.Error(err)
				}
				if missing := missing(doc, text); len(missing) > 0 {
					t.Errorf("refers to what is not there: %v", missing)
				}
				golden(t, "testdata/"+v.Name+"."+name+".yaml", own(t, text))
			})
		}
	}
	if _, err := openapi.Custom(openapi.V2, crd, "v9"); err == nil {
		t.Error("a version that is not there has a document")
	}
}

// own is the document without built-in definitions and what is the same at all paths, in YAML.
func own(t *testing.T, text []byte) []byte {
	t.Helper()
	var doc struct {
		Swagger     string         `json:"swagger,omitempty"`
		OpenAPI     string         `json:"openapi,omitempty"`
		Definitions map[string]any `json:"definitions,omitempty"`
		Components  *struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components,omitempty"`
		Paths map[string]map[string]any `json:"paths"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &doc); err != nil {
		t.Fatal(err)
	}
	all := doc.Definitions
	if doc.Components != nil {
		all = doc.Components.Schemas
	}
	for name := range all {
		if len(name) > 7 && name[:7] == "io.k8s." {
			delete(all, name)
		}
	}
	for _, item := range doc.Paths {
		for method, op := range item {
			if o, ok := op.(map[string]any); ok {
				item[method] = map[string]any{"200": o["responses"], "kind": o["x-kubernetes-group-version-kind"]}
			}
		}
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; go test -update writes it. Got:\n%s", file, got)
	}
}

// TestMerge puts documents of a definition's versions, and of another server, into one.
func TestMerge(t *testing.T) {
	crd := definition(t, "testdata/crd.yaml")
	doc := openapi.Document(openapi.V2, nil, "v1")
	for _, v := range crd.Spec.Versions {
		more, err := openapi.Custom(openapi.V2, crd, v.Name)
		if err != nil {
			t.Fatal(err)
		}
		openapi.Add(openapi.V2, doc, more)
	}
	other := decode(t, `{"swagger": "2.0", "info": {"title": "other", "version": "v1"}, "paths": {
		"/apis/other.io/v1/things": {"get": {"responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/io.other.Thing"}}}}},
		"/apis/elsewhere.io/v1/more": {"get": {"responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/io.other.Unused"}}}}}},
		"definitions": {
			"io.other.Thing": {"type": "object", "properties": {"status": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Status"}, "in": {"$ref": "#/definitions/io.other.Inner"}}},
			"io.other.Inner": {"type": "object", "properties": {"self": {"$ref": "#/definitions/io.other.Inner"}}},
			"io.other.Unused": {"type": "object"},
			"io.k8s.apimachinery.pkg.apis.meta.v1.Status": {"type": "string", "description": "is another here"}}}`)
	before, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	openapi.AddBelow(openapi.V2, doc, other, "/apis/other.io/v1/")
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if missing := missing(doc, text); len(missing) > 0 {
		t.Errorf("refers to what is not there: %v", missing)
	}
	definitions, paths := doc["definitions"].(openapi.Doc), doc["paths"].(openapi.Doc)
	for _, name := range []string{"com.example.stable.v1.Widget", "com.example.stable.v2.WidgetList", "io.other.Thing", "io.other.Inner",
		"io.k8s.apimachinery.pkg.apis.meta.v1.Status", "io.k8s.apimachinery.pkg.apis.meta.v1.Status_v2"} {
		if definitions[name] == nil {
			t.Errorf("no definition %s", name)
		}
	}
	if definitions["io.other.Unused"] != nil || paths["/apis/elsewhere.io/v1/more"] != nil {
		t.Error("what is not the other server's is there")
	}
	if definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta_v2"] != nil {
		t.Error("the same definition is there twice")
	}
	thing, _ := json.Marshal(definitions["io.other.Thing"])
	if !bytes.Contains(thing, []byte("meta.v1.Status_v2")) {
		t.Errorf("%s", thing)
	}
	if after, _ := json.Marshal(other); !bytes.Equal(after, before) {
		t.Error("the other document was changed")
	}
	// The same once more changes nothing.
	openapi.AddBelow(openapi.V2, doc, other, "/apis/other.io/v1/")
	if again, _ := json.Marshal(doc); !bytes.Equal(again, text) {
		t.Error("adding the same again is no longer the same")
	}
}

func decode(t *testing.T, text string) openapi.Doc {
	t.Helper()
	doc := openapi.Doc{}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}
