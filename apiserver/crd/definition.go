// Package crd serves what CustomResourceDefinitions define. It replaces apiextensions-apiserver: its handler, its registry of
// custom resources, and its controllers that establish definitions and finish them.
//
// A definition becomes one rest.Any for each version that it serves, and goes through the same pipeline as every other kind. What the
// language of schemas means is upstream's library to say: pruning, defaults, validation, rules in CEL.
//
//	stored, in any version --convert--> the request's version --prune, default--> what a client sees
//	what a client sends --prune, default, admit, validate--> convert to the storage version, prune --> stored
//
// Invariants:
//   - A definition is Established after the server serves it, and a server that starts serves all that were established before it is
//     ready.
//   - Schemas are compiled when they are first needed: to read an object takes the structural schema, to write one the validators and
//     the programs of CEL. A definition that nobody uses costs what it is long.
//   - What is deleted with its definition goes as soon as its finalizers let it. Admission is not asked: nobody may hold up the end of a
//     definition by a webhook.
package crd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	structuraldefaulting "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
)

// definition is what a CustomResourceDefinition says, in the state that it had at one time.
type definition struct {
	crd      *apiextensionsv1.CustomResourceDefinition // shared and read-only
	stored   *api.Kind
	hooks    *callout.Callout
	versions map[string]*definedVersion
	types    func() managedfields.TypeConverter
	replicas managedfields.ResourcePathMappings // part of rest.Custom
}

// definedVersion is one of a definition's versions.
type definedVersion struct {
	d    *definition
	spec *apiextensionsv1.CustomResourceDefinitionVersion
	kind *api.Kind

	structural func() (*structuralschema.Structural, error)
	checks     func() (*checks, error)
}

// errSchema is what a client is told of a schema that cannot be compiled, which one that was accepted can.
var errSchema = errors.New("the server could not properly serve the CR schema")

// Kinds returns what crd serves until ctx ends, a rest.Any for each version, and that of the storage version, which need not be served.
// Serving ends when crd has become another. Stored is the kind that its objects are held as. Hooks reaches conversion webhooks. Nothing
// is compiled yet.
func Kinds(ctx, serving context.Context, crd *apiextensionsv1.CustomResourceDefinition, stored *api.Kind, hooks *callout.Callout) (all []rest.Any, keep rest.Any) {
	d := &definition{crd: crd, stored: stored, hooks: hooks, versions: map[string]*definedVersion{}, replicas: replicas(&crd.Spec)}
	d.types = sync.OnceValue(d.mergeTypes)
	var known []*definedVersion
	var forms []*api.Kind
	for i := range crd.Spec.Versions {
		v := &definedVersion{d: d, spec: &crd.Spec.Versions[i], kind: api.Defined(crd, crd.Spec.Versions[i].Name)}
		v.structural = sync.OnceValues(v.compile)
		v.checks = sync.OnceValues(v.compileChecks)
		d.versions[v.spec.Name] = v
		known = append(known, v)
		if v.spec.Served {
			forms = append(forms, v.kind)
		}
	}
	for _, v := range known {
		if !v.spec.Served && !v.spec.Storage {
			continue
		}
		a := v.register(ctx, serving, forms)
		if v.spec.Served {
			all = append(all, a)
		}
		if v.spec.Storage {
			keep = a
		}
	}
	return all, keep
}

// object is the type of custom resources.
type object = *unstructured.Unstructured

func (v *definedVersion) register(ctx, serving context.Context, forms []*api.Kind) rest.Any {
	custom := &rest.Custom{
		Definition: v.d.crd, Stored: v.d.stored, Forms: forms, Serving: serving,
		Status:  v.spec.Subresources != nil && v.spec.Subresources.Status != nil,
		Convert: v.d.convert,
		ConvertAlone: func(o api.Object, version string) (api.Object, error) {
			out, err := v.d.convert(ctx, []api.Object{o}, version)
			if err != nil {
				return nil, err
			}
			return out[0], nil
		},
		Settle: v.d.settle,
		Coerce: func(o api.Object) ([]string, error) { return v.d.coerce(o.(object), true, false) },
		Types:  v.d.types, ReplicasPaths: v.d.replicas,
	}
	r := &rest.Resource[object]{
		Custom:           custom,
		Default:          v.setDefaults,
		RequireRevision:  true,
		AnyFinalizer:     true,
		StrictStatus:     true,
		ValidateIn:       v.validate,
		ValidateStatusIn: v.validateStatus,
		Warn:             finalizerWarnings,
		Deprecated:       v.deprecated(),
		Columns:          v.columns(),
		Fields:           v.fields(),
	}
	if v.spec.Subresources != nil && v.spec.Subresources.Scale != nil {
		r.Scale = scaleOf(v.spec.Subresources.Scale)
	}
	return rest.Register(v.kind, r)
}

// internalSchema is the version's schema as the libraries take it; nil where it has none.
func (v *definedVersion) internalSchema() (*apiextensions.JSONSchemaProps, error) {
	if v.spec.Schema == nil || v.spec.Schema.OpenAPIV3Schema == nil {
		return nil, nil
	}
	out := &apiextensions.CustomResourceValidation{}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.spec.Schema.DeepCopy(), out, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", errSchema, err)
	}
	return out.OpenAPIV3Schema, nil
}

func (v *definedVersion) compile() (*structuralschema.Structural, error) {
	schema, err := v.internalSchema()
	if err != nil || schema == nil {
		return nil, err
	}
	s, err := structuralschema.NewStructural(schema)
	if err != nil {
		if v.d.crd.Spec.PreserveUnknownFields {
			return nil, nil // such a schema only validates
		}
		return nil, fmt.Errorf("%w: %w", errSchema, err)
	}
	if v.d.crd.Spec.PreserveUnknownFields {
		return s, nil
	}
	s = s.DeepCopy() // it shares its defaults with the definition
	if err := structuraldefaulting.PruneDefaults(s); err != nil {
		return nil, fmt.Errorf("%w: %w", errSchema, err)
	}
	return s, nil
}

// deprecated is the warning of a version that is.
func (v *definedVersion) deprecated() string {
	if !v.spec.Deprecated {
		return ""
	}
	if v.spec.DeprecationWarning != nil {
		return *v.spec.DeprecationWarning
	}
	spec := &v.d.crd.Spec
	text := fmt.Sprintf("%s/%s %s is deprecated", spec.Group, v.spec.Name, spec.Names.Kind)
	var better []string
	for _, o := range spec.Versions {
		if o.Served && !o.Deprecated && version.CompareKubeAwareVersionStrings(v.spec.Name, o.Name) < 0 {
			better = append(better, o.Name)
		}
	}
	if len(better) == 0 {
		return text
	}
	best := slices.MaxFunc(better, version.CompareKubeAwareVersionStrings)
	return fmt.Sprintf("%s; use %s/%s %s", text, spec.Group, best, spec.Names.Kind)
}

// replicas says where the versions have the replicas that /scale writes.
func replicas(spec *apiextensionsv1.CustomResourceDefinitionSpec) managedfields.ResourcePathMappings {
	paths := managedfields.ResourcePathMappings{}
	for _, v := range spec.Versions {
		var path fieldpath.Path
		if v.Subresources != nil && v.Subresources.Scale != nil {
			for _, name := range jsonPath(v.Subresources.Scale.SpecReplicasPath) {
				path = append(path, fieldpath.PathElement{FieldName: &name})
			}
		}
		paths[schema.GroupVersion{Group: spec.Group, Version: v.Name}.String()] = path
	}
	return paths
}

// jsonPath splits a simple path, ".spec.replicas".
func jsonPath(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

func (v *definedVersion) setDefaults(o object) {
	in := v.d.versions[o.GroupVersionKind().Version]
	if in == nil {
		return
	}
	if s, err := in.structural(); err == nil && s != nil {
		structuraldefaulting.Default(o.Object, s)
	}
}

// settle is part of rest.Custom.
func (d *definition) settle(o api.Object, repair bool) error {
	u := o.(object)
	if _, err := d.coerce(u, false, repair); err != nil {
		return err
	}
	v, s, err := d.schemaOf(u)
	if err != nil || v == nil || s == nil {
		return err
	}
	structuraldefaulting.Default(u.Object, s)
	return nil
}

// schemaOf returns the version that o is in, and its schema, which is nil where it has none.
func (d *definition) schemaOf(o object) (*definedVersion, *structuralschema.Structural, error) {
	v := d.versions[o.GroupVersionKind().Version]
	if v == nil {
		return nil, nil, nil
	}
	s, err := v.structural()
	return v, s, err
}
