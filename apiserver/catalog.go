package apiserver

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// catalog is what the server serves at one time: its kinds and the documents that tell of them. It never changes. A request sees
// one catalog from beginning to end.
//
// What comes and goes is in an extension each (Server.Serve). Whoever serves something of another sort gives the extensions a field of
// his own and the Server a method like Serve; change makes the catalog anew, so that whatever is derived from the whole (discovery,
// documents) is made in newCatalog and nowhere else, and no more of it than the first request for it needs.
type catalog struct {
	extensions
	kinds  map[schema.GroupVersionResource]rest.Any
	byKind map[*api.Kind]rest.Any
	all    []rest.Any // the built-in kinds, then the custom ones
	disco  *discovery
}

// extensions are what is served beside the built-in kinds.
type extensions struct {
	custom []rest.Any // what CustomResourceDefinitions define, by group, name and version
}

func newCatalog(builtin []rest.Any, x extensions) (*catalog, error) {
	c := &catalog{extensions: x}
	c.kinds = make(map[schema.GroupVersionResource]rest.Any, len(builtin)+len(x.custom))
	c.byKind = make(map[*api.Kind]rest.Any, len(builtin)+len(x.custom))
	for _, a := range slices.Concat(builtin, x.custom) {
		if _, twice := c.kinds[a.Kind.GVR()]; twice {
			if a.Custom() != nil {
				continue // a definition does not take the place of what is built in
			}
			return nil, fmt.Errorf("%v is registered twice", a.Kind)
		}
		c.kinds[a.Kind.GVR()] = a
		c.byKind[a.Kind] = a
		c.all = append(c.all, a)
	}
	c.disco = newDiscovery(c.all)
	return c, nil
}

// at returns the kind that a URL names.
func (c *catalog) at(t *target) (rest.Any, bool) {
	a, ok := c.kinds[schema.GroupVersionResource{Group: t.group, Version: t.version, Resource: t.plural}]
	return a, ok
}

// of returns what k is served as. A custom kind is found by its name: there are many values of Kind for one.
func (c *catalog) of(k *api.Kind) (rest.Any, bool) {
	a, ok := c.byKind[k]
	if !ok && k.Custom() {
		if a, ok = c.kinds[k.GVR()]; ok && !a.Kind.Custom() {
			return rest.Any{}, false
		}
	}
	return a, ok
}

// kindOf returns the kind of o, nil where it is none that is served.
func (c *catalog) kindOf(o api.Object) *api.Kind {
	if k := api.KindOf(o); k != nil {
		return k
	}
	gvk := o.GetObjectKind().GroupVersionKind()
	var other *api.Kind // of another version than o's, which may be stored in one that is not served
	for _, a := range c.custom {
		switch {
		case a.Kind.GVK() == gvk:
			return a.Kind
		case a.Kind.GroupKind() == gvk.GroupKind():
			other = a.Kind
		}
	}
	return other
}

// Kind returns the stored kind that is served as gvk.
func (s *Server) Kind(gvk schema.GroupVersionKind) (rest.Any, bool) {
	for _, a := range s.catalog.Load().all {
		if a.Kind.Kind == gvk.Kind && a.Kind.GVK() == gvk && a.Stored() {
			return a, true
		}
	}
	return rest.Any{}, false
}

// Serve replaces the custom resources that are served. Requests under way go on with what they began with. The order is that of
// discovery, within a group and among groups that come after the built-in ones.
func (s *Server) Serve(custom []rest.Any) error {
	return s.change(func(x *extensions) { x.custom = custom })
}

// Remove deletes an object that goes with the definition of its kind, of which a need not be a version that is served. Admission is not asked.
func (s *Server) Remove(ctx context.Context, a rest.Any, key api.Key) error {
	return s.pipe.Remove(ctx, &rest.Request{Any: a, Key: key})
}

// change makes a catalog with other extensions the one that is served.
func (s *Server) change(f func(x *extensions)) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	x := s.catalog.Load().extensions
	f(&x)
	c, err := newCatalog(s.deps.Resources, x)
	if err != nil {
		return err
	}
	s.catalog.Store(c)
	return nil
}
