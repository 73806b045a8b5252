package crd_test

import (
	"fmt"
	"strings"
	"testing"
)

const applied = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: noxus.example.com}
spec:
  group: example.com
  scope: Cluster
  names: {plural: noxus, kind: Noxu}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            %s
            properties:
              foo: {type: string}
              any: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}
              empty: {type: string, nullable: true}
              template:
                type: object
                x-kubernetes-embedded-resource: true
                properties: {metadata: {type: object, properties: {name: {type: string}}}, spec: {type: object}}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [containerPort, protocol]
                items:
                  type: object
                  required: [containerPort, protocol]
                  properties: {containerPort: {type: integer, format: int32}, protocol: {type: string}, name: {type: string}}
`

// TestApplied: what is applied has to be as the schema says, unless that keeps what it does not know.
func TestApplied(t *testing.T) {
	const all = "apiVersion: example.com/v1\nkind: Noxu\nmetadata:\n  name: a\n"
	for _, tt := range []struct {
		does, body string
		keeps      bool
		code       int
		has        string
	}{
		{"good", all + "spec:\n  foo: x\n  any: 1\n  empty: null\n  ports:\n  - {containerPort: 80, protocol: TCP}\n", false, 201, `k:{\"containerPort\":80,\"protocol\":\"TCP\"}`},
		{"unknown at the root", all + "unknownField: x\n", false, 400, `.unknownField: field not declared in schema`},
		{"unknown", all + "spec:\n  unknown: x\n", false, 400, `.spec.unknown: field not declared in schema`},
		{"unknown, which is kept", all + "spec:\n  unknown: x\n  any: z\n", true, 201, `"unknown":"x"`},
		{"unknown metadata", strings.Replace(all, "name: a\n", "name: a\n  unknownMeta: x\n", 1), false, 400, `.metadata.unknownMeta: field not declared in schema`},
		{"unknown embedded metadata", all + "spec:\n  template:\n    apiVersion: v1\n    kind: Sub\n    metadata: {name: x, unknownSubMeta: y}\n", true, 400,
			`.spec.template.metadata.unknownSubMeta: field not declared in schema`},
		{"twice", all + "spec:\n  foo: a\n  foo: b\n", true, 400, `line 7: key \"foo\" already set in map`},
		{"of a wrong type", all + "spec:\n  foo: 1\n", false, 400, `.spec.foo: expected string`},
	} {
		t.Run(tt.does, func(t *testing.T) {
			w := start(t)
			keeps := ""
			if tt.keeps {
				keeps = "x-kubernetes-preserve-unknown-fields: true"
			}
			w.define(fmt.Sprintf(applied, keeps))
			a := w.call("PATCH", "/apis/example.com/v1/noxus/a?fieldManager=me&fieldValidation=Strict", tt.body, "Content-Type", inApply)
			text := strings.ReplaceAll(a.Body.String(), `\\\"`, `\"`)
			if a.Code != tt.code || !strings.Contains(text, tt.has) {
				t.Errorf("%d %s\nwant %d %s", a.Code, text, tt.code, tt.has)
			}
		})
	}
}
