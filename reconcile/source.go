package reconcile

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Source wakes objects of a controller's kind by changes of another kind.
type Source struct {
	kind  *api.Kind
	lists []*api.Kind // what mapping reads
	keys  func(d Deps, owner *api.Kind) func(context.Context, client.Event) []api.Key
	// defined is set alone: see ChangesOfDefined.
	defined func(ctx context.Context, d Deps, k *api.Kind, before, after api.Object) []api.Key
}

// Owned wakes the controlling owner of what changed.
func Owned[C api.Object]() Source {
	return Source{kind: api.KindFor[C](), keys: func(_ Deps, owner *api.Kind) func(context.Context, client.Event) []api.Key {
		return func(_ context.Context, e client.Event) []api.Key { return owners(e, owner) }
	}}
}

// Children is Owned for objects that can be adopted: one that nobody controls wakes every P in its namespace
// whose selector (nil: none) matches it.
func Children[C, P api.Object](selector func(P) *metav1.LabelSelector) Source {
	return Source{kind: api.KindFor[C](), lists: []*api.Kind{api.KindFor[P]()},
		keys: func(d Deps, owner *api.Kind) func(context.Context, client.Event) []api.Key {
			return func(ctx context.Context, e client.Event) []api.Key {
				keys := owners(e, owner)
				if metav1.GetControllerOfNoCopy(e.Object) != nil || e.Op == client.Deleted {
					return keys
				}
				return append(keys, adopters(ctx, d, e.Object, selector)...)
			}
		}}
}

func adopters[P api.Object](ctx context.Context, d Deps, o api.Object, selector func(P) *metav1.LabelSelector) []api.Key {
	ps, err := client.List[P](ctx, d.Client, client.Query{Namespace: o.GetNamespace()})
	if err != nil {
		d.Log.Warn("list possible owners", "key", api.KeyOf(o).String(), "err", err)
		return nil
	}
	var keys []api.Key
	for _, p := range ps {
		if s := Selector(selector(p)); !s.Empty() && s.Matches(labels.Set(o.GetLabels())) {
			keys = append(keys, api.KeyOf(p))
		}
	}
	return keys
}

// Mapped wakes the keys that f returns for what changed, for its state before and after. Old is
// only known for changes and deletions that were seen.
func Mapped[S api.Object](f func(S) []api.Key) Source {
	return MappedBy(func(_ context.Context, _ Deps, o S) []api.Key { return f(o) })
}

// MappedBy is Mapped for functions that read; lists names the kinds beside S.
func MappedBy[S api.Object](f func(context.Context, Deps, S) []api.Key, lists ...*api.Kind) Source {
	return Source{kind: api.KindFor[S](), lists: lists,
		keys: func(d Deps, _ *api.Kind) func(context.Context, client.Event) []api.Key {
			return func(ctx context.Context, e client.Event) []api.Key {
				keys := f(ctx, d, e.Object.(S))
				if e.Old != nil {
					keys = append(keys, f(ctx, d, e.Old.(S))...)
				}
				return keys
			}
		}}
}

// Changed wakes the keys that f returns for a change. Before is the zero S for what was not seen before, after
// is the zero S for what is gone.
func Changed[S api.Object](f func(ctx context.Context, d Deps, before, after S) []api.Key, lists ...*api.Kind) Source {
	as := func(o api.Object) S {
		s, _ := o.(S)
		return s
	}
	return Changes(api.KindFor[S](), func(ctx context.Context, d Deps, before, after api.Object) []api.Key {
		return f(ctx, d, as(before), as(after))
	}, lists...)
}

// Changes is Changed for a kind that is only known at run time.
func Changes(kind *api.Kind, f func(ctx context.Context, d Deps, before, after api.Object) []api.Key, lists ...*api.Kind) Source {
	return Source{kind: kind, lists: lists,
		keys: func(d Deps, _ *api.Kind) func(context.Context, client.Event) []api.Key {
			return func(ctx context.Context, e client.Event) []api.Key {
				if e.Op == client.Deleted {
					return f(ctx, d, e.Object, nil)
				}
				return f(ctx, d, e.Old, e.Object)
			}
		}}
}

// Every returns the keys of all objects of kind in namespace (empty: everywhere), for sources whose changes
// concern all of them.
func Every(ctx context.Context, d Deps, kind *api.Kind, namespace string) []api.Key {
	os, _, err := d.Client.List(ctx, kind, client.Query{Namespace: namespace})
	if err != nil {
		d.Log.Warn("list objects to wake", "kind", kind.String(), "err", err)
		return nil
	}
	keys := make([]api.Key, len(os))
	for i, o := range os {
		keys[i] = api.KeyOf(o)
	}
	return keys
}

// owners returns the keys of e's controllers of the kind, before and after.
func owners(e client.Event, kind *api.Kind) []api.Key {
	var keys []api.Key
	for _, o := range []api.Object{e.Object, e.Old} {
		if o == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil && ref.Kind == kind.Kind && groupOf(ref.APIVersion) == kind.Group {
			key := api.Key{Name: ref.Name}
			if kind.Namespaced {
				key.Namespace = o.GetNamespace()
			}
			if len(keys) == 0 || keys[0] != key {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// Selector converts s; nil and invalid selectors (validation lets none pass) select nothing.
func Selector(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}
