package crd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/policy"
	"github.com/yare-dev/yare/apiserver/admission/webhook"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// nobody may do anything by the variable "authorizer".
type nobody struct{}

func (nobody) Authorize(context.Context, *authz.Attributes) (bool, string, error) {
	return false, "", nil
}

// guarded is a world with webhooks and policies.
func guarded(t *testing.T) *world {
	t.Helper()
	s := servertest.Store(t)
	var w *world
	hooks := webhook.New(webhook.Deps{Store: s, Callout: callout.New(callout.Deps{Store: s}), Access: nobody{}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	policies := policy.New(policy.Deps{Store: s, Access: nobody{}, Metrics: prometheus.NewRegistry(), Kind: func(gvk schema.GroupVersionKind) (rest.Any, bool) { return w.api.Kind(gvk) }})
	servertest.Put(t, s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	w = over(t, s, policies.Mutating(), hooks.Mutating(), policies.Validating(), hooks.Validating())
	return w
}

// put creates objects that are given as YAML, one each.
func put[T any, P interface {
	*T
	api.Object
}](w *world, texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		o := P(new(T))
		if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.admin.Create(w.t.Context(), o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// A webhook that is about one version is asked, in that version, about writes in any.
func TestWebhooksOfOtherVersions(t *testing.T) {
	w := guarded(t)
	url, authority := hook(t, nil)
	w.define(fmt.Sprintf(hosts, url, authority))
	var mu sync.Mutex
	var asked []string
	s := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		var q admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		var now, old map[string]any
		_ = json.Unmarshal(q.Request.Object.Raw, &now)
		_ = json.Unmarshal(q.Request.OldObject.Raw, &old)
		mu.Lock()
		asked = append(asked, fmt.Sprintf("%s %s as %s: %v from %v", r.URL.Path, q.Request.RequestKind.Version, q.Request.Kind.Version, now["hostPort"], old["hostPort"]))
		mu.Unlock()
		q.Response = &admissionv1.AdmissionResponse{UID: q.Request.UID, Allowed: now["hostPort"] != "evil:1", Result: &metav1.Status{Message: "not there"}}
		if r.URL.Path == "/mutate" && now["hostPort"] == "i:90" {
			typ := admissionv1.PatchTypeJSONPatch
			q.Response.PatchType, q.Response.Patch = &typ, []byte(`[{"op":"replace","path":"/hostPort","value":"j:91"}]`)
		}
		q.Request = nil
		_ = json.NewEncoder(out).Encode(&q)
	}))
	t.Cleanup(s.Close)
	config := `
metadata: {name: h}
webhooks:
- name: h.example.com
  clientConfig: {url: %q, caBundle: %s}
  rules: [{operations: ["*"], apiGroups: [stable.example.com], apiVersions: [v1], resources: [hosts]}]
  sideEffects: None
  admissionReviewVersions: [v1]
`
	ca := pemOf(s.Certificate().Raw)
	put[admissionregv1.MutatingWebhookConfiguration](w, fmt.Sprintf(config, s.URL+"/mutate", ca))
	put[admissionregv1.ValidatingWebhookConfiguration](w, fmt.Sprintf(config, s.URL+"/validate", ca))
	const v1, v2 = "/apis/stable.example.com/v1/hosts", "/apis/stable.example.com/v2/hosts"
	for _, c := range []struct {
		method, path, body string
		code               int
		has                string
		asked              []string
	}{
		{"POST", v2, `{"apiVersion":"stable.example.com/v2","kind":"Host","metadata":{"name":"a"},"host":"i","port":"90"}`, 201, `"host":"j","kind":"Host"`,
			[]string{"/mutate v2 as v1: i:90 from <nil>", "/validate v2 as v1: j:91 from <nil>"}},
		{"PATCH", v2 + "/a", `{"host":"evil","port":"1"}`, 400, "not there", []string{"/mutate v2 as v1: evil:1 from j:91"}},
		{"PATCH", v1 + "/a", `{"hostPort":"k:92"}`, 200, `"hostPort":"k:92"`, []string{"/mutate v1 as v1: k:92 from j:91", "/validate v1 as v1: k:92 from j:91"}},
		{"GET", v2 + "/a", "", 200, `"port":"92"`, nil},
		{"DELETE", v2 + "/a", "", 200, `"status":"Success"`, []string{"/mutate v2 as v1: <nil> from k:92", "/validate v2 as v1: <nil> from k:92"}},
	} {
		a := w.call(c.method, c.path, c.body, "Content-Type", typeOf(c.method))
		if a.Code != c.code || !strings.Contains(a.Body.String(), c.has) {
			t.Errorf("%s %s: %d %s\nwant %d %s", c.method, c.path, a.Code, a.Body, c.code, c.has)
		}
		mu.Lock()
		if !slices.Equal(asked, c.asked) {
			t.Errorf("%s %s: asked %q, want %q", c.method, c.path, asked, c.asked)
		}
		asked = nil
		mu.Unlock()
	}
}

func typeOf(method string) string {
	if method == "PATCH" {
		return inMerge
	}
	return "application/json"
}

// A webhook's version that an object cannot be converted to is no way around the webhook.
func TestUnconvertible(t *testing.T) {
	w := guarded(t)
	url, authority := hook(t, func(o map[string]any) { delete(o, "metadata") })
	w.define(fmt.Sprintf(hosts, url, authority))
	put[admissionregv1.ValidatingWebhookConfiguration](w, `
metadata: {name: h}
webhooks:
- name: h.example.com
  clientConfig: {url: "https://127.0.0.1:1/"}
  failurePolicy: Ignore
  rules: [{operations: ["*"], apiGroups: [stable.example.com], apiVersions: [v2], resources: [hosts]}]
  sideEffects: None
  admissionReviewVersions: [v1]
`)
	a := w.call("POST", "/apis/stable.example.com/v1/hosts", `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`)
	if a.Code != http.StatusInternalServerError || !strings.Contains(a.Body.String(), "conversion webhook for stable.example.com/v1, Kind=Host") {
		t.Error(a.Code, a.Body)
	}
}

// A policy that is about one version is asked about writes in any, and merges lists by their keys.
func TestPoliciesOfOtherVersions(t *testing.T) {
	w := guarded(t)
	w.define(cronTabs)
	rules := `matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [stable.example.com], apiVersions: [v1], resources: [crontabs]}]}`
	put[admissionregv1.MutatingAdmissionPolicy](w, `
metadata: {name: m}
spec:
  `+rules+`
  reinvocationPolicy: Never
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {expression: 'Object{spec: Object.spec{list: [Object.spec.list{name: "b", v: "2"}]}}'}
`)
	put[admissionregv1.MutatingAdmissionPolicyBinding](w, `{metadata: {name: m}, spec: {policyName: m}}`)
	put[admissionregv1.ValidatingAdmissionPolicy](w, `
metadata: {name: v}
spec:
  `+rules+`
  validations: [{expression: 'object.apiVersion == "stable.example.com/v1" && object.spec.cronSpec != "never"', message: "not never"}]
`)
	put[admissionregv1.ValidatingAdmissionPolicyBinding](w, `{metadata: {name: v}, spec: {policyName: v, validationActions: [Deny]}}`)
	for _, path := range []string{tabs, oldTabs} {
		version := strings.Split(path, "/")[3]
		body := func(name, cron string) string {
			return fmt.Sprintf(`{"apiVersion":"stable.example.com/%s","kind":"CronTab","metadata":{"name":%q},"spec":{"cronSpec":%q,"list":[{"name":"a","v":"1"},{"name":"b"}]}}`, version, name, cron)
		}
		if a := w.call("POST", path, body(version, "x")); a.Code != http.StatusCreated || !strings.Contains(a.Body.String(), `"list":[{"name":"a","v":"1"},{"name":"b","v":"2"}]`) {
			t.Error(path, a.Code, a.Body)
		}
		if a := w.call("POST", path, body(version+"never", "never")); a.Code != http.StatusUnprocessableEntity || !strings.Contains(a.Body.String(), "not never") {
			t.Error(path, a.Code, a.Body)
		}
	}
}

// Parameters of policies may be custom resources, in any version that is served.
func TestCustomParams(t *testing.T) {
	w := guarded(t)
	url, authority := hook(t, nil)
	w.define(fmt.Sprintf(hosts, url, authority))
	w.define(cronTabs)
	for path, body := range map[string]string{
		"/apis/stable.example.com/v1/hosts": `{"apiVersion":"stable.example.com/v1","kind":"Host","metadata":{"name":"a"},"hostPort":"h:80"}`,
		tabs:                                tab("t", `{"cronSpec":"h","replicas":3}`),
	} {
		if a := w.call("POST", path, body); a.Code != http.StatusCreated {
			t.Fatal(a.Body)
		}
	}
	for name, p := range map[string]struct{ kind, ref, expression string }{
		"host": {"{apiVersion: stable.example.com/v2, kind: Host}", "{name: a, parameterNotFoundAction: Deny}", "has(object.data) && object.data.host == params.host"},
		"tab":  {"{apiVersion: stable.example.com/v1, kind: CronTab}", "{selector: {}, parameterNotFoundAction: Deny}", "object.data.n == string(params.spec.replicas)"},
	} {
		put[admissionregv1.ValidatingAdmissionPolicy](w, `
metadata: {name: `+name+`}
spec:
  paramKind: `+p.kind+`
  matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]}
  validations: [{expression: '`+p.expression+`'}]
`)
		put[admissionregv1.ValidatingAdmissionPolicyBinding](w, `{metadata: {name: `+name+`}, spec: {policyName: `+name+`, validationActions: [Deny], paramRef: `+p.ref+`}}`)
	}
	const path = "/api/v1/namespaces/default/configmaps"
	for data, want := range map[string]string{
		`{"host":"h","n":"3"}`: `"kind":"ConfigMap"`,
		`{"host":"i","n":"3"}`: "'host' with binding 'host' denied request: failed expression",
		`{"host":"h","n":"4"}`: "'tab' with binding 'tab' denied request: failed expression",
	} {
		if a := w.call("POST", path, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"c-"},"data":`+data+`}`); !strings.Contains(a.Body.String(), want) {
			t.Errorf("%s: %d %s\nwant %s", data, a.Code, a.Body, want)
		}
	}
}

// What a component writes is pruned before it is stored, as what comes over HTTP is.
func TestLocal(t *testing.T) {
	w := start(t)
	c := w.define(cronTabs)
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "stable.example.com/v1", "kind": "CronTab",
		"metadata": map[string]any{"name": "c", "namespace": "default"}, "spec": map[string]any{"cronSpec": "x", "unknown": "x"}}}
	if _, err := w.admin.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	kept := w.store.Snapshot(stored(w, c)).Get(api.KeyOf(o)).Object.(*unstructured.Unstructured)
	if want := map[string]any{"cronSpec": "x", "replicas": int64(1)}; !reflect.DeepEqual(kept.Object["spec"], want) {
		t.Errorf("stored %v, want %v", kept.Object["spec"], want)
	}
}
