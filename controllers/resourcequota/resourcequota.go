// Package resourcequota counts what there is of what a ResourceQuota limits. It replaces upstream's resource quota
// controller.
//
// The API server adds to what is used before it stores an object; this controller gives back. Hence it looks when
// something goes or becomes less, and now and then, for what was reserved and never stored. Neither creations nor
// reservations wake it: what it counts then would lack others that were reserved at the same time, and let in too many.
package resourcequota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/quota"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	again = 5 * time.Minute // is how often everything is counted without a reason
	// soon is when a quota is counted again that a count changed: it may lack what was reserved and not stored yet, which would
	// let in too many until then.
	soon = 5 * time.Second
)

type controller struct {
	reconcile.Deps
	kinds []*api.Kind // that can be limited
}

// New returns the resourcequota controller, which counts objects of the kinds.
func New(d reconcile.Deps, kinds []*api.Kind) *reconcile.Controller {
	c := controller{Deps: d}
	var sources []reconcile.Source
	for _, k := range kinds {
		if !k.Namespaced || quota.Ignored(k) {
			continue
		}
		c.kinds = append(c.kinds, k)
		sources = append(sources, reconcile.Changes(k, func(ctx context.Context, d reconcile.Deps, before, after api.Object) []api.Key {
			if before == nil || after != nil && !less(k, before, after, time.Now()) {
				return nil
			}
			return reconcile.Every(ctx, d, api.ResourceQuotaKind, before.GetNamespace())
		}))
	}
	sources = append(sources, reconcile.ChangesOfDefined(func(ctx context.Context, d reconcile.Deps, k *api.Kind, before, after api.Object) []api.Key {
		if before == nil || after != nil || !k.Namespaced {
			return nil
		}
		return reconcile.Every(ctx, d, api.ResourceQuotaKind, before.GetNamespace())
	}))
	return reconcile.New(d, reconcile.For[*corev1.ResourceQuota]{
		Controller: "resourcequota-controller",
		Heeds: func(before, after *corev1.ResourceQuota) bool {
			return !equality.Semantic.DeepEqual(before.Spec, after.Spec)
		},
		Also:      sources,
		Write:     reconcile.Writes{api.ResourceQuotaKind: {"update/status"}},
		Reconcile: c.reconcile,
	})
}

// less says whether a change may have given something back.
func less(k *api.Kind, before, after api.Object, now time.Time) bool {
	switch old := before.(type) {
	case *corev1.Pod:
		p := after.(*corev1.Pod)
		if api.PodTerminal(old) != api.PodTerminal(p) || (old.Spec.ActiveDeadlineSeconds == nil) != (p.Spec.ActiveDeadlineSeconds == nil) {
			return true
		}
	case *corev1.Service, *corev1.PersistentVolumeClaim:
	default:
		return false // what is only counted stays one
	}
	return !equality.Semantic.DeepEqual(quota.Usage(k, before, quota.Others{}, now), quota.Usage(k, after, quota.Others{}, now))
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, q *corev1.ResourceQuota) (reconcile.Result, error) {
	if q.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	used, failure := c.count(ctx, q, time.Now())
	if failure != nil && used == nil {
		return reconcile.Result{}, failure
	}
	stored, err := client.Mutate(ctx, c.Client, q, "status", func(q *corev1.ResourceQuota) {
		q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	})
	res := reconcile.Result{After: again}
	if stored != q {
		res = res.Sooner(soon)
	}
	return res, errors.Join(failure, err)
}

// count returns what is used of each name that q limits and that some kind uses.
func (c controller) count(ctx context.Context, q *corev1.ResourceQuota, now time.Time) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	names := quota.Names(q.Spec.Hard)
	var errs []error
	defined, err := reconcile.Defined(ctx, c.Client)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Concat(c.kinds, defined) {
		if !k.Namespaced {
			continue
		}
		tracked := slices.DeleteFunc(slices.Clone(names), func(n corev1.ResourceName) bool { return !quota.Tracks(k, n) })
		if len(tracked) == 0 {
			continue
		}
		objects, _, err := c.Client.List(ctx, k, client.Query{Namespace: q.Namespace})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k, err)
		}
		if err := c.add(ctx, used, tracked, k, q, objects, now); err != nil {
			errs = append(errs, err)
		}
	}
	return used, errors.Join(errs...)
}

// add counts objects of a kind.
func (c controller) add(ctx context.Context, used corev1.ResourceList, names []corev1.ResourceName, k *api.Kind, q *corev1.ResourceQuota, objects []api.Object, now time.Time) error {
	for _, n := range names {
		if _, ok := used[n]; !ok {
			used[n] = *resource.NewQuantity(0, resource.DecimalSI)
		}
	}
	var failure error
	among := quota.Others{}
	if k == api.ResourceClaimKind {
		among = c.others(ctx, &failure)
	}
	for _, o := range objects {
		about, err := quota.Matches(q, o)
		if err != nil {
			failure = err
		}
		if !about {
			continue
		}
		use := quota.Usage(k, o, among, now)
		for _, n := range names {
			if amount, ok := use[n]; ok {
				sum := used[n]
				if sum.IsZero() {
					sum = resource.Quantity{Format: amount.Format}
				}
				sum.Add(amount)
				used[n] = sum
			}
		}
	}
	return failure
}

// others are the objects on which it depends what claims of devices use. Why is set where they cannot be read.
func (c controller) others(ctx context.Context, why *error) quota.Others {
	classes := map[string]*resourcev1.DeviceClass{}
	all, err := client.List[*resourcev1.DeviceClass](ctx, c.Client, client.Query{})
	if err != nil {
		*why = fmt.Errorf("list device classes: %w", err)
	}
	for _, class := range all {
		classes[class.Name] = class
	}
	return quota.Others{
		Class: func(name string) *resourcev1.DeviceClass { return classes[name] },
		Pod: func(key api.Key) *corev1.Pod {
			p, err := client.Get[*corev1.Pod](ctx, c.Client, key)
			if err != nil && !apierrors.IsNotFound(err) {
				*why = fmt.Errorf("get the pod that devices are for: %w", err)
			}
			if err != nil {
				return nil
			}
			return p
		},
	}
}
