package builtin_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

const foos = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: foos.example.com, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: %[1]s, uid: %[1]s}]}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: foos, kind: Foo, shortNames: [fo]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const registration = `apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.example.com}
spec: {group: example.com, version: v1, groupPriorityMinimum: 100, versionPriority: 10, insecureSkipTLSVerify: true, service: {namespace: default, name: web}}
`

// TestApply applies what two managers have of CustomResourceDefinitions and APIServices: list items that are known by a key are
// owned one by one, atomic lists as wholes.
func TestApply(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	apply := func(kind, sub, manager, text string) (api.Object, error) {
		a := c.kinds[kind]
		e, _, err := c.pipe.Patch(c.ctx, &rest.Request{Any: a, Key: api.Key{Name: readYAML(t, text)["metadata"].(map[string]any)["name"].(string)}, Sub: sub, Manager: manager},
			rest.Patch{Type: types.ApplyYAMLPatchType, Data: []byte(text), Strict: metav1.FieldValidationStrict})
		if err != nil {
			return nil, err
		}
		return e.Object, nil
	}
	const crds, services = "apiextensions.k8s.io/v1 CustomResourceDefinition", "apiregistration.k8s.io/v1 APIService"
	condition := func(head, kind string) string {
		return fmt.Sprintf("%sstatus: {conditions: [{type: %s, status: \"True\", lastTransitionTime: \"2026-01-01T00:00:00Z\"}]}\n", head, kind)
	}
	crdHead := "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: foos.example.com}\n"
	serviceHead := "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.example.com}\n"
	for _, step := range []struct {
		name, kind, sub, manager, text string
		want                           string // of the fields that the manager owns then, or of the refusal
	}{
		{"definition", crds, "", "a", fmt.Sprintf(foos, "a"), `{"f:metadata":{"f:ownerReferences":{"k:{\"uid\":\"a\"}":{}}},"f:spec":{"f:group":{},"f:names":{"f:kind":{},"f:plural":{},"f:shortNames":{}},"f:scope":{},"f:versions":{}}}`},
		{"the same by another", crds, "", "b", fmt.Sprintf(foos, "b"), `{"f:metadata":{"f:ownerReferences":{"k:{\"uid\":\"b\"}":{}}},"f:spec":{"f:group":{},"f:names":{"f:kind":{},"f:plural":{},"f:shortNames":{}},"f:scope":{},"f:versions":{}}}`},
		{"other versions", crds, "", "b", strings.Replace(fmt.Sprintf(foos, "b"), ".spec.size", ".spec.other", 1), `conflict with "a": .spec.versions`},
		{"other short names", crds, "", "b", strings.Replace(fmt.Sprintf(foos, "b"), "[fo]", "[f]", 1), `conflict with "a": .spec.names.shortNames`},
		{"an unknown field", crds, "", "b", strings.Replace(fmt.Sprintf(foos, "b"), "scope:", "scop:", 1), `.spec.scop: field not declared in schema`},
		{"a condition", crds, "status", "a", condition(crdHead, "Mine"), `{"f:status":{"f:conditions":{"k:{\"type\":\"Mine\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}}}}`},
		{"another's condition", crds, "status", "b", condition(crdHead, "Yours"), `{"f:status":{"f:conditions":{"k:{\"type\":\"Yours\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}}}}`},
		{"service", services, "", "a", registration, `{"f:spec":{"f:group":{},"f:groupPriorityMinimum":{},"f:insecureSkipTLSVerify":{},"f:service":{"f:name":{},"f:namespace":{}},"f:version":{},"f:versionPriority":{}}}`},
		{"another server", services, "", "b", strings.Replace(registration, "web", "other", 1), `conflict with "a": .spec.service.name`},
		{"condition of a service", services, "status", "a", condition(serviceHead, "Mine"), `{"f:status":{"f:conditions":{"k:{\"type\":\"Mine\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}}}}`},
	} {
		o, err := apply(step.kind, step.sub, step.manager, step.text)
		if err != nil {
			if !strings.Contains(err.Error(), step.want) || !apierrors.IsConflict(err) && !apierrors.IsBadRequest(err) {
				t.Errorf("%s: %v", step.name, err)
			}
			continue
		}
		got := ""
		for _, e := range o.GetManagedFields() {
			if e.Manager == step.manager && e.Subresource == step.sub && e.Operation == metav1.ManagedFieldsOperationApply {
				got = string(e.FieldsV1.Raw)
			}
		}
		if got != step.want {
			t.Errorf("%s owns\n%s\nnot\n%s", step.name, got, step.want)
		}
	}
	// What one leaves out goes; the other's stays.
	o, err := apply(crds, "status", "a", crdHead)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil || strings.Contains(string(text), `"Mine"`) || !strings.Contains(string(text), `"Yours"`) {
		t.Errorf("%s %v", text, err)
	}
	if o, err = apply(crds, "", "a", fmt.Sprintf(foos, "c")); err != nil || len(o.GetOwnerReferences()) != 2 || o.GetOwnerReferences()[0].Name == "a" {
		t.Errorf("%v %v", o, err)
	}
}
