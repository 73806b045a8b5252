package apiserver_test

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Whatever a client sends, the answer is below 500.
func sane(t *testing.T, w *httptest.ResponseRecorder, what string) {
	t.Helper()
	if w.Code >= 500 {
		t.Errorf("%s: %d %s", what, w.Code, w.Body)
	}
}

func FuzzBody(f *testing.F) {
	s := serve(f)
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	proto, err := api.EncodeProto(pod)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{`{"metadata":{"name":"a"}}`, "metadata: {name: a}", string(proto), "{", "\x00", `{"spec":{"containers":[{"name":1}]}}`, "a: &a [*a]"} {
		for i := range 3 {
			f.Add([]byte(seed), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, kind uint8) {
		media := []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}[kind%3]
		sane(t, do(t, s, "POST", "/api/v1/namespaces/default/pods?dryRun=All", string(body), "Content-Type", media), media)
	})
}

func FuzzPatch(f *testing.F) {
	s := serve(f)
	w := do(f, s, "POST", "/apis/apps/v1/namespaces/default/deployments",
		`{"metadata":{"name":"d"},"spec":{"template":{"spec":{"containers":[{"name":"c","ports":[{"containerPort":1}]}]}}}}`)
	if w.Code != 201 {
		f.Fatal(w.Body)
	}
	for i, seed := range []string{
		`[{"op":"remove","path":"/spec"}]`, `{"spec":null}`, `{"spec":{"template":{"spec":{"containers":[{"name":"c","$patch":"delete"}]}}}}`,
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n", `[{"op":"copy","from":"/","path":"/a/-"}]`, `{"$retainKeys":["a"]}`, "[]", `"x"`, "null",
		`{"spec":{"$setElementOrder/x":[1]}}`, `{"metadata":{"$deleteFromPrimitiveList/finalizers":[{}]}}`,
	} {
		f.Add([]byte(seed), uint8(i))
	}
	f.Fuzz(func(t *testing.T, body []byte, kind uint8) {
		media := []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}[kind%4]
		for _, path := range []string{"d", "d/status", "d/scale"} {
			sane(t, do(t, s, "PATCH", "/apis/apps/v1/namespaces/default/deployments/"+path+"?dryRun=All&fieldManager=f", string(body), "Content-Type", media), media+" "+path)
		}
	})
}

func FuzzQuery(f *testing.F) {
	s := serve(f)
	for _, seed := range []string{"labelSelector=a in (b)", "fieldSelector=spec.nodeName=x", "continue=e30", "limit=-1", "resourceVersion=0&resourceVersionMatch=Exact",
		"sendInitialEvents=true", "labelSelector=!", "timeoutSeconds=x", "dryRun=None", "limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYVx1MDAwMCJ9"} {
		f.Add(seed, "application/json")
	}
	f.Add("", "application/json;as=Table;v=v1;g=meta.k8s.io")
	f.Fuzz(func(t *testing.T, query, accept string) {
		if v, err := url.ParseQuery(query); err != nil || v.Has("watch") || len(v.Get("resourceVersion")) > 1 {
			return // a watch does not end, and a revision of the future is waited for
		}
		for _, c := range accept {
			if c < ' ' || c > '~' {
				return
			}
		}
		q := strings.ReplaceAll(url.PathEscape(query), "%3D", "=")
		sane(t, do(t, s, "GET", "/api/v1/pods?"+strings.ReplaceAll(q, "%26", "&"), "", "Accept", accept), query)
	})
}
