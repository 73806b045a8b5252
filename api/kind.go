package api

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is a pointer to an API struct with metadata: what is stored, watched and
// passed between components.
type Object interface {
	metav1.Object
	runtime.Object
}

// Key names an object of a kind. Namespace is empty for cluster-scoped kinds.
type Key struct {
	Namespace, Name string
}

// KeyOf returns o's key.
func KeyOf(o metav1.Object) Key { return Key{o.GetNamespace(), o.GetName()} }

// Compare orders keys by namespace, then by name, as lists are; it is -1, 0 or 1.
func (k Key) Compare(o Key) int {
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// ParseKey reads what Key.String prints.
func ParseKey(s string) Key {
	if ns, name, ok := strings.Cut(s, "/"); ok {
		return Key{ns, name}
	}
	return Key{Name: s}
}

// String is "namespace/name", or the name alone where there is no namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Revision is etcd's store-wide revision. Objects carry the revision of their last
// write as metadata.resourceVersion. Zero means none.
type Revision int64

// String is the form used in resourceVersion.
func (r Revision) String() string { return strconv.FormatInt(int64(r), 10) }

// ParseRevision reads a resourceVersion; the empty string is zero.
func ParseRevision(s string) (Revision, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("resource version %q is not a number", s)
	}
	return Revision(n), nil
}

// RevisionOf returns the revision of o's last write, zero if it has none.
func RevisionOf(o metav1.Object) Revision {
	r, err := ParseRevision(o.GetResourceVersion())
	if err != nil {
		return 0
	}
	return r
}

// Kind describes one API kind. Values are made once, in kinds.go or from a
// CustomResourceDefinition, and compared by pointer.
type Kind struct {
	Group      string // "" for the core group
	Version    string
	Kind       string
	Plural     string // the name in URLs
	Singular   string
	Short      []string
	Categories []string
	Namespaced bool

	// Prefix is the kind's folder below /registry/ in etcd, upstream's layout:
	// "pods", "services/specs". Empty for kinds that are never stored.
	Prefix string
	// StoredJSON says that the kind is kept as JSON although its type has a protobuf form, as upstream keeps the kinds of its
	// extension servers.
	StoredJSON bool

	newObject func() Object
	newList   func() runtime.Object

	custom   bool
	listKind string // where it is not the usual one

	of          *Kind                 // the stored kind that this one is another form of, or nil
	store, show func(o Object) Object // to the stored kind's form and back
}

// New returns an empty object with its apiVersion and kind set.
func (k *Kind) New() Object {
	o := k.newObject()
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	return o
}

// NewList returns an empty list of the kind with apiVersion and kind set. It is nil for
// kinds that cannot be listed.
func (k *Kind) NewList() runtime.Object {
	if k.newList == nil {
		return nil
	}
	l := k.newList()
	l.GetObjectKind().SetGroupVersionKind(k.GroupVersion().WithKind(k.ListKind()))
	return l
}

// GVK returns the group, version and kind.
func (k *Kind) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
}

// GroupVersion returns the group and version.
func (k *Kind) GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: k.Group, Version: k.Version}
}

// GVR returns the group, version and plural name.
func (k *Kind) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Plural}
}

// GroupResource is what errors of the API name.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Plural}
}

// APIVersion is "v1" or "apps/v1".
func (k *Kind) APIVersion() string { return k.GroupVersion().String() }

// String is "pods" or "deployments.apps".
func (k *Kind) String() string { return k.GroupResource().String() }

// StoreKey returns the etcd key of an object of this kind.
func (k *Kind) StoreKey(key Key) string {
	if k.Namespaced {
		return k.StorePrefix() + key.Namespace + "/" + key.Name
	}
	return k.StorePrefix() + key.Name
}

// StorePrefix returns the etcd prefix of the kind, with the closing slash.
func (k *Kind) StorePrefix() string { return "/registry/" + k.Prefix + "/" }

// KindFor returns the kind of the Go type T, a pointer to an API struct. It panics for
// types that have none: that is a mistake of the program, seen in its first test.
func KindFor[T Object]() *Kind {
	k := byType[reflect.TypeFor[T]()]
	if k == nil {
		panic(fmt.Sprintf("api: no kind for %v", reflect.TypeFor[T]()))
	}
	return k
}

// shallow returns a copy of the struct that o points to.
func shallow(o Object) Object {
	from := reflect.ValueOf(o).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	return to.Interface().(Object)
}

// KindOf returns o's kind by its Go type, nil when there is none: also of custom resources, which have one type for all kinds.
func KindOf(o runtime.Object) *Kind { return byType[reflect.TypeOf(o)] }

// define builds a Kind for the struct T with the list type L. The singular name
// defaults to the lower-case kind and the store prefix to the plural.
func define[T, L any, PT interface {
	*T
	Object
}, PL interface {
	*L
	runtime.Object
}](k Kind) *Kind {
	k.newObject = func() Object { return PT(new(T)) }
	k.newList = func() runtime.Object { return PL(new(L)) }
	if k.Prefix == "" {
		k.Prefix = k.Plural
	}
	return finish(k)
}

// virtual builds a Kind that is only sent, never stored or listed: Binding, TokenRequest.
func virtual[T any, PT interface {
	*T
	Object
}](k Kind) *Kind {
	k.newObject = func() Object { return PT(new(T)) }
	return finish(k)
}

// index is evaluated once, at program start.
func index(kinds []*Kind) map[reflect.Type]*Kind {
	m := make(map[reflect.Type]*Kind, len(kinds))
	for _, k := range kinds {
		m[reflect.TypeOf(k.newObject())] = k
	}
	return m
}
