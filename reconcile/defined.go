package reconcile

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// Kinds come and go with their definitions. A controller of all kinds follows those that are defined by the source ChangesOfDefined, and
// reads which there are by Defined, or, where it needs the same values each time, by Informers.Defined.

// Defined returns the kinds of all custom resources that are served, each in one version, in the order of their definitions' names.
func Defined(ctx context.Context, r client.Reader) ([]*api.Kind, error) {
	crds, err := client.List[*apiextensionsv1.CustomResourceDefinition](ctx, r, client.Query{})
	if err != nil {
		return nil, fmt.Errorf("list what is defined: %w", err)
	}
	var kinds []*api.Kind
	for _, c := range crds {
		if v := version(c); v != "" {
			kinds = append(kinds, api.Defined(c, v))
		}
	}
	return kinds, nil
}

// KindNamed returns the kind that a reference names, in the version that controllers speak, stored or defined. That there is none is
// a NoKindMatchError. It is for controllers that read CustomResourceDefinitions.
func KindNamed(ctx context.Context, r client.Reader, apiVersion, kind string) (*api.Kind, error) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, err
	}
	gk := schema.GroupKind{Group: gv.Group, Kind: kind}
	is := func(k *api.Kind) bool { return k.GroupKind() == gk }
	all := api.Stored()
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i], nil
	}
	if all, err = Defined(ctx, r); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i], nil
	}
	return nil, &apimeta.NoKindMatchError{GroupKind: gk}
}

// version is the one in which controllers speak of what c defines: that which is stored, where it is served; empty where none is.
func version(c *apiextensionsv1.CustomResourceDefinition) string {
	if !apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established) {
		return ""
	}
	first := ""
	for _, v := range c.Spec.Versions {
		if v.Served && v.Storage {
			return v.Name
		}
		if v.Served && first == "" {
			first = v.Name
		}
	}
	return first
}

// ChangesOfDefined wakes the keys that f returns for a change of an object of any kind that is defined. When a kind has appeared, f is
// called once without an object: it may matter to objects that were seen before. So it is when a kind is followed anew, in another
// version or after a watch that broke: the ends of objects in between were not seen.
func ChangesOfDefined(f func(ctx context.Context, d Deps, k *api.Kind, before, after api.Object) []api.Key) Source {
	return Source{defined: f}
}

// defined are the kinds that Informers watch because they are defined.
type defined struct {
	handlers []func(*api.Kind, client.Event) // fixed when Run begins

	mu     sync.Mutex
	byName map[string]*definedKind // by the definition's
	first  bool                    // those that were defined when Run began are being taken in
}

type definedKind struct {
	kind   *api.Kind
	uid    types.UID // the definition's
	cancel context.CancelFunc
	first  bool // it was there before any object was seen, so that it does not appear to anybody, once
}

// retryDefined is how long a watch that broke waits to be begun again.
const retryDefined = time.Second

// Defined returns the kinds that are defined, as the informers know.
func (i *Informers) Defined() []*api.Kind {
	i.defined.mu.Lock()
	defer i.defined.mu.Unlock()
	kinds := make([]*api.Kind, 0, len(i.defined.byName))
	for _, d := range i.defined.byName {
		kinds = append(kinds, d.kind)
	}
	return kinds
}

// subscribeDefined calls f with each change of an object of a kind that is defined, and with Synced when a kind has appeared. Preconditions:
// Run was not called.
func (i *Informers) subscribeDefined(f func(*api.Kind, client.Event)) {
	if len(i.defined.handlers) == 0 {
		i.subscribe(api.CustomResourceDefinitionKind, i.define)
	}
	i.defined.handlers = append(i.defined.handlers, f)
}

// preload begins to follow what is defined already, so that it is known before any object is.
func (i *Informers) preload(ctx context.Context) error {
	if len(i.defined.handlers) == 0 {
		return nil
	}
	crds, err := client.List[*apiextensionsv1.CustomResourceDefinition](ctx, i.reader, client.Query{})
	i.defined.first = true
	for _, c := range crds {
		i.define(client.Event{Op: client.Added, Object: c})
	}
	i.defined.first = false
	return err
}

// define takes in a change of a definition. The end of a kind is told by its watch, after the end of all its objects.
func (i *Informers) define(e client.Event) {
	c := e.Object.(*apiextensionsv1.CustomResourceDefinition)
	v := version(c)
	if e.Op == client.Deleted || v == "" {
		return
	}
	i.defined.mu.Lock()
	defer i.defined.mu.Unlock()
	old := i.defined.byName[c.Name]
	if old != nil && old.uid == c.UID && old.kind.Version == v {
		return
	}
	if old != nil {
		old.cancel()
	}
	ctx, cancel := context.WithCancel(i.ctx)
	d := &definedKind{api.Defined(c, v), c.UID, cancel, i.defined.first}
	if i.defined.byName == nil {
		i.defined.byName = map[string]*definedKind{}
	}
	i.defined.byName[c.Name] = d
	i.following.Go(func() {
		defer cancel()
		i.followDefined(ctx, c.Name, d)
	})
}

// followDefined passes on changes of d's objects until it is no longer defined.
func (i *Informers) followDefined(ctx context.Context, name string, d *definedKind) {
	first := d.first
	for ctx.Err() == nil {
		err := i.watchEach(ctx, d.kind, func(e client.Event) {
			if e.Op == client.Synced && first {
				first = false // later ones follow a gap
				return
			}
			for _, f := range i.defined.handlers {
				f(d.kind, e)
			}
		})
		if apierrors.IsNotFound(err) && i.forget(ctx, name, d) {
			return
		}
		_ = run.Pause(ctx, retryDefined)
	}
}

// forget drops d if its definition is gone, or not served any more.
func (i *Informers) forget(ctx context.Context, name string, d *definedKind) bool {
	c, err := client.Get[*apiextensionsv1.CustomResourceDefinition](ctx, i.reader, api.Key{Name: name})
	if err == nil && c.UID == d.uid && version(c) != "" || err != nil && !apierrors.IsNotFound(err) {
		return false
	}
	i.defined.mu.Lock()
	defer i.defined.mu.Unlock()
	if i.defined.byName[name] == d {
		delete(i.defined.byName, name)
	}
	return true
}

// watchEach calls f with each event of the kind until the watch ends.
func (i *Informers) watchEach(ctx context.Context, k *api.Kind, f func(client.Event)) error {
	for e, err := range i.reader.Watch(ctx, k, client.Query{}, 0) {
		if err != nil {
			return err
		}
		f(e)
	}
	return nil
}
