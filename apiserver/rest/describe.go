package rest

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Stored says that the kind's objects are kept, and not only answered.
func (a Any) Stored() bool { return a.r.answer == nil && a.r.made == nil }

// Deprecated is what every request for the kind is told; empty is nothing.
func (a Any) Deprecated() string { return a.r.deprecated }

// DeletedOneByOne says that a collection cannot be deleted.
func (a Any) DeletedOneByOne() bool { return a.r.noCollection }

// Has says whether the kind has the subresource.
func (a Any) Has(sub string) bool {
	return sub == "" || sub == status && a.r.hasStatus || sub == "scale" && a.r.scale != nil || a.r.sub[sub] != nil
}

// Sub returns the declared subresource, nil for status, scale and those that do not exist.
func (a Any) Sub(name string) *Subresource { return a.r.sub[name] }

// Default sets in o what the client left out.
func (a Any) Default(o api.Object) { a.r.set(o) }

// Body returns the kind of object that is sent to and answered by the subresource.
func (a Any) Body(sub string) *api.Kind {
	if s := a.r.sub[sub]; s != nil && s.Body != nil {
		return s.Body
	}
	if sub == "scale" {
		return api.ScaleKind
	}
	return a.Kind
}

// Fields returns the field selectors that the kind supports, sorted.
func (a Any) Fields() []string {
	fs := []string{byName}
	if a.Kind.Namespaced {
		fs = append(fs, byNamespace)
	}
	if a.r.fields != nil {
		for f := range a.r.fields(a.Kept().New()) {
			if f != byName && f != byNamespace {
				fs = append(fs, f)
			}
		}
	}
	slices.Sort(fs)
	return fs
}

// APIResources describes the kind and its subresources for discovery.
func (a Any) APIResources() []metav1.APIResource {
	k := a.Kind
	main := metav1.APIResource{
		Name: k.Plural, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Kind,
		Verbs:      metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
		ShortNames: k.Short, Categories: k.Categories,
	}
	if !a.Stored() {
		main.Verbs = metav1.Verbs{"create"}
		if a.Readable() {
			main.Verbs = metav1.Verbs{"get", "list"}
		}
		return []metav1.APIResource{main}
	}
	kept := a.Kept()
	if c := a.r.custom; c != nil {
		kept = api.Custom(api.Kind{Group: k.Group, Version: c.storage(), Kind: k.Kind}, "")
	}
	sum := sha256.Sum256([]byte(kept.Group + "/" + kept.Version + "/" + kept.Kind))
	main.StorageVersionHash = base64.StdEncoding.EncodeToString(sum[:8])
	if c := a.r.custom; c != nil {
		main.Verbs = c.verbs()
		if !c.servesStorage() {
			main.StorageVersionHash = ""
		}
	}
	if a.r.noCollection {
		main.Verbs = slices.DeleteFunc(main.Verbs, func(v string) bool { return v == "deletecollection" })
	}
	out := []metav1.APIResource{main}
	add := func(sub string, kind *api.Kind, name string, verbs ...string) {
		r := metav1.APIResource{Name: k.Plural + "/" + sub, Namespaced: k.Namespaced, Kind: name, Verbs: verbs}
		if kind != nil && kind.GroupVersion() != k.GroupVersion() {
			r.Group, r.Version = kind.Group, kind.Version
		}
		out = append(out, r)
	}
	if a.r.hasStatus {
		add(status, nil, k.Kind, "get", "patch", "update")
	}
	if a.r.scale != nil {
		add("scale", api.ScaleKind, api.ScaleKind.Kind, "get", "patch", "update")
	}
	for name, s := range a.r.sub {
		switch {
		case s.Create != nil:
			add(name, s.Body, s.Body.Kind, "create")
		case s.Update != nil && len(s.Methods) > 0:
			add(name, nil, k.Kind, s.verbs()...)
		case s.Update != nil:
			add(name, nil, k.Kind, "get", "patch", "update")
		default:
			kind := s.Kind
			if kind == "" {
				kind = k.Kind
			}
			add(name, nil, kind, s.verbs()...)
		}
	}
	if a.r.custom != nil {
		return out // upstream leaves it at status, scale
	}
	slices.SortFunc(out[1:], func(x, y metav1.APIResource) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// Allows says whether an Update is served under the HTTP method.
func (s *Subresource) Allows(method string) bool {
	return s.Update != nil && (len(s.Methods) == 0 || slices.Contains(s.Methods, method))
}

// verbs are the API's names for the methods that a Connect serves, sorted.
func (s *Subresource) verbs() []string {
	names := map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
	var vs []string
	for _, m := range s.Methods {
		if v := names[m]; v != "" {
			vs = append(vs, v)
		}
	}
	slices.Sort(vs)
	return vs
}
