// Package namespace empties a Namespace that is being deleted and lets it go. It replaces upstream's namespace
// controller.
//
// Pods go first and must be gone before anything else is deleted: what they use (ConfigMaps, NetworkPolicies) shall not be
// taken from under them. The Namespace itself is held by its spec.finalizers until nothing is left. Nothing polls:
// the disappearance of each object wakes its Namespace.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct {
	reconcile.Deps
	kinds []*api.Kind // namespaced ones, pods first
}

// New returns the namespace controller. Kinds are all stored kinds that are built in.
func New(d reconcile.Deps, kinds []*api.Kind) *reconcile.Controller {
	c := controller{Deps: d}
	f := reconcile.For[*corev1.Namespace]{
		Controller: "namespace-controller",
		Write:      reconcile.Writes{api.NamespaceKind: {"update/status", "update/finalize"}, nil: {"delete"}},
		Workers:    10,
		Reconcile:  c.reconcile,
	}
	for _, k := range kinds {
		if !k.Namespaced {
			continue
		}
		c.kinds = append(c.kinds, k)
		f.Write[k] = []string{"delete"}
		f.Also = append(f.Also, reconcile.Changes(k, func(_ context.Context, _ reconcile.Deps, before, after api.Object) []api.Key {
			if after != nil {
				return nil
			}
			return []api.Key{{Name: before.GetNamespace()}}
		}))
	}
	f.Also = append(f.Also, reconcile.ChangesOfDefined(func(ctx context.Context, d reconcile.Deps, _ *api.Kind, before, after api.Object) []api.Key {
		if before == nil && after == nil {
			return terminating(ctx, d)
		}
		if before == nil || after != nil || before.GetNamespace() == "" {
			return nil
		}
		return []api.Key{{Name: before.GetNamespace()}}
	}))
	slices.SortStableFunc(c.kinds, func(a, b *api.Kind) int {
		switch {
		case a == api.PodKind:
			return -1
		case b == api.PodKind:
			return 1
		}
		return 0
	})
	f.Reconcile = c.reconcile
	return reconcile.New(d, f)
}

// terminating returns the keys of the namespaces that are being deleted.
func terminating(ctx context.Context, d reconcile.Deps) (keys []api.Key) {
	all, err := client.List[*corev1.Namespace](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list namespaces", "err", err)
	}
	for _, ns := range all {
		if ns.DeletionTimestamp != nil {
			keys = append(keys, api.KeyOf(ns))
		}
	}
	return keys
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, ns *corev1.Namespace) (reconcile.Result, error) {
	if ns.DeletionTimestamp == nil || len(ns.Spec.Finalizers) == 0 {
		return reconcile.Result{}, nil
	}
	left, failure := c.empty(ctx, ns.Name)
	ns, err := client.Mutate(ctx, c.Client, ns, "status", func(ns *corev1.Namespace) {
		ns.Status.Phase = corev1.NamespaceTerminating
		ns.Status.Conditions = conditions(ns.Status.Conditions, left, failure, time.Now())
	})
	if err != nil {
		return reconcile.Result{}, errors.Join(failure, fmt.Errorf("write status: %w", err))
	}
	if failure != nil || len(left.objects) > 0 {
		return reconcile.Result{}, failure
	}
	log.Info("namespace is empty")
	_, err = client.Mutate(ctx, c.Client, ns, "finalize", func(ns *corev1.Namespace) {
		ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool {
			return f == corev1.FinalizerKubernetes
		})
	})
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, err
}

// remaining is what is left in a namespace.
type remaining struct {
	objects    map[string]int // by kind
	finalizers map[string]int // objects that they hold
}

// empty deletes everything in the namespace, pods first, and returns what is left.
func (c controller) empty(ctx context.Context, namespace string) (remaining, error) {
	left := remaining{objects: map[string]int{}, finalizers: map[string]int{}}
	var errs []error
	defined, err := reconcile.Defined(ctx, c.Client)
	if err != nil {
		errs = append(errs, err)
	}
	for _, k := range slices.Concat(c.kinds, defined) {
		if !k.Namespaced {
			continue
		}
		if err := c.clear(ctx, k, namespace); err != nil {
			errs = append(errs, err)
		}
		os, _, err := c.Client.List(ctx, k, client.Query{Namespace: namespace})
		if err != nil {
			errs = append(errs, fmt.Errorf("list %s: %w", k, err))
			continue
		}
		if len(os) > 0 {
			left.objects[k.String()] = len(os)
		}
		for _, o := range os {
			for _, f := range o.GetFinalizers() {
				left.finalizers[f]++
			}
		}
		if k == api.PodKind && len(os) > 0 {
			break
		}
	}
	return left, errors.Join(errs...)
}

// clear deletes every object of kind k that is not being deleted.
func (c controller) clear(ctx context.Context, k *api.Kind, namespace string) error {
	os, _, err := c.Client.List(ctx, k, client.Query{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("list %s: %w", k, err)
	}
	return reconcile.Parallel(len(os), func(i int) error {
		if os[i].GetDeletionTimestamp() != nil {
			return nil
		}
		err := c.Client.Delete(ctx, os[i], client.DeleteOptions{AnyRevision: true, Propagation: metav1.DeletePropagationBackground})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", k, os[i].GetName(), err)
		}
		return nil
	})
}
