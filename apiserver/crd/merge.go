package crd

import (
	"strings"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// mergeTypes returns what knows how objects of the definition's versions are merged and who owns their fields. Where a schema says
// nothing, scalars and maps are known as they are and lists taken as wholes.
func (d *definition) mergeTypes() managedfields.TypeConverter {
	models := metaModels()
	for name, v := range d.versions {
		model := &spec.Schema{}
		if s, err := v.structural(); err == nil && s != nil {
			s = s.DeepCopy()
			embed(s)
			model = s.ToKubeOpenAPI()
			embedded(model, s)
		}
		model.Type = spec.StringOrArray{"object"}
		identify(model)
		if d.crd.Spec.PreserveUnknownFields {
			model.AddExtension("x-kubernetes-preserve-unknown-fields", true)
		}
		model.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{
			"group": d.crd.Spec.Group, "version": name, "kind": v.kind.Kind,
		}})
		models[d.crd.Spec.Group+"."+name+"."+v.kind.Kind] = model
	}
	t, err := managedfields.NewTypeConverter(models, d.crd.Spec.PreserveUnknownFields)
	if err != nil {
		return managedfields.NewDeducedTypeConverter()
	}
	return t
}

// embed prepares s for what the merge schema has no words for: values that are one thing or the other have no type.
func embed(s *structuralschema.Structural) {
	s.ValueValidation = nil // only what things are counts
	if s.Items != nil {
		embed(s.Items)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		embed(s.AdditionalProperties.Structural)
	}
	for name, p := range s.Properties {
		embed(&p)
		s.Properties[name] = p
	}
}

// embedded gives the objects that s says stand within others what every object has.
func embedded(m *spec.Schema, s *structuralschema.Structural) {
	if s.XEmbeddedResource {
		identify(m)
	}
	if s.Items != nil && m.Items != nil && m.Items.Schema != nil {
		embedded(m.Items.Schema, s.Items)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil && m.AdditionalProperties != nil && m.AdditionalProperties.Schema != nil {
		embedded(m.AdditionalProperties.Schema, s.AdditionalProperties.Structural)
	}
	for name := range s.Properties {
		p := s.Properties[name]
		if of, ok := m.Properties[name]; ok {
			embedded(&of, &p)
			m.Properties[name] = of
		}
	}
}

// identify gives an object its apiVersion, kind and metadata.
func identify(m *spec.Schema) {
	if m.Properties == nil {
		m.Properties = map[string]spec.Schema{}
	}
	m.Properties["apiVersion"], m.Properties["kind"] = *spec.StringProperty(), *spec.StringProperty()
	m.Properties["metadata"] = reference(metaName + "ObjectMeta")
}

const metaName = "io.k8s.apimachinery.pkg.apis.meta.v1."

func reference(name string) spec.Schema { return *spec.RefSchema("#/components/schemas/" + name) }

// metaModels are the metadata of objects, as far as it matters how they merge.
func metaModels() map[string]*spec.Schema {
	texts := *spec.MapProperty(spec.StringProperty())
	list := func(of spec.Schema, extensions ...string) spec.Schema {
		l := spec.ArrayProperty(&of)
		for _, x := range extensions {
			k, v, _ := strings.Cut(x, "=")
			if k == "x-kubernetes-list-map-keys" {
				l.AddExtension(k, []any{v})
			} else {
				l.AddExtension(k, v)
			}
		}
		return *l
	}
	object := func(properties map[string]spec.Schema) *spec.Schema {
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{"object"}, Properties: properties}}
	}
	owner := object(map[string]spec.Schema{
		"apiVersion": *spec.StringProperty(), "kind": *spec.StringProperty(), "name": *spec.StringProperty(), "uid": *spec.StringProperty(),
		"controller": *spec.BooleanProperty(), "blockOwnerDeletion": *spec.BooleanProperty(),
	})
	owner.AddExtension("x-kubernetes-map-type", "atomic")
	entry := object(nil)
	entry.AddExtension("x-kubernetes-preserve-unknown-fields", true)
	meta := object(map[string]spec.Schema{
		"name": *spec.StringProperty(), "generateName": *spec.StringProperty(), "namespace": *spec.StringProperty(), "selfLink": *spec.StringProperty(),
		"uid": *spec.StringProperty(), "resourceVersion": *spec.StringProperty(), "generation": *spec.Int64Property(),
		"creationTimestamp": *spec.StringProperty(), "deletionTimestamp": *spec.StringProperty(), "deletionGracePeriodSeconds": *spec.Int64Property(),
		"labels": texts, "annotations": texts,
		"finalizers":      list(*spec.StringProperty(), "x-kubernetes-list-type=set"),
		"ownerReferences": list(reference(metaName+"OwnerReference"), "x-kubernetes-list-type=map", "x-kubernetes-list-map-keys=uid"),
		"managedFields":   list(*entry, "x-kubernetes-list-type=atomic"),
	})
	return map[string]*spec.Schema{metaName + "ObjectMeta": meta, metaName + "OwnerReference": owner}
}
