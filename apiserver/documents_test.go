package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/store"
)

// TestCustomDocuments follows what is published of a definition from its establishment to its end.
func TestCustomDocuments(t *testing.T) {
	t.Parallel()
	var st *store.Store
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) { st = d.Store })
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com", Generation: 1}}
	crd.Spec = apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
		Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Kind: "Widget", ListKind: "WidgetList"}}
	version := func(name string, field string) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: true, Schema: &apiextensionsv1.CustomResourceValidation{
			OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{field: {Type: "string"}}}}}
	}
	crd.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", "first"), version("v2", "second")}
	index := func() map[string]string {
		t.Helper()
		var doc struct {
			Paths map[string]struct{ ServerRelativeURL string }
		}
		if err := json.Unmarshal(do(t, s, "GET", "/openapi/v3", "").Body.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		urls := map[string]string{}
		for p, e := range doc.Paths {
			urls[p] = e.ServerRelativeURL
		}
		return urls
	}
	v2 := func() (text, tag string) {
		t.Helper()
		w := do(t, s, "GET", "/openapi/v2", "")
		return w.Body.String(), w.Header().Get("ETag")
	}
	plain, tag := v2()
	before := index()

	// Before it is established, there is nothing.
	servertest.Put(t, st, crd.DeepCopy())
	if text, now := v2(); text != plain || now != tag || len(index()) != len(before) {
		t.Error("published before it is established")
	}
	crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	put := func() {
		t.Helper()
		crd.UID = st.Snapshot(api.CustomResourceDefinitionKind).Get(api.KeyOf(crd)).Object.GetUID()
		servertest.Put(t, st, crd.DeepCopy())
	}
	put()
	urls := index()
	first := urls["apis/example.com/v1"]
	if first == "" || urls["apis/example.com/v2"] == "" || urls["apis/apps/v1"] != before["apis/apps/v1"] {
		t.Fatalf("%v", urls)
	}
	w := do(t, s, "GET", first, "")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"com.example.v1.Widget"`) || !strings.Contains(w.Body.String(), `"first"`) || strings.Contains(w.Body.String(), `"second"`) {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
	if w := do(t, s, "GET", first, "", "If-None-Match", w.Header().Get("ETag")); w.Code != http.StatusNotModified {
		t.Errorf("%d for what is known", w.Code)
	}
	text, now := v2()
	if now == tag || !strings.Contains(text, `"com.example.v2.Widget"`) {
		t.Error("not in the document of version 2")
	}

	// Another schema is another document; who asks for the old one is sent to it.
	crd.Generation++
	crd.Spec.Versions[0] = version("v1", "third")
	put()
	if w := do(t, s, "GET", first, ""); w.Code != http.StatusMovedPermanently || w.Header().Get("Location") != index()["apis/example.com/v1"] {
		t.Errorf("%d to %s", w.Code, w.Header().Get("Location"))
	}
	if text, again := v2(); again == now || !strings.Contains(text, `"third"`) || strings.Contains(text, `"first"`) {
		t.Error("the old schema is published")
	}

	// A version that is served no more is gone at once, and so is the definition.
	crd.Generation++
	crd.Spec.Versions[0].Served = false
	put()
	if w := do(t, s, "GET", "/openapi/v3/apis/example.com/v1", ""); w.Code != 404 || index()["apis/example.com/v1"] != "" || index()["apis/example.com/v2"] == "" {
		t.Errorf("%d", w.Code)
	}
	servertest.Remove(t, st, crd)
	if text, last := v2(); text != plain || last != tag || len(index()) != len(before) {
		t.Error("something is left")
	}
}
