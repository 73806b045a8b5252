package crd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	clientrest "k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/crd"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/remote"
	"github.com/yare-dev/yare/store"
)

// master takes everybody for an administrator.
type master struct{}

func (master) Authenticate(*http.Request) (*authn.User, error) {
	return &authn.User{Name: "admin", Groups: []string{authn.Masters}}, nil
}

// world is an API server with what is defined.
type world struct {
	t     testing.TB
	store *store.Store
	api   *apiserver.Server
	admin client.Client
	stop  func() // ends what serves definitions

	failing atomic.Bool  // what goes with its definition cannot be deleted
	tried   atomic.Int64 // how often that failed
}

// remove is the server's Remove, unless it fails.
func (w *world) remove(ctx context.Context, a rest.Any, key api.Key) error {
	if w.failing.Load() {
		w.tried.Add(1)
		return errors.New("the disk is gone")
	}
	return w.api.Remove(ctx, a, key)
}

func start(t testing.TB, plugins ...rest.Admission) *world {
	return over(t, servertest.Store(t), plugins...)
}

// over is start over a store that has something in it.
func over(t testing.TB, s *store.Store, plugins ...rest.Admission) *world {
	t.Helper()
	w, ready := begin(t, s, plugins...)
	<-ready
	return w
}

// begin is over without waiting until everything is served.
func begin(t testing.TB, s *store.Store, plugins ...rest.Admission) (w *world, ready <-chan struct{}) {
	t.Helper()
	rbac := authz.NewRBAC(s)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: rbac, Log: log,
		Resources:      builtin.All(builtin.Deps{Store: s, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/24")}}),
		Authenticators: []authn.Authenticator{master{}}, Admission: plugins})
	if err != nil {
		t.Fatal(err)
	}
	w = &world{t: t, store: s, api: srv, admin: srv.ClientAs(&authn.User{Name: "system:apiserver", Groups: []string{authn.Masters}})}
	definitions := crd.NewServer(crd.Deps{Store: s, Serve: srv.Serve, Remove: w.remove, Client: w.admin, Hooks: callout.New(callout.Deps{Store: s}), Log: log})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- definitions.Run(ctx, func() { close(served) }) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(w.stop)
	return w, served
}

// call sends a request and returns the answer. Accept and Content-Type are JSON unless headers say otherwise.
func (w *world) call(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	a := httptest.NewRecorder()
	w.api.ServeHTTP(a, r)
	return a
}

// define creates a definition and waits until it is established.
func (w *world) define(text string) *apiextensionsv1.CustomResourceDefinition {
	w.t.Helper()
	c := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(text), c); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.admin.Create(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
	return w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool {
		return c != nil && condition(c, apiextensionsv1.Established) == "True"
	})
}

func condition(c *apiextensionsv1.CustomResourceDefinition, typ apiextensionsv1.CustomResourceDefinitionConditionType) string {
	for _, d := range c.Status.Conditions {
		if d.Type == typ {
			return string(d.Status)
		}
	}
	return ""
}

// wait watches the definition until it is as asked; ok gets nil where it is gone.
func (w *world) wait(name string, ok func(*apiextensionsv1.CustomResourceDefinition) bool) *apiextensionsv1.CustomResourceDefinition {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	there := false
	for e, err := range w.admin.Watch(ctx, api.CustomResourceDefinitionKind, client.Query{}, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Op == client.Synced { // what is there has been told
			if !there && ok(nil) {
				return nil
			}
			continue
		}
		c, _ := e.Object.(*apiextensionsv1.CustomResourceDefinition)
		if c.Name != name {
			continue
		}
		there = true
		if e.Op == client.Deleted {
			c = nil
		}
		if ok(c) {
			return c
		}
	}
	w.t.Fatal("definition did not become what was awaited:", name)
	return nil
}

const cronTabs = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    selectableFields: [{jsonPath: .spec.cronSpec}]
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec, priority: 2}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: "self.replicas <= 10", message: "too many"}
            - {rule: "self.cronSpec == oldSelf.cronSpec", message: "it stays", reason: FieldValueForbidden, fieldPath: ".cronSpec"}
            properties:
              cronSpec: {type: string}
              replicas: {type: integer, minimum: 1, default: 1}
              port: {x-kubernetes-int-or-string: true}
              pod: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
              list:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, v: {type: string}}}
          status: {type: object, properties: {replicas: {type: integer}, labelSelector: {type: string}}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const (
	tabs    = "/apis/stable.example.com/v1/namespaces/default/crontabs"
	oldTabs = "/apis/stable.example.com/v1beta1/namespaces/default/crontabs"
	inMerge = "application/merge-patch+json"
	inApply = "application/apply-patch+yaml"
	asTable = "application/json;as=Table;v=v1;g=meta.k8s.io"
	asMeta  = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	protos  = "application/vnd.kubernetes.protobuf"
)

func tab(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":%q},"spec":%s}`, name, spec)
}

// TestServed goes through what a custom resource can be asked for, step by step: each depends on those before.
func TestServed(t *testing.T) {
	w := start(t)
	if got := w.call("GET", tabs, "").Code; got != http.StatusNotFound {
		t.Error("not defined, but answered by", got)
	}
	w.define(cronTabs)
	for _, s := range []struct {
		does, method, path, body string
		headers                  []string
		code                     int
		has                      string // in the body or in Warning headers; after "!" what it must not have
	}{
		{"unknown fields are refused", "POST", tabs + "?fieldValidation=Strict", tab("a", `{"x":1,"list":[{"name":"n","y":1}]}`), nil, 400,
			`CronTab in version \"v1\" cannot be handled as a CronTab: strict decoding error: unknown field \"spec.list[0].y\", unknown field \"spec.x\"`},
		{"or told of", "POST", tabs + "?fieldValidation=Warn&dryRun=All", tab("a", `{"x":1}`), nil, 201, `unknown field \"spec.x\"`},
		{"or not", "POST", tabs + "?fieldValidation=Ignore&dryRun=All", tab("a", `{"x":1}`), nil, 201, `!"x"`},
		{"fields given twice are refused", "POST", tabs + "?fieldValidation=Strict", tab("a", `{"cronSpec":"x","cronSpec":"y"}`), nil, 400, `duplicate field \"spec.cronSpec\"`},
		{"create prunes, sets defaults and drops the status", "POST", tabs,
			`{"apiVersion":"stable.example.com/v1","kind":"CronTab","metadata":{"name":"a","x":1},"spec":{"cronSpec":"* *","x":1,"port":"http"},"status":{"replicas":9}}`, nil, 201,
			`"spec":{"cronSpec":"* *","port":"http","replicas":1}}`},
		{"twice is once too often", "POST", tabs, tab("a", `{}`), nil, 409, `crontabs.stable.example.com \"a\" already exists`},
		{"the schema is enforced", "POST", tabs, tab("b", `{"replicas":0}`), nil, 422, `spec.replicas in body should be greater than or equal to 1`},
		{"rules are too", "POST", tabs, tab("b", `{"cronSpec":"","replicas":11}`), nil, 422, `spec: Invalid value: too many`},
		{"embedded objects are objects", "POST", tabs, tab("b", `{"cronSpec":"","pod":{"kind":"Pod"}}`), nil, 422, `spec.pod.apiVersion: Required value`},
		{"names are names", "POST", tabs, tab("A_b", `{}`), nil, 422, `metadata.name: Invalid value`},
		{"another kind is refused", "POST", tabs, strings.Replace(tab("b", `{}`), "CronTab", "Other", 1), nil, 400, `Other in version \"v1\" cannot be handled as a CronTab`},
		{"protobuf is not spoken", "GET", tabs + "/a", "", []string{"Accept", protos}, 406, `only the following media types are accepted: application/json, application/yaml`},
		{"but by metadata", "GET", tabs + "/a", "", []string{"Accept", asMeta}, 200, "k8s\x00"},
		{"yaml is", "GET", tabs + "/a", "", []string{"Accept", "application/yaml"}, 200, "kind: CronTab\n"},
		{"and CBOR", "GET", tabs, "", []string{"Accept", "application/cbor"}, 200, "CronTabList"},
		{"lists are", "GET", tabs, "", nil, 200, `{"apiVersion":"stable.example.com/v1","items":[{"apiVersion":"stable.example.com/v1","kind":"CronTab"`},
		{"as maps are", "GET", tabs, "", nil, 200, `}],"kind":"CronTabList","metadata":{"continue":"","resourceVersion":"`},
		{"tables have the columns", "GET", tabs, "", []string{"Accept", asTable}, 200, `"cells":["a","* *",1]`},
		{"with their priority", "GET", tabs, "", []string{"Accept", asTable}, 200, `"description":"Custom resource definition column (in JSONPath format): .spec.cronSpec","priority":2`},
		{"other versions have the age", "GET", oldTabs, "", []string{"Accept", asTable}, 200, `{"name":"Age","type":"date"`},
		{"and warn", "GET", oldTabs, "", nil, 200, `stable.example.com/v1beta1 CronTab is deprecated; use stable.example.com/v1 CronTab`},
		{"fields select", "GET", tabs + "?fieldSelector=spec.cronSpec%3D*+*", "", nil, 200, `"name":"a"`},
		{"and not", "GET", tabs + "?fieldSelector=spec.cronSpec%21%3D*+*", "", nil, 200, `"items":[]`},
		{"those that are declared", "GET", tabs + "?fieldSelector=spec.replicas%3D1", "", nil, 400, `field label not supported: spec.replicas`},
		{"in their version", "GET", oldTabs + "?fieldSelector=spec.cronSpec%3Dx", "", nil, 400, `field label not supported: spec.cronSpec`},
		{"updates name a revision", "PUT", tabs + "/a", tab("a", `{"cronSpec":"* *"}`), nil, 422, `metadata.resourceVersion: Invalid value: 0: must be specified for an update`},
		{"a merge patch changes the generation", "PATCH", tabs + "/a", `{"spec":{"replicas":3},"status":{"replicas":3}}`, []string{"Content-Type", inMerge}, 200, `"generation":2`},
		{"but not the status", "GET", tabs + "/a", "", nil, 200, `!"status":{`},
		{"rules see the old state", "PATCH", tabs + "/a", `{"spec":{"cronSpec":"x"}}`, []string{"Content-Type", inMerge}, 422, `spec.cronSpec: Forbidden: it stays`},
		{"the status is written below its name", "PATCH", tabs + "/a/status", `{"metadata":{"labels":{"l":"x"}},"spec":{"replicas":4},"status":{"replicas":2,"labelSelector":"l=x"}}`,
			[]string{"Content-Type", inMerge}, 200, `"replicas":3},"status":{"labelSelector":"l=x","replicas":2}}`},
		{"and nothing else is", "GET", tabs + "/a", "", nil, 200, `!"labels"`},
		{"nor the generation", "GET", tabs + "/a", "", nil, 200, `"generation":2`},
		{"it is checked", "PATCH", tabs + "/a/status", `{"status":{"replicas":"x"}}`, []string{"Content-Type", inMerge}, 422, `status.replicas: Invalid value: \"string\": replicas in body must be of type integer`},
		{"the scale is read", "GET", tabs + "/a/scale", "", nil, 200, `"spec":{"replicas":3},"status":{"replicas":2,"selector":"l=x"}}`},
		{"and in protobuf", "GET", tabs + "/a/scale", "", []string{"Accept", protos}, 200, "k8s\x00"},
		{"and written", "PATCH", tabs + "/a/scale", `{"spec":{"replicas":5}}`, []string{"Content-Type", inMerge}, 200, `"spec":{"replicas":5}`},
		{"within the rules", "PATCH", tabs + "/a/scale", `{"spec":{"replicas":50}}`, []string{"Content-Type", inMerge}, 422, `too many`},
		{"no strategic patch", "PATCH", tabs + "/a", `{"spec":{"replicas":5}}`, []string{"Content-Type", "application/strategic-merge-patch+json"}, 415,
			`accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml`},
		{"json patches", "PATCH", tabs + "/a", `[{"op":"add","path":"/spec/list","value":[{"name":"x","v":"1"}]}]`, []string{"Content-Type", "application/json-patch+json"}, 200, `"list":[{"name":"x","v":"1"}]`},
		{"applies by the schema's keys", "PATCH", tabs + "/a?fieldManager=me", tab("a", `{"list":[{"name":"z","v":"2"}]}`), []string{"Content-Type", inApply}, 200, `"list":[{"name":"x","v":"1"},{"name":"z","v":"2"}]`},
		{"knows what belongs to others", "PATCH", tabs + "/a?fieldManager=you", tab("a", `{"list":[{"name":"z","v":"3"}]}`), []string{"Content-Type", inApply}, 409, `conflict with \"me\": .spec.list[name=\"z\"].v`},
		{"creates by apply", "PATCH", tabs + "/b?fieldManager=me", tab("b", `{"cronSpec":"b"}`), []string{"Content-Type", inApply}, 201, `"operation":"Apply"`},
		{"items of one key are one too many", "PATCH", tabs + "/b", `{"spec":{"list":[{"name":"x"},{"name":"x"}]}}`, []string{"Content-Type", inMerge}, 422, `spec.list[1]: Duplicate value`},
		{"pages", "GET", tabs + "?limit=1", "", nil, 200, `"remainingItemCount":1`},
		{"other versions show all", "GET", oldTabs + "/a", "", nil, 200, `{"apiVersion":"stable.example.com/v1beta1","kind":"CronTab"`},
		{"and write what is stored in the storage version", "PATCH", oldTabs + "/a", `{"spec":{"unknown":1,"replicas":7}}`, []string{"Content-Type", inMerge}, 200, `"apiVersion":"stable.example.com/v1beta1"`},
		{"pruned", "GET", tabs + "/a", "", nil, 200, `!"unknown":`},
		{"no status where there is none", "GET", oldTabs + "/a/status", "", nil, 404, `"reason":"NotFound"`},
		{"finalizers hold", "PATCH", tabs + "/a", `{"metadata":{"finalizers":["hold"]}}`, []string{"Content-Type", inMerge}, 200, `metadata.finalizers: \"hold\": prefer a domain-qualified finalizer name`},
		{"deletion", "DELETE", tabs + "/a", "", nil, 200, `"deletionTimestamp"`},
		{"until they are gone", "PATCH", tabs + "/a", `{"metadata":{"finalizers":null}}`, []string{"Content-Type", inMerge}, 200, `"name":"a"`},
		{"is a status", "DELETE", tabs + "/b", "", nil, 200, `"status":"Success","details":{"name":"b","group":"stable.example.com","kind":"crontabs"`},
		{"nothing is left", "GET", tabs, "", nil, 200, `"items":[]`},
		{"discovery", "GET", "/apis/stable.example.com/v1", "", nil, 200,
			`{"name":"crontabs","singularName":"crontab","namespaced":true,"kind":"CronTab","verbs":["delete","deletecollection","get","list","patch","create","update","watch"],"shortNames":["ct"],"categories":["all"],"storageVersionHash":"`},
		{"of groups", "GET", "/apis/stable.example.com", "", nil, 200, `"preferredVersion":{"groupVersion":"stable.example.com/v1","version":"v1"}`},
	} {
		a := w.call(s.method, s.path, s.body, s.headers...)
		text := a.Body.String() + strings.Join(a.Header()["Warning"], "\n")
		absent, not := strings.CutPrefix(s.has, "!")
		if a.Code != s.code || strings.Contains(text, absent) == not {
			t.Errorf("%s: %s %s: %d %s\nwant %d %s", s.does, s.method, s.path, a.Code, text, s.code, s.has)
		}
	}
	e := w.store.Snapshot(api.CustomResourceDefinitionKind)
	if e.Len() != 1 {
		t.Error("definitions:", e.Len())
	}
}

// A definition that is deleted takes its objects with it, and waits for their finalizers. Its watches end, and nothing of it is left.
func TestDeleted(t *testing.T) {
	w := start(t)
	c := w.define(cronTabs)
	for _, name := range []string{"a", "b"} {
		if a := w.call("POST", tabs, tab(name, `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
			t.Fatal(a.Body)
		}
	}
	if a := w.call("PATCH", tabs+"/b", `{"metadata":{"finalizers":["example.com/hold"]}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Body)
	}
	k := api.Defined(c, "v1")
	_, rev, err := w.admin.List(t.Context(), k, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan []string, 1)
	go func() {
		var ops []string
		for e, err := range w.admin.Watch(t.Context(), k, client.Query{}, rev) {
			if err != nil {
				break
			}
			if e.Op == client.Deleted {
				ops = append(ops, e.Object.GetName())
			}
		}
		ended <- ops
	}()
	told := make(chan string, 1)
	go func() { told <- w.call("GET", tabs+"?watch=1&resourceVersion="+rev.String(), "").Body.String() }()
	if err := w.admin.Delete(t.Context(), c, client.DeleteOptions{AnyRevision: true}); err != nil {
		t.Fatal(err)
	}
	w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool {
		return c != nil && c.DeletionTimestamp != nil && condition(c, apiextensionsv1.Terminating) == "True"
	})
	if a := w.call("POST", tabs, tab("c", `{"cronSpec":"x"}`)); a.Code != http.StatusMethodNotAllowed {
		t.Error("created while its definition ends:", a.Code, a.Body)
	}
	os, _, err := w.admin.List(t.Context(), k, client.Query{})
	for err == nil && len(os) > 1 { // a goes at once
		os, _, err = w.admin.List(t.Context(), k, client.Query{})
	}
	if a := w.call("PATCH", tabs+"/b", `{"metadata":{"finalizers":null}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Body)
	}
	w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool { return c == nil })
	if ops := <-ended; len(ops) != 2 {
		t.Error("the watch told of the end of", ops)
	}
	if text := <-told; strings.Count(text, `"type":"DELETED"`) != 2 {
		t.Error("the watch over HTTP told", text)
	}
	if a := w.call("GET", tabs, ""); a.Code != http.StatusNotFound {
		t.Error("its definition is gone:", a.Code, a.Body)
	}
	w.define(cronTabs)
	if a := w.call("GET", tabs, ""); !strings.Contains(a.Body.String(), `"items":[]`) {
		t.Error("defined again, but not empty:", a.Body)
	}
}

// What admission adds is pruned and completed like what clients send.
func TestAdmitted(t *testing.T) {
	w := start(t, rest.Admission{Name: "adds", Mutate: func(ctx context.Context, a *rest.Admitting) error {
		o, ok := a.Object.(*unstructured.Unstructured)
		if !ok {
			return nil
		}
		o.Object["spec"] = map[string]any{"cronSpec": "y", "unknown": "x"}
		return a.Take(ctx, a.Form(), o)
	}})
	w.define(cronTabs)
	const want = `"spec":{"cronSpec":"y","replicas":1}`
	if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); !strings.Contains(a.Body.String(), want) {
		t.Error("created:", a.Body)
	}
	if a := w.call("GET", tabs+"/a", ""); !strings.Contains(a.Body.String(), want) {
		t.Error("read:", a.Body)
	}
}

// Admission cannot make a custom resource one of another kind.
func TestAdmittedAsAnother(t *testing.T) {
	for field, value := range map[string]string{"kind": "Other", "apiVersion": "stable.example.com/v9"} {
		w := start(t, rest.Admission{Name: "renames", Mutate: func(_ context.Context, a *rest.Admitting) error {
			if o, ok := a.Object.(*unstructured.Unstructured); ok && o.GetLabels()["rename"] != "" {
				o.Object[field] = value
			}
			return nil
		}})
		w.define(cronTabs)
		if a := w.call("POST", tabs, strings.Replace(tab("a", `{"cronSpec":"x"}`), `"name":`, `"labels":{"rename":"yes"},"name":`, 1)); a.Code != http.StatusUnprocessableEntity || !strings.Contains(a.Body.String(), field+": Invalid value") {
			t.Error("created:", a.Code, a.Body)
		}
		if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
			t.Fatal(a.Body)
		}
		if a := w.call("PATCH", tabs+"/a", `{"metadata":{"labels":{"rename":"yes"}}}`, "Content-Type", inMerge); a.Code != http.StatusUnprocessableEntity {
			t.Error("patched:", a.Code, a.Body)
		}
	}
}

// CBOR and YAML are taken as they are given.
func TestBodies(t *testing.T) {
	w := start(t)
	w.define(cronTabs)
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "stable.example.com/v1", "kind": "CronTab",
		"metadata": map[string]any{"name": "c"}, "spec": map[string]any{"cronSpec": "x", "replicas": int64(2), "unknown": int64(1)}}}
	b, err := api.EncodeCBOR(o)
	if err != nil {
		t.Fatal(err)
	}
	const want = `"spec":{"cronSpec":"x","replicas":2}`
	if a := w.call("POST", tabs, string(b), "Content-Type", "application/cbor"); a.Code != http.StatusCreated || !strings.Contains(a.Body.String(), want) {
		t.Error("CBOR:", a.Code, a.Body)
	}
	text := "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: y}\nspec: {cronSpec: x, replicas: 2}\n"
	if a := w.call("POST", tabs, strings.Replace(text, "y}", "yy}", 1), "Content-Type", "application/yaml"); a.Code != http.StatusCreated || !strings.Contains(a.Body.String(), want) {
		t.Error("YAML:", a.Code, a.Body)
	}
	if a := w.call("POST", tabs, "k8s\x00x", "Content-Type", protos); a.Code != http.StatusBadRequest {
		t.Error("protobuf:", a.Code, a.Body)
	}
}

// A server that starts serves what was defined before it is ready.
func TestRestart(t *testing.T) {
	s := servertest.Store(t)
	w := over(t, s)
	c := w.define(cronTabs)
	if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	w.stop()
	s.Remove(stored(w, c)) // as in a process of its own
	if a := over(t, s).call("GET", tabs+"/a", ""); a.Code != http.StatusOK {
		t.Error(a.Code, a.Body)
	}
}

// stored is the kind that the store holds c's objects as.
func stored(w *world, c *apiextensionsv1.CustomResourceDefinition) *api.Kind {
	for _, k := range w.store.Kinds() {
		if k.Custom() && k.Group == c.Spec.Group {
			return k
		}
	}
	return nil
}

// What a definition becomes is served from its next change on: defaults of a new schema are seen in what was stored before.
func TestChanged(t *testing.T) {
	w := start(t)
	c := w.define(cronTabs)
	if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	watching := make(chan string, 1)
	go func() { watching <- w.call("GET", tabs+"?watch=1&timeoutSeconds=60", "").Body.String() }()
	seen := make(chan bool)
	go func() {
		for e, err := range w.admin.Watch(t.Context(), api.Defined(c, "v1"), client.Query{}, 0) {
			if err != nil {
				t.Error(err)
				break
			}
			if o, ok := e.Object.(*unstructured.Unstructured); ok && e.Op == client.Modified {
				more, _, _ := unstructured.NestedString(o.Object, "spec", "more")
				seen <- more == "given"
				break
			}
		}
	}()
	_, err := client.Mutate(t.Context(), w.admin, c, "", func(c *apiextensionsv1.CustomResourceDefinition) {
		spec := c.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		spec.Properties["more"] = apiextensionsv1.JSONSchemaProps{Type: "string", Default: &apiextensionsv1.JSON{Raw: []byte(`"new"`)}}
	})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(w.call("GET", tabs+"/a", "").Body.String(), `"more":"new"`) {
		if time.Now().After(deadline) {
			t.Fatal("the new default is not seen")
		}
	}
	if text := <-watching; !strings.Contains(text, `"ADDED"`) { // it ends, for the client to see the objects anew
		t.Error(text)
	}
	if a := w.call("PATCH", tabs+"/a", `{"spec":{"more":"given"}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Body)
	}
	if !<-seen {
		t.Error("a component still sees the schema of old")
	}
	if a := w.call("PATCH", tabs+"/a", `{"spec":{"more":null}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Body)
	}
	for _, path := range []string{tabs, tabs + "?watch=1&timeoutSeconds=1"} {
		if a := w.call("GET", path, ""); !strings.Contains(a.Body.String(), `"more":"new"`) {
			t.Error(path, a.Body)
		}
	}
}

// Components that run apart read and write custom resources like those in the server's process.
func TestRemote(t *testing.T) {
	w := start(t)
	k := api.Defined(w.define(cronTabs), "v1")
	if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	s := httptest.NewServer(w.api)
	t.Cleanup(s.Close)
	c, err := remote.Dial(&clientrest.Config{Host: s.URL}, remote.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]client.Client{"remote": c, "local": w.admin} {
		os, rev, err := c.List(t.Context(), k, client.Query{})
		if err != nil || len(os) != 1 {
			t.Fatal(name, len(os), err)
		}
		next := os[0].DeepCopyObject().(api.Object)
		next.SetLabels(map[string]string{"seen": name})
		if next, err = c.Update(t.Context(), next, ""); err != nil || next.GetLabels()["seen"] != name {
			t.Error(name, err)
		}
		for e, err := range c.Watch(t.Context(), k, client.Query{}, rev) {
			if err != nil || e.Op != client.Modified || e.Object.GetLabels()["seen"] != name {
				t.Error(name, e, err)
			}
			break
		}
		if err := c.Delete(t.Context(), next, client.DeleteOptions{}); err != nil {
			t.Error(name, err)
		}
		if _, err := c.Get(t.Context(), k, api.KeyOf(next)); !apierrors.IsNotFound(err) {
			t.Error(name, err)
		}
		next = next.DeepCopyObject().(api.Object)
		next.SetUID("")
		next.SetResourceVersion("")
		if _, err := c.Create(t.Context(), next); err != nil {
			t.Error(name, err)
		}
	}
}
