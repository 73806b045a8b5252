package crd_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// hook is a conversion webhook that keeps hostPort in v1 and host and port in v2.
func hook(t *testing.T, spoil func(o map[string]any)) (url string, authority []byte) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review map[string]any
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		request := review["request"].(map[string]any)
		var converted []any
		for _, raw := range request["objects"].([]any) {
			o := raw.(map[string]any)
			if request["desiredAPIVersion"] == "stable.example.com/v2" {
				host, port, _ := strings.Cut(fmt.Sprint(o["hostPort"]), ":")
				delete(o, "hostPort")
				o["host"], o["port"] = host, port
			} else {
				o["hostPort"] = fmt.Sprint(o["host"], ":", o["port"])
				delete(o, "host")
				delete(o, "port")
			}
			o["apiVersion"] = request["desiredAPIVersion"]
			if spoil != nil {
				spoil(o)
			}
			converted = append(converted, o)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": map[string]any{
			"uid": request["uid"], "convertedObjects": converted, "result": map[string]any{"status": "Success"}}})
	}))
	t.Cleanup(s.Close)
	return s.URL, pemOf(s.Certificate().Raw)
}

const hosts = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: hosts.stable.example.com}
spec:
  group: stable.example.com
  scope: Cluster
  names: {plural: hosts, singular: host, kind: Host}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {url: %q, caBundle: %s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {hostPort: {type: string}}}}}
  - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, properties: {host: {type: string}, port: {type: string}}}}}
`

// Versions that differ are converted by a webhook, what is read and what is written.
func TestConverted(t *testing.T) {
	w := start(t)
	url, authority := hook(t, nil)
	w.define(fmt.Sprintf(hosts, url, authority))
	const v1, v2 = "/apis/stable.example.com/v1/hosts", "/apis/stable.example.com/v2/hosts"
	for _, s := range []struct{ method, path, body, typ, has string }{
		{"POST", v1, `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`, "application/json", `"hostPort":"h:80"`},
		{"GET", v2 + "/a", "", "", `"host":"h","kind":"Host"`},
		{"POST", v2, `{"apiVersion":"stable.example.com/v2","kind":"Host","metadata":{"name":"b"},"host":"i","port":"90"}`, "application/json", `"port":"90"`},
		{"GET", v1, "", "", `"hostPort":"i:90"`},
		{"GET", v2, "", "", `"port":"80"`},
		{"PATCH", v2 + "/a", `{"port":"81"}`, inMerge, `"port":"81"`},
		{"GET", v1 + "/a", "", "", `"hostPort":"h:81"`},
		{"PATCH", v2 + "/a?fieldManager=me", `{"apiVersion":"stable.example.com/v2","kind":"Host","metadata":{"name":"a"},"host":"j"}`, inApply, `"host":"j"`},
		{"GET", v2 + "?watch=1&timeoutSeconds=1", "", "", `{"type":"ADDED","object":{"apiVersion":"stable.example.com/v2","host":"j"`},
	} {
		a := w.call(s.method, s.path, s.body, "Content-Type", s.typ)
		if !strings.Contains(a.Body.String(), s.has) {
			t.Errorf("%s %s: %d %s\nwant %s", s.method, s.path, a.Code, a.Body, s.has)
		}
	}
}

// What a webhook answers with is no answer to the client: its 404 does not say that the object is gone.
func TestConversionFails(t *testing.T) {
	w := start(t)
	gone := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(gone.Close)
	w.define(fmt.Sprintf(hosts, gone.URL, pemOf(gone.Certificate().Raw)))
	if a := w.call("POST", "/apis/stable.example.com/v1/hosts", `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`); a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	for _, path := range []string{"/a", ""} {
		if a := w.call("GET", "/apis/stable.example.com/v2/hosts"+path, ""); a.Code != http.StatusInternalServerError || !strings.Contains(a.Body.String(), "conversion webhook") {
			t.Errorf("%q: %d %s", path, a.Code, a.Body)
		}
	}
}

// What a webhook may not change is refused, or kept.
func TestConvertedBadly(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(o map[string]any)
		has   string
	}{
		{"name", func(o map[string]any) { o["metadata"].(map[string]any)["name"] = "other" }, `must have the same name: a != other`},
		{"uid", func(o map[string]any) { o["metadata"].(map[string]any)["uid"] = "other" }, `must have the same UID`},
		{"version", func(o map[string]any) { o["apiVersion"] = "stable.example.com/v3" }, `invalid groupVersion (expected stable.example.com/v2, received stable.example.com/v3)`},
		{"label", func(o map[string]any) { o["metadata"].(map[string]any)["labels"] = map[string]any{"a": 1} }, `metadata.labels[a] must be a string`},
		{"good label", func(o map[string]any) { o["metadata"].(map[string]any)["labels"] = map[string]any{"a": "b"} }, `"labels":{"a":"b"}`},
		{"finalizers", func(o map[string]any) { o["metadata"].(map[string]any)["finalizers"] = []any{"x"} }, `"name":"a","resourceVersion"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t)
			url, authority := hook(t, tt.spoil)
			w.define(fmt.Sprintf(hosts, url, authority))
			if a := w.call("POST", "/apis/stable.example.com/v1/hosts", `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`); a.Code != http.StatusCreated {
				t.Fatal(a.Body)
			}
			a := w.call("GET", "/apis/stable.example.com/v2/hosts/a", "", "Accept", "application/json")
			text := a.Body.String()
			if i := strings.Index(text, `"managedFields"`); i > 0 {
				text = text[:i] + text[strings.LastIndex(text, `"name":`):]
			}
			if !strings.Contains(text, tt.has) {
				t.Errorf("%d %s\nwant %s", a.Code, text, tt.has)
			}
		})
	}
}

// However many watch in a version, an object is converted once for all of them, and what other versions show does not undo that.
func TestConvertedOnce(t *testing.T) {
	w := start(t)
	var asked atomic.Int64
	url, authority := hook(t, func(map[string]any) { asked.Add(1) })
	w.define(fmt.Sprintf(hosts, url, authority))
	const v1, v2 = "/apis/stable.example.com/v1/hosts", "/apis/stable.example.com/v2/hosts"
	if a := w.call("POST", v1, `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`); a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	asked.Store(0)
	var readers sync.WaitGroup
	for range 20 {
		for _, path := range []string{v1 + "/a", v2 + "/a", v2, v2 + "?watch=1&timeoutSeconds=1"} {
			readers.Go(func() {
				if a := w.call("GET", path, ""); a.Code != http.StatusOK || !strings.Contains(a.Body.String(), "80") {
					t.Error(path, a.Code, a.Body)
				}
			})
		}
	}
	readers.Wait()
	if n := asked.Load(); n != 1 {
		t.Error("converted so many times:", n)
	}
}
