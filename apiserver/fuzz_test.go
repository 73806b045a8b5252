package apiserver_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
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
	cbor, err := api.EncodeCBOR(pod)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{`{"metadata":{"name":"a"}}`, "metadata: {name: a}", string(proto), string(cbor), "{", "\x00", `{"spec":{"containers":[{"name":1}]}}`, "a: &a [*a]"} {
		for i := range 4 {
			f.Add([]byte(seed), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, kind uint8) {
		media := []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"}[kind%4]
		sane(t, do(t, s, "POST", "/api/v1/namespaces/default/pods?dryRun=All", string(body), "Content-Type", media), media)
	})
}

// FuzzDeleteOptions deletes what is not there, so that options are all that is read.
func FuzzDeleteOptions(f *testing.F) {
	s := serve(f)
	for i, seed := range []string{`{"propagationPolicy":"Orphan","preconditions":{"uid":"x"}}`, "gracePeriodSeconds: -9223372036854775808", "k8s\x00\x0a\x02\x12\x00", "\xd9\xd9\xf7\xa0", `{"kind":"Pod"}`} {
		f.Add([]byte(seed), uint8(i), "gracePeriodSeconds=1&dryRun=All")
	}
	f.Fuzz(func(t *testing.T, body []byte, kind uint8, query string) {
		media := []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"}[kind%4]
		for _, path := range []string{"/api/v1/namespaces/default/pods/none", "/api/v1/namespaces/default/pods"} {
			sane(t, do(t, s, "DELETE", path+"?"+escaped(query), string(body), "Content-Type", media), media)
		}
	})
}

// escaped makes a query that a request can have of any text, leaving = and & what they are.
func escaped(query string) string {
	q := strings.ReplaceAll(url.PathEscape(query), "%3D", "=")
	return strings.ReplaceAll(q, "%26", "&")
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
		media := []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml", "application/apply-patch+cbor"}[kind%5]
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
		sane(t, do(t, s, "GET", "/api/v1/pods?"+escaped(query), "", "Accept", accept), query)
	})
}

// FuzzSelectors lists and watches by any selector.
func FuzzSelectors(f *testing.F) {
	s := serve(f)
	if w := do(f, s, "POST", "/api/v1/namespaces/default/pods", `{"metadata":{"name":"p","labels":{"a":"b"}},"spec":{"containers":[]}}`); w.Code != 201 {
		f.Fatal(w.Body)
	}
	for _, seed := range [][2]string{{"a in (b,c),!d", "metadata.name=p"}, {"a>1,b<2", `spec.nodeName!=x\,y`}, {"a notin ()", "metadata.namespace=default,status.phase=Pending"}, {",", "=="}, {"a==", `x=\`}} {
		f.Add(seed[0], seed[1], "")
	}
	f.Fuzz(func(t *testing.T, label, field, version string) {
		q := url.Values{"labelSelector": {label}, "fieldSelector": {field}}
		sane(t, do(t, s, "GET", "/api/v1/pods?"+q.Encode(), ""), q.Encode())
		q.Set("watch", "1")
		if len(version) <= 1 { // a revision of the future is waited for
			q.Set("resourceVersion", version)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a watch does not end
		r := httptest.NewRequestWithContext(ctx, "GET", "/api/v1/pods?"+q.Encode(), nil)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusGatewayTimeout { // since it was cancelled
			sane(t, w, q.Encode())
		}
	})
}

// FuzzContinue lists from any token.
func FuzzContinue(f *testing.F) {
	s := serve(f)
	for _, name := range []string{"a", "b", "c"} {
		create(f, s, name)
	}
	for _, seed := range []string{`{"v":"meta.k8s.io/v1","rv":3,"start":"default/a\u0000"}`, `{"v":"meta.k8s.io/v1","rv":-1,"start":"b"}`, `{"v":"x","rv":1}`, `{"v":"meta.k8s.io/v1","rv":9223372036854775807,"start":"/../a"}`, "null", "[]"} {
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, token []byte, encode bool) {
		text := string(token)
		if encode {
			text = base64.RawURLEncoding.EncodeToString(token)
		}
		for _, path := range []string{"/api/v1/configmaps", "/api/v1/namespaces/default/configmaps"} {
			w := do(t, s, "GET", path+"?limit=1&continue="+url.QueryEscape(text), "")
			if w.Code != http.StatusGatewayTimeout { // a revision of the future
				sane(t, w, text)
			}
		}
	})
}

// FuzzPath asks for any path by any method.
func FuzzPath(f *testing.F) {
	s := serve(f)
	for _, seed := range [][2]string{{"GET", "/api/v1/namespaces/default/pods/p/status"}, {"POST", "/apis/apps/v1/namespaces//deployments"}, {"DELETE", "/api//v1/pods"}, {"PATCH", "/apis/a/b/c/d/e/f/g/h"},
		{"PUT", "/api/v1/namespaces/x/finalize"}, {"GET", "/openapi/v3/apis/apps/v1"}, {"GET", "/readyz/ping/x"}, {"HEAD", "/apis/apps"}, {"OPTIONS", "/"}, {"GET", "/api/v1/watch/namespaces"}, {"GET", "/%2e%2e/api"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		u, err := url.Parse("http://h/" + strings.TrimLeft(path, "/"))
		if err != nil || strings.Contains(u.Path, "/watch") || u.RawQuery != "" || strings.ContainsFunc(method, func(c rune) bool { return c < 'A' || c > 'Z' }) || method == "" {
			return
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader("{}"))
		r.Method, r.URL = method, u
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		sane(t, w, method+" "+path)
	})
}

// Small bodies that would be large once read are refused, and cost no more than a large one.
func TestBombs(t *testing.T) {
	s := serve(t)
	create(t, s, "a")
	lol := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		lol += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 10) + "]\n"
	}
	deep := strings.Repeat(`{"a":`, 200000)
	for _, tt := range []struct{ name, method, media, body string }{
		{"aliases", "POST", "application/yaml", lol},
		{"aliases applied", "PATCH", "application/apply-patch+yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n" + lol},
		{"depth", "POST", "application/json", deep},
		{"depth of a patch", "PATCH", "application/merge-patch+json", deep},
		{"depth of lists", "PATCH", "application/json-patch+json", strings.Repeat("[", 1<<20)},
		{"depth in YAML", "POST", "application/yaml", strings.Repeat("[", 1<<20)},
		{"depth in CBOR", "POST", "application/cbor", strings.Repeat("\x81", 1<<20)},
		{"long array in CBOR", "POST", "application/cbor", "\xa1\x64data\x9b\x00\x00\x00\xff\xff\xff\xff\xff"},
		{"long string in protobuf", "POST", "application/vnd.kubernetes.protobuf", "k8s\x00\x0a\xff\xff\xff\xff\x07"},
		{"too large", "POST", "application/json", `{"data":{"a":"` + strings.Repeat("x", 4<<20) + `"}}`},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		path := "/api/v1/namespaces/default/configmaps"
		if tt.method == "PATCH" {
			path += "/a?fieldManager=m"
		}
		w := do(t, s, tt.method, path, tt.body, "Content-Type", tt.media)
		runtime.ReadMemStats(&after)
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("%s: %d", tt.name, w.Code)
		}
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 256 {
			t.Errorf("%s: %d MB for %d bytes", tt.name, grown, len(tt.body))
		}
	}
}
