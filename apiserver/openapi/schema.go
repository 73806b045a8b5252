// Package openapi makes OpenAPI documents of Go types by reflection, and of the schemas of CustomResourceDefinitions, when they are
// asked for. It replaces upstream's generated definitions (openapi_generated.go), kube-openapi's builders and aggregator, and
// apiextensions-apiserver's OpenAPI controllers: a server whose clients never ask keeps no schema in memory.
//
// Names come from the types' OpenAPIModelName, texts from their SwaggerDoc, patch strategies from struct tags, and list
// types from the schemas that upstream's client modules bring for server-side apply. Two forms are made: v3, one document per group and
// version, and v2, one for all.
package openapi

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
)

// Doc is a JSON document or a part of one.
type Doc = map[string]any

// Form is the version of OpenAPI.
type Form int

// The forms.
const (
	V2 Form = 2
	V3 Form = 3
)

// root is where schemas are within a document.
func (f Form) root() string {
	if f == V2 {
		return "#/definitions/"
	}
	return "#/components/schemas/"
}

// builder collects schemas.
type builder struct {
	form  Form
	lists []*smd.Schema // what is known of how types merge
	made  Doc
}

// modelName returns the name that upstream gives to the type, and whether it gives one.
func modelName(t reflect.Type) (string, bool) {
	n, ok := reflect.Zero(t).Interface().(interface{ OpenAPIModelName() string })
	if !ok {
		return "", false
	}
	return n.OpenAPIModelName(), true
}

// define makes the schema of a named type and returns a reference to it.
func (b *builder) define(t reflect.Type, gvks ...schema.GroupVersionKind) Doc {
	name, ok := modelName(t)
	if !ok {
		return b.inline(t)
	}
	if _, done := b.made[name]; !done {
		d := Doc{}
		b.made[name] = d // before its fields, since types may contain themselves
		b.fill(d, t, name)
		if len(gvks) > 0 {
			d["x-kubernetes-group-version-kind"] = kindList(gvks)
		}
	}
	return Doc{"$ref": b.form.root() + name}
}

func kindList(gvks []schema.GroupVersionKind) []any {
	var l []any
	for _, k := range gvks {
		l = append(l, Doc{"group": k.Group, "version": k.Version, "kind": k.Kind})
	}
	return l
}

// special types say themselves how they look in JSON.
type special interface {
	OpenAPISchemaType() []string
	OpenAPISchemaFormat() string
}

func (b *builder) fill(d Doc, t reflect.Type, name string) {
	docs := texts(t)
	if text := docs[""]; text != "" {
		d["description"] = text
	}
	zero := reflect.Zero(t).Interface()
	if s, ok := zero.(special); ok {
		one, isOne := zero.(interface{ OpenAPIV3OneOfTypes() []string })
		if isOne && b.form == V3 {
			var alternatives []any
			for _, typ := range one.OpenAPIV3OneOfTypes() {
				alternatives = append(alternatives, Doc{"type": typ})
			}
			d["oneOf"] = alternatives
		} else if types := s.OpenAPISchemaType(); len(types) > 0 { // none: anything
			d["type"] = types[0]
		}
		if f := s.OpenAPISchemaFormat(); f != "" {
			d["format"] = f
		}
		return
	}
	d["type"] = "object"
	if t.Kind() != reflect.Struct {
		for k, v := range b.inline(t) {
			d[k] = v
		}
		return
	}
	properties, required := Doc{}, []string(nil)
	b.fields(t, name, docs, properties, &required)
	if len(properties) > 0 {
		d["properties"] = properties
	}
	if len(required) > 0 {
		d["required"] = required
	}
	if a, ok := b.atom(name); ok && a.Map != nil && a.Map.ElementRelationship == smd.Atomic && len(a.Map.Fields) > 0 {
		d["x-kubernetes-map-type"] = "atomic"
	}
}

// fields adds the struct's fields, and those of the structs that it embeds.
func (b *builder) fields(t reflect.Type, name string, docs map[string]string, properties Doc, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		key, options, _ := strings.Cut(tag, ",")
		switch {
		case !f.IsExported() || key == "-":
			continue
		case key == "" && f.Anonymous:
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			more := texts(inner)
			for k, v := range docs {
				if k != "" {
					more[k] = v
				}
			}
			b.fields(inner, name, more, properties, required)
			continue
		case key == "":
			key = f.Name
		}
		p := b.property(f, docs[key])
		b.listType(p, name, key)
		properties[key] = p
		if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") && f.Type.Kind() != reflect.Pointer {
			*required = append(*required, key)
		}
	}
}

// property is the schema of one field.
func (b *builder) property(f reflect.StructField, text string) Doc {
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	p := b.inlineOrRef(t)
	if _, isRef := p["$ref"]; isRef && b.form == V3 && text != "" {
		p = Doc{"allOf": []any{p}} // in v3 nothing may stand beside a $ref
	}
	if text != "" {
		p["description"] = text
	}
	if s := f.Tag.Get("patchStrategy"); s != "" {
		p["x-kubernetes-patch-strategy"] = s
	}
	if k := f.Tag.Get("patchMergeKey"); k != "" {
		p["x-kubernetes-patch-merge-key"] = k
	}
	return p
}

func (b *builder) inlineOrRef(t reflect.Type) Doc {
	if _, named := modelName(t); named {
		return b.define(t)
	}
	return b.inline(t)
}

// inline is the schema of a type that has no name of its own.
func (b *builder) inline(t reflect.Type) Doc {
	switch t.Kind() {
	case reflect.Pointer:
		return b.inlineOrRef(t.Elem())
	case reflect.String:
		return Doc{"type": "string"}
	case reflect.Bool:
		return Doc{"type": "boolean"}
	case reflect.Int32, reflect.Uint32, reflect.Int16, reflect.Uint16, reflect.Int8, reflect.Uint8:
		return Doc{"type": "integer", "format": "int32"}
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return Doc{"type": "integer", "format": "int64"}
	case reflect.Float32, reflect.Float64:
		return Doc{"type": "number", "format": "double"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return Doc{"type": "string", "format": "byte"}
		}
		return Doc{"type": "array", "items": b.inlineOrRef(t.Elem())}
	case reflect.Map:
		return Doc{"type": "object", "additionalProperties": b.inlineOrRef(t.Elem())}
	}
	return Doc{"type": "object"} // anything: an interface or an unnamed struct
}

// listType notes how lists and maps are merged by server-side apply.
func (b *builder) listType(p Doc, typeName, field string) {
	a, ok := b.atom(typeName)
	if !ok || a.Map == nil {
		return
	}
	f, ok := a.Map.FindField(field)
	if !ok {
		return
	}
	inner := f.Type.Inlined
	switch l := inner.List; {
	case l != nil && p["type"] == "array":
		switch {
		case l.ElementRelationship == smd.Associative && len(l.Keys) > 0:
			p["x-kubernetes-list-type"], p["x-kubernetes-list-map-keys"] = "map", l.Keys
		case l.ElementRelationship == smd.Associative:
			p["x-kubernetes-list-type"] = "set"
		default:
			p["x-kubernetes-list-type"] = "atomic"
		}
	case inner.Map != nil && inner.Map.ElementRelationship == smd.Atomic:
		p["x-kubernetes-map-type"] = "atomic"
	}
}

// atom finds the merge schema of a named type.
func (b *builder) atom(name string) (smd.Atom, bool) {
	for _, l := range b.lists {
		if a, ok := l.Resolve(smd.TypeRef{NamedType: &name}); ok {
			return a, true
		}
	}
	return smd.Atom{}, false
}

// texts are the descriptions of a type ("") and its fields; the caller may change the map.
func texts(t reflect.Type) map[string]string {
	out := map[string]string{}
	if d, ok := reflect.Zero(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
		for k, v := range d.SwaggerDoc() {
			out[k] = v
		}
	}
	return out
}
