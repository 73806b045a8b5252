package openapi

import (
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/apiserver/rest"
)

// Document returns the OpenAPI document of the kinds. Version is the server's, for its head.
func Document(f Form, kinds []rest.Any, version string) Doc {
	b := &builder{form: f, made: Doc{}, lists: rest.MergeSchemas()}
	paths := Doc{}
	for _, a := range kinds {
		b.kind(a, paths)
	}
	b.define(reflect.TypeFor[metav1.Status](), schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	b.define(reflect.TypeFor[metav1.DeleteOptions](), schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"})
	return f.document(Doc{"title": "Kubernetes", "version": version}, paths, b.made)
}

// document puts a document together.
func (f Form) document(info, paths, schemas Doc) Doc {
	if f == V2 {
		return Doc{"swagger": "2.0", "info": info, "paths": paths, "definitions": schemas}
	}
	return Doc{"openapi": "3.0.0", "info": info, "paths": paths, "components": Doc{"schemas": schemas}}
}

// schemas are the definitions of a document, nil where it has none.
func (f Form) schemas(d Doc) Doc {
	if f == V3 {
		d, _ = d["components"].(Doc)
		return child(d, "schemas")
	}
	return child(d, "definitions")
}

func child(d Doc, key string) Doc {
	c, _ := d[key].(Doc)
	return c
}

// kind adds a kind, its list and its subresources.
func (b *builder) kind(a rest.Any, paths Doc) {
	k := a.Kind
	ref := b.define(structOf(k.New()), k.GVK())
	base := "/apis/" + k.APIVersion()
	if k.Group == "" {
		base = "/api/" + k.Version
	}
	var outer []any // parameters of every path
	if k.Namespaced {
		base += "/namespaces/{namespace}"
		outer = append(outer, b.parameter("path", "namespace", "string"))
	}
	collection := base + "/" + k.Plural
	named := append(outer[:len(outer):len(outer)], b.parameter("path", "name", "string"))
	if !a.Stored() && a.Readable() {
		list := b.define(structOf(k.NewList()), k.GroupVersion().WithKind(k.Kind+"List"))
		paths[collection] = b.item(outer, k.GVK(), map[string]Doc{"get": list}, "get")
		paths[collection+"/{name}"] = b.item(named, k.GVK(), map[string]Doc{"get": ref}, "get")
		return
	}
	if !a.Stored() {
		paths[collection] = b.item(outer, k.GVK(), map[string]Doc{"post": ref}, "post")
		return
	}
	list := b.define(structOf(k.NewList()), k.GroupVersion().WithKind(k.Kind+"List"))
	paths[collection] = b.item(outer, k.GVK(), map[string]Doc{"get": list, "post": ref}, "get", "post", "delete")
	paths[collection+"/{name}"] = b.item(named, k.GVK(), map[string]Doc{"": ref}, "get", "put", "patch", "delete")
	for _, r := range a.APIResources()[1:] {
		_, sub, _ := strings.Cut(r.Name, "/")
		b.subresource(a, r, sub, named, paths, collection+"/{name}/"+sub)
	}
}

func (b *builder) subresource(a rest.Any, r metav1.APIResource, sub string, named []any, paths Doc, path string) {
	body := a.Body(sub)
	gvk := body.GVK()
	if r.Kind != gvk.Kind {
		gvk.Kind = r.Kind // a stream's options
	}
	names := map[string]string{"get": "get", "create": "post", "update": "put", "patch": "patch", "delete": "delete"}
	var methods []string
	for _, v := range r.Verbs {
		methods = append(methods, names[v])
	}
	ref := b.define(structOf(body.New()), body.GVK())
	paths[path] = b.item(named, gvk, map[string]Doc{"": ref}, methods...)
}

func structOf(o runtime.Object) reflect.Type { return reflect.TypeOf(o).Elem() }

// item describes the methods of one path. Answers are by method, "" for those that have none of their own.
func (b *builder) item(outer []any, gvk schema.GroupVersionKind, answers map[string]Doc, methods ...string) Doc {
	item := Doc{"parameters": outer}
	if len(outer) == 0 {
		delete(item, "parameters")
	}
	for _, m := range methods {
		answer := answers[m]
		if answer == nil {
			answer = answers[""]
		}
		item[m] = b.operation(m, gvk, answer)
	}
	return item
}

func (b *builder) operation(method string, gvk schema.GroupVersionKind, answer Doc) Doc {
	options := map[string][]string{
		"get":    {"pretty"},
		"post":   {"dryRun", "fieldManager", "fieldValidation", "pretty"},
		"put":    {"dryRun", "fieldManager", "fieldValidation", "pretty"},
		"patch":  {"dryRun", "fieldManager", "fieldValidation", "force", "pretty"},
		"delete": {"dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy", "pretty"},
	}
	var params []any
	for _, o := range options[method] {
		typ := "string"
		switch o {
		case "force", "orphanDependents":
			typ = "boolean"
		case "gracePeriodSeconds":
			typ = "integer"
		}
		params = append(params, b.parameter("query", o, typ))
	}
	op := Doc{
		"parameters":                      params,
		"responses":                       Doc{"200": b.response(answer)},
		"x-kubernetes-group-version-kind": Doc{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind},
		"x-kubernetes-action":             method,
	}
	return op
}

func (b *builder) response(answer Doc) Doc {
	r := Doc{"description": "OK"}
	switch {
	case answer == nil:
	case b.form == V2:
		r["schema"] = answer
	default:
		r["content"] = Doc{"application/json": Doc{"schema": answer}}
	}
	return r
}

func (b *builder) parameter(in, name, typ string) Doc {
	p := Doc{"in": in, "name": name}
	if in == "path" {
		p["required"] = true
	}
	if b.form == V2 {
		p["type"], p["uniqueItems"] = typ, true
	} else {
		p["schema"] = Doc{"type": typ, "uniqueItems": true}
	}
	return p
}
