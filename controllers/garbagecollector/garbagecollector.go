// Package garbagecollector deletes objects whose owners are gone and carries out foreground and orphaning deletion.
// It replaces upstream's garbage collector and its graph builder.
//
// Vocabulary: a dependent has an owner reference; its owner is solid when it exists under the UID that the reference
// names, waiting when it is being deleted in the foreground, else dangling. A dependent blocks its
// owner's foreground deletion when its reference says so.
//
// There is no graph in memory: the dependents of an object are found by the index of owner UIDs that every kind has,
// and its owners by name; only the kinds of what was seen to depend on a UID are remembered (heirs), so that the end of
// an object that nothing depends on, which most are, costs nothing. What wakes an object: it came, its references
// changed, it is being deleted, or an owner of it went.
//
// Invariant: nothing is deleted because of an owner that was not seen to be absent by a live read, and every
// deletion is conditional on the revision that the decision was made on.
package garbagecollector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct {
	reconcile.Deps
	kinds  []*api.Kind
	byName map[string]*api.Kind           // Kind.String
	byGK   map[schema.GroupKind]*api.Kind // what owner references name
	wake   func(api.Key)
	heirs  heirs
}

// New returns the garbage collector for the kinds, all stored ones that are built in, and those that are defined while it runs. Events
// are left out, they expire.
func New(d reconcile.Deps, kinds []*api.Kind) *reconcile.Controller {
	c := &controller{Deps: d.Named("garbage-collector-controller"), byName: map[string]*api.Kind{}, byGK: map[schema.GroupKind]*api.Kind{}}
	f := reconcile.Keyed{
		Controller: "garbage-collector-controller",
		Read:       []*api.Kind{nil},
		Write:      reconcile.Writes{nil: {"delete", "patch", "update"}},
		Workers:    20,
		Run:        c.run,
	}
	for _, k := range kinds {
		if k == api.EventKind {
			continue
		}
		c.kinds = append(c.kinds, k)
		c.byName[k.String()] = k
		c.byGK[schema.GroupKind{Group: k.Group, Kind: k.Kind}] = k
		f.Sources = append(f.Sources, reconcile.Changes(k, func(ctx context.Context, _ reconcile.Deps, before, after api.Object) []api.Key {
			return c.concerned(ctx, k, before, after)
		}))
	}
	f.Sources = append(f.Sources, reconcile.ChangesOfDefined(func(ctx context.Context, _ reconcile.Deps, k *api.Kind, before, after api.Object) []api.Key {
		if before == nil && after == nil {
			return c.appeared(ctx, k)
		}
		return c.concerned(ctx, k, before, after)
	}))
	r := reconcile.NewKeyed(c.Deps, f)
	c.wake = r.Wake
	return r
}

// all returns every kind, built in or defined.
func (c *controller) all() []*api.Kind { return append(c.Informers.Defined(), c.kinds...) }

// named returns the kind that String prints as the name, nil where there is none any more.
func (c *controller) named(name string) *api.Kind {
	if k := c.byName[name]; k != nil {
		return k
	}
	return find(c.Informers.Defined(), func(k *api.Kind) bool { return k.String() == name })
}

// ofKind returns the kind that an owner reference names, nil where there is none.
func (c *controller) ofKind(gk schema.GroupKind) *api.Kind {
	if k := c.byGK[gk]; k != nil {
		return k
	}
	return find(c.Informers.Defined(), func(k *api.Kind) bool { return k.GroupKind() == gk })
}

func find(kinds []*api.Kind, is func(*api.Kind) bool) *api.Kind {
	if i := slices.IndexFunc(kinds, is); i >= 0 {
		return kinds[i]
	}
	return nil
}

// appeared returns what depends on objects of a kind that is new, of which nothing could be said before.
func (c *controller) appeared(ctx context.Context, owner *api.Kind) []api.Key {
	var keys []api.Key
	for _, k := range c.all() {
		os, _, err := c.Client.List(ctx, k, client.Query{})
		if err != nil {
			c.Log.Warn("list possible dependents", "kind", k.String(), "err", err)
			continue
		}
		for _, o := range os {
			if slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
				gv, err := schema.ParseGroupVersion(r.APIVersion)
				return err == nil && gv.Group == owner.Group && r.Kind == owner.Kind
			}) {
				c.depends(k, o)
				keys = append(keys, keyOf(k, api.KeyOf(o)))
			}
		}
	}
	return keys
}

// keyOf names an object of any kind: "pods/web-1" in its namespace.
func keyOf(k *api.Kind, o api.Key) api.Key {
	return api.Key{Namespace: o.Namespace, Name: k.String() + "/" + o.Name}
}

// concerned returns what to look at after a change of an object of kind k.
func (c *controller) concerned(ctx context.Context, k *api.Kind, before, after api.Object) []api.Key {
	var keys []api.Key
	if after == nil {
		return append(c.bereaved(ctx, before.GetNamespace(), before.GetUID()), c.ownerKeys(before)...)
	}
	changed := before == nil || !equality.Semantic.DeepEqual(before.GetOwnerReferences(), after.GetOwnerReferences())
	if changed {
		c.depends(k, after)
	}
	if changed && len(after.GetOwnerReferences()) > 0 || waits(after) {
		keys = append(keys, keyOf(k, api.KeyOf(after)))
	}
	if changed && before != nil { // it may have been the last that its owner waits for
		keys = append(keys, c.ownerKeys(before)...)
	}
	return keys
}

// waits says that o is being deleted and that this is for the garbage collector to finish.
func waits(o api.Object) bool {
	return foreground(o) || o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents)
}

func foreground(o api.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents)
}

func (c *controller) ownerKeys(o api.Object) []api.Key {
	var keys []api.Key
	for i := range o.GetOwnerReferences() {
		if k, key, ok := c.locate(o, &o.GetOwnerReferences()[i]); ok {
			keys = append(keys, keyOf(k, key))
		}
	}
	return keys
}

// locate returns where the owner is that ref of o names; false for kinds that we do not know, and for a namespaced
// owner of a cluster-scoped object, which cannot be.
func (c *controller) locate(o api.Object, ref *metav1.OwnerReference) (*api.Kind, api.Key, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	k := c.ofKind(schema.GroupKind{Group: gv.Group, Kind: ref.Kind})
	if err != nil || k == nil {
		return nil, api.Key{}, false
	}
	if !k.Namespaced {
		return k, api.Key{Name: ref.Name}, true
	}
	return k, api.Key{Namespace: o.GetNamespace(), Name: ref.Name}, o.GetNamespace() != ""
}

// dependent is an object with its kind.
type dependent struct {
	api.Object
	kind *api.Kind
}

func (d dependent) key() api.Key { return keyOf(d.kind, api.KeyOf(d.Object)) }

// dependents returns every object with a reference to o.
func (c *controller) dependents(ctx context.Context, o api.Object) ([]dependent, error) {
	return c.owned(ctx, c.all(), o.GetNamespace(), o.GetUID())
}

// owned returns the objects of the kinds with a reference to an owner in the namespace.
func (c *controller) owned(ctx context.Context, kinds []*api.Kind, namespace string, owner types.UID) ([]dependent, error) {
	var out []dependent
	for _, k := range kinds {
		if namespace != "" && !k.Namespaced {
			continue
		}
		os, _, err := c.Client.List(ctx, k, client.Query{Namespace: namespace, Owner: owner})
		if err != nil {
			if apierrors.IsNotFound(err) {
				continue // the kind is no more, and its objects neither
			}
			return nil, fmt.Errorf("list owned %s: %w", k, err)
		}
		for _, o := range os {
			out = append(out, dependent{o, k})
		}
	}
	return out, nil
}

func (c *controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	plural, name, _ := strings.Cut(key.Name, "/")
	k := c.named(plural)
	if k == nil {
		return reconcile.Result{}, nil
	}
	o, err := c.Client.Get(ctx, k, api.Key{Namespace: key.Namespace, Name: name})
	switch {
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get %s: %w", k, err)
	case foreground(o):
		return reconcile.Result{}, c.foreground(ctx, o)
	case waits(o):
		return reconcile.Result{}, c.orphan(ctx, o)
	case o.GetDeletionTimestamp() != nil || len(o.GetOwnerReferences()) == 0:
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, c.collect(ctx, log, dependent{o, k})
}

// foreground lets o go when no blocking dependent is left, else sees to it that they go.
func (c *controller) foreground(ctx context.Context, o api.Object) error {
	deps, err := c.dependents(ctx, o)
	if err != nil {
		return err
	}
	blocked := false
	for _, d := range deps {
		if slices.ContainsFunc(d.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return r.UID == o.GetUID() && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
		}) {
			blocked = true
			c.wake(d.key())
		}
	}
	if blocked {
		return nil
	}
	return c.drop(ctx, o, metav1.FinalizerDeleteDependents)
}

// orphan frees o's dependents, then lets o go.
func (c *controller) orphan(ctx context.Context, o api.Object) error {
	deps, err := c.dependents(ctx, o)
	if err != nil {
		return err
	}
	err = reconcile.Parallel(len(deps), func(i int) error {
		if err := c.disown(ctx, deps[i], o.GetUID()); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.drop(ctx, o, metav1.FinalizerOrphanDependents)
}

// drop removes a finalizer from o.
func (c *controller) drop(ctx context.Context, o api.Object, finalizer string) error {
	_, err := client.Mutate(ctx, c.Client, o, "", func(o api.Object) {
		o.SetFinalizers(slices.DeleteFunc(o.GetFinalizers(), func(f string) bool { return f == finalizer }))
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove finalizer %s: %w", finalizer, err)
	}
	return nil
}

// disown removes o's references to the owners.
func (c *controller) disown(ctx context.Context, o dependent, owners ...types.UID) error {
	if o.kind.Custom() { // whose lists nobody knows how to merge
		left := slices.DeleteFunc(slices.Clone(o.GetOwnerReferences()), func(r metav1.OwnerReference) bool { return slices.Contains(owners, r.UID) })
		return c.replaceOwners(ctx, o, left)
	}
	var refs []any
	for _, uid := range owners {
		refs = append(refs, map[string]any{"$patch": "delete", "uid": uid})
	}
	return c.patchOwners(ctx, o, refs)
}

func (c *controller) patchOwners(ctx context.Context, o dependent, refs any) error {
	return c.patch(ctx, o, types.StrategicMergePatchType, map[string]any{"uid": o.GetUID(), "ownerReferences": refs})
}

// replaceOwners sets all of o's references, if o is as it was read.
func (c *controller) replaceOwners(ctx context.Context, o dependent, refs []metav1.OwnerReference) error {
	return c.patch(ctx, o, types.MergePatchType, map[string]any{"uid": o.GetUID(), "resourceVersion": o.GetResourceVersion(), "ownerReferences": refs})
}

func (c *controller) patch(ctx context.Context, o dependent, typ types.PatchType, meta map[string]any) error {
	data, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return fmt.Errorf("encode owner patch: %w", err)
	}
	if _, err := c.Client.Patch(ctx, o.kind, api.KeyOf(o), client.Patch{Type: typ, Data: data}); err != nil {
		return fmt.Errorf("patch owners of %s %s: %w", o.kind, api.KeyOf(o), err)
	}
	return nil
}

// collect deletes o when none of its owners is solid, and removes references to the others when one is.
func (c *controller) collect(ctx context.Context, log *slog.Logger, o dependent) error {
	s, err := c.classify(ctx, o)
	if err != nil {
		return err
	}
	if s.solid > 0 {
		if unneeded := append(s.dangling, s.waiting...); len(unneeded) > 0 {
			return c.disown(ctx, o, unneeded...)
		}
		return nil
	}
	propagation := metav1.DeletePropagationBackground
	switch {
	case len(s.waiting) > 0:
		deps, err := c.dependents(ctx, o)
		if err != nil {
			return err
		}
		if len(deps) > 0 {
			// The owner waits for o, and o for its own dependents. One of them that is waited for itself
			// closes a circle, which is broken by not blocking.
			if slices.ContainsFunc(deps, func(d dependent) bool { return foreground(d.Object) }) {
				if err := c.unblock(ctx, o); err != nil {
					return err
				}
			}
			propagation = metav1.DeletePropagationForeground
		}
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents):
		propagation = metav1.DeletePropagationOrphan
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents):
		propagation = metav1.DeletePropagationForeground
	}
	log.Debug("deleting dependent", "propagation", propagation)
	if err := c.Client.Delete(ctx, o.Object, client.DeleteOptions{Propagation: propagation}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete dependent: %w", err)
	}
	return nil
}

// unblock makes o's references not block.
func (c *controller) unblock(ctx context.Context, o dependent) error {
	if o.kind.Custom() {
		all := slices.Clone(o.GetOwnerReferences())
		for i := range all {
			all[i].BlockOwnerDeletion = new(bool)
		}
		return c.replaceOwners(ctx, o, all)
	}
	var refs []any
	for _, r := range o.GetOwnerReferences() {
		refs = append(refs, map[string]any{"uid": r.UID, "blockOwnerDeletion": false})
	}
	return c.patchOwners(ctx, o, refs)
}

// owners is how o's owners are.
type owners struct {
	solid             int
	dangling, waiting []types.UID
}

func (c *controller) classify(ctx context.Context, o dependent) (owners, error) {
	var s owners
	var errs []error
	for i := range o.GetOwnerReferences() {
		ref := &o.GetOwnerReferences()[i]
		k, key, ok := c.locate(o, ref)
		if !ok {
			if k != nil {
				c.Events.Event(o.Object, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", fmt.Sprintf(
					"ownerRef [%s/%s, namespace: , name: %s, uid: %s] does not exist in namespace %q", ref.APIVersion, ref.Kind, ref.Name, ref.UID, ""))
			}
			s.solid++ // nothing can be said of it, so nothing is done
			continue
		}
		owner, err := c.Client.Get(client.Live(ctx), k, key)
		switch {
		case apierrors.IsNotFound(err) || err == nil && owner.GetUID() != ref.UID:
			s.dangling = append(s.dangling, ref.UID)
			for _, key := range c.bereaved(ctx, key.Namespace, ref.UID) {
				c.wake(key)
			}
		case err != nil:
			errs = append(errs, fmt.Errorf("get owner %s %s: %w", k, key, err))
		case foreground(owner):
			s.waiting = append(s.waiting, ref.UID)
		default:
			s.solid++
		}
	}
	return s, errors.Join(errs...)
}
