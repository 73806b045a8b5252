package openapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"

	"github.com/yare-dev/yare/apiserver/rest"
)

// Custom returns what one version of a definition adds to a document: definitions and paths, and of the built-in types those that these
// refer to. A version without a schema, or with one that says nothing structural, is published as an object of any content.
func Custom(f Form, crd *apiextensionsv1.CustomResourceDefinition, version string) (Doc, error) {
	i := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == version })
	if i < 0 {
		return nil, fmt.Errorf("%s has no version %q", crd.Name, version)
	}
	c := custom{builder: &builder{form: f, made: Doc{}, lists: rest.MergeSchemas()}, crd: crd, version: &crd.Spec.Versions[i]}
	if err := c.define(); err != nil {
		return nil, fmt.Errorf("OpenAPI of %s, version %s: %w", crd.Name, version, err)
	}
	paths := c.paths()
	return f.document(Doc{"title": "Kubernetes CRD Swagger", "version": "v0.1.0"}, paths, c.made), nil
}

// custom makes the document of one version of a definition.
type custom struct {
	*builder
	crd     *apiextensionsv1.CustomResourceDefinition
	version *apiextensionsv1.CustomResourceDefinitionVersion
}

func (c custom) gvk(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: c.crd.Spec.Group, Version: c.version.Name, Kind: kind}
}

// model is the name of a kind's definition: the group from its last part to its first, version and kind.
func (c custom) model(kind string) string {
	parts := strings.Split(c.crd.Spec.Group, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + c.version.Name + "." + kind
}

func (c custom) ref(kind string) Doc { return Doc{"$ref": c.form.root() + c.model(kind)} }

// define makes the definitions of the kind and of its list.
func (c custom) define() error {
	kind, err := c.kind()
	if err != nil {
		return err
	}
	names := &c.crd.Spec.Names
	list := Doc{"type": "object", "description": names.ListKind + " is a list of " + names.Kind, "required": []any{"items"}}
	items := Doc{"type": "array", "items": c.ref(names.Kind), "description": "List of " + names.Plural +
		". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"}
	list["properties"] = Doc{"items": items, "metadata": c.metadata(reflect.TypeFor[metav1.ListMeta](), metav1.PartialObjectMetadataList{}.SwaggerDoc()["metadata"])}
	c.typeMeta(list, metav1.TypeMeta{}.SwaggerDoc())
	for name, d := range map[string]Doc{names.Kind: kind, names.ListKind: list} {
		d["x-kubernetes-group-version-kind"] = kindList([]schema.GroupVersionKind{c.gvk(name)})
		if fields := c.selectable(); fields != nil {
			d["x-kubernetes-selectable-fields"] = fields
		}
		c.made[c.model(name)] = d
	}
	return nil
}

// kind is the definition of the kind.
func (c custom) kind() (Doc, error) {
	s, err := c.structural()
	if err != nil {
		return nil, err
	}
	// kubectl takes an object with properties for one that has no others. So what may have any field says nothing of those it knows.
	if s == nil || c.form == V2 && (s.XPreserveUnknownFields || c.crd.Spec.PreserveUnknownFields) {
		return Doc{"type": "object"}, nil
	}
	if c.form == V2 {
		s = openapiv2.ToStructuralOpenAPIV2(s)
	}
	text, err := json.Marshal(s.ToKubeOpenAPI())
	if err != nil {
		return nil, err
	}
	d := Doc{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &d); err != nil {
		return nil, err
	}
	c.embedded(d)
	c.objectMeta(d)
	c.typeMeta(d, metav1.TypeMeta{}.SwaggerDoc())
	if c.form == V2 {
		pruneDefaults(d)
	}
	return d, nil
}

// structural is the version's schema with what its alternatives say spread out; nil where there is none.
func (c custom) structural() (*structural.Structural, error) {
	v := c.version.Schema
	if v == nil || v.OpenAPIV3Schema == nil {
		return nil, nil
	}
	var props apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.OpenAPIV3Schema, &props, nil); err != nil {
		return nil, err
	}
	if validation.SchemaHasInvalidTypes(&props) {
		return nil, nil
	}
	s, err := structural.NewStructural(&props)
	if err != nil || len(structural.ValidateStructural(nil, s)) > 0 {
		return nil, nil // such a schema was stored by an older server; nothing can be said of it
	}
	return s.Unfold(), nil
}

// metadata is the property metadata, of one of the two types.
func (c custom) metadata(t reflect.Type, text string) Doc {
	ref := c.builder.define(t)
	if c.form == V3 {
		ref = Doc{"allOf": []any{ref}} // nothing may stand beside a $ref
	}
	ref["description"] = text
	return ref
}

func (c custom) objectMeta(d Doc) {
	properties(d)["metadata"] = c.metadata(reflect.TypeFor[metav1.ObjectMeta](), metav1.PartialObjectMetadata{}.SwaggerDoc()["metadata"])
}

// properties are those of the schema d, to be changed.
func properties(d Doc) Doc {
	p, ok := d["properties"].(Doc)
	if !ok {
		p = Doc{}
		d["properties"] = p
	}
	return p
}

// typeMeta gives d the properties apiVersion and kind.
func (c custom) typeMeta(d Doc, texts map[string]string) {
	p := properties(d)
	for _, field := range []string{"apiVersion", "kind"} {
		p[field] = Doc{"type": "string", "description": texts[field]}
	}
}

const conventions = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"

var embeddedTexts = map[string]string{
	"apiVersion": "apiVersion defines the versioned schema of this representation of an object. " + conventions + "#resources",
	"kind":       "kind is a string value representing the type of this object. In CamelCase. " + conventions + "#types-kinds",
}

// embedded adds what is common to all objects where the schema says that an object is within another.
func (c custom) embedded(d Doc) {
	if p, ok := d["properties"].(Doc); ok {
		for _, field := range p {
			if f, ok := field.(Doc); ok {
				c.embedded(f)
			}
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if inner, ok := d[key].(Doc); ok {
			c.embedded(inner)
		}
	}
	// To kubectl, properties would forbid all others.
	if d["x-kubernetes-embedded-resource"] != true || c.form == V2 && d["x-kubernetes-preserve-unknown-fields"] == true {
		return
	}
	c.typeMeta(d, embeddedTexts)
	c.objectMeta(d)
	required, _ := d["required"].([]any)
	for _, field := range []any{"kind", "apiVersion"} {
		if !slices.Contains(required, field) {
			required = append(required, field)
		}
	}
	d["required"] = required
}

// pruneDefaults removes the defaults, which the document of version 2 does not have.
func pruneDefaults(d Doc) {
	delete(d, "default")
	if p, ok := d["properties"].(Doc); ok {
		for _, field := range p {
			if f, ok := field.(Doc); ok {
				pruneDefaults(f)
			}
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if inner, ok := d[key].(Doc); ok {
			pruneDefaults(inner)
		}
	}
}

// selectable are the fields that field selectors may name, nil where there are none.
func (c custom) selectable() []any {
	var fields []any
	for _, f := range c.version.SelectableFields {
		fields = append(fields, Doc{"fieldPath": strings.TrimPrefix(f.JSONPath, ".")})
	}
	return fields
}

// paths are the paths at which the version is served.
func (c custom) paths() Doc {
	spec := &c.crd.Spec
	gvk := c.gvk(spec.Names.Kind)
	c.builder.define(reflect.TypeFor[metav1.DeleteOptions](), schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"})
	status := c.builder.define(reflect.TypeFor[metav1.Status](), schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	one, list := c.ref(spec.Names.Kind), c.ref(spec.Names.ListKind)
	base := "/apis/" + spec.Group + "/" + c.version.Name + "/"
	paths := Doc{}
	var outer []any
	if spec.Scope == apiextensionsv1.NamespaceScoped {
		paths[base+spec.Names.Plural] = c.item(nil, gvk, map[string]Doc{"get": list}, "get")
		base += "namespaces/{namespace}/"
		outer = append(outer, c.parameter("path", "namespace", "string"))
	}
	collection := base + spec.Names.Plural
	named := append(slices.Clip(outer), c.parameter("path", "name", "string"))
	paths[collection] = c.item(outer, gvk, map[string]Doc{"get": list, "post": one, "delete": status}, "get", "post", "delete")
	paths[collection+"/{name}"] = c.item(named, gvk, map[string]Doc{"": one, "delete": status}, "get", "put", "patch", "delete")
	if sub := c.version.Subresources; sub != nil && sub.Status != nil {
		paths[collection+"/{name}/status"] = c.item(named, gvk, map[string]Doc{"": one}, "get", "put", "patch")
	}
	if sub := c.version.Subresources; sub != nil && sub.Scale != nil {
		scale := autoscalingv1.SchemeGroupVersion.WithKind("Scale")
		ref := c.builder.define(reflect.TypeFor[autoscalingv1.Scale](), scale)
		paths[collection+"/{name}/scale"] = c.item(named, gvk, map[string]Doc{"": ref}, "get", "put", "patch")
	}
	return paths
}
