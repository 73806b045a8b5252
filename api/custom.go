package api

import (
	"maps"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Custom returns a Kind whose objects are *unstructured.Unstructured. ListKind is the kind of its lists, empty for the usual one.
// Many values may describe one resource, one for each version and state of its definition: their objects are known by what they call
// themselves, so KindOf does not know them, and what serves or reads them finds the Kind by its group, version and kind.
func Custom(k Kind, listKind string) *Kind {
	if listKind == "" {
		listKind = k.Kind + "List"
	}
	k.custom, k.listKind = true, listKind
	k.newObject = func() Object { return &unstructured.Unstructured{Object: map[string]any{}} }
	k.newList = func() runtime.Object {
		return &unstructured.UnstructuredList{Object: map[string]any{}, Items: []unstructured.Unstructured{}}
	}
	if k.Prefix == "" {
		k.Prefix = k.Group + "/" + k.Plural
	}
	return finish(k)
}

// Defined returns the Kind that a definition describes in one of its versions, by the names that were accepted.
func Defined(crd *apiextensionsv1.CustomResourceDefinition, version string) *Kind {
	n := crd.Status.AcceptedNames
	return Custom(Kind{
		Group: crd.Spec.Group, Version: version, Kind: n.Kind, Plural: n.Plural, Singular: n.Singular,
		Short: n.ShortNames, Categories: n.Categories, Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		Prefix: crd.Spec.Group + "/" + crd.Spec.Names.Plural,
	}, n.ListKind)
}

// Custom says that the kind's objects are *unstructured.Unstructured.
func (k *Kind) Custom() bool { return k.custom }

// ListKind is what lists of the kind call themselves.
func (k *Kind) ListKind() string {
	if k.listKind != "" {
		return k.listKind
	}
	return k.Kind + "List"
}

// GroupKind is what owner references name.
func (k *Kind) GroupKind() schema.GroupKind { return schema.GroupKind{Group: k.Group, Kind: k.Kind} }

// CopyJSON returns a copy of a value as it stands in a custom resource, with all that it holds.
func CopyJSON(v any) any { return runtime.DeepCopyJSONValue(v) }

// ObjectMeta returns o's metadata as a struct, which may share memory with o's.
func ObjectMeta(o metav1.Object) metav1.ObjectMeta {
	if a, ok := o.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return *m
		}
	}
	return metav1.ObjectMeta{
		Name: o.GetName(), GenerateName: o.GetGenerateName(), Namespace: o.GetNamespace(), SelfLink: o.GetSelfLink(), UID: o.GetUID(),
		ResourceVersion: o.GetResourceVersion(), Generation: o.GetGeneration(), CreationTimestamp: o.GetCreationTimestamp(),
		DeletionTimestamp: o.GetDeletionTimestamp(), DeletionGracePeriodSeconds: o.GetDeletionGracePeriodSeconds(), Labels: o.GetLabels(),
		Annotations: o.GetAnnotations(), OwnerReferences: o.GetOwnerReferences(), Finalizers: o.GetFinalizers(), ManagedFields: o.GetManagedFields(),
	}
}

// AtRevision returns a copy of o with another resourceVersion, which shares everything else with o: both are read-only.
func AtRevision(o Object, r Revision) Object {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		o = shallow(o)
		o.SetResourceVersion(r.String())
		return o
	}
	next := &unstructured.Unstructured{Object: maps.Clone(u.Object)}
	if m, ok := next.Object["metadata"].(map[string]any); ok {
		next.Object["metadata"] = maps.Clone(m)
	}
	next.SetResourceVersion(r.String())
	return next
}

// finish completes what the table of kinds leaves out.
func finish(k Kind) *Kind {
	if k.Singular == "" {
		k.Singular = strings.ToLower(k.Kind)
	}
	return &k
}
