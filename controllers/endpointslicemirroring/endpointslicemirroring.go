// Package endpointslicemirroring mirrors Endpoints that somebody writes by hand, for Services without a selector, in
// EndpointSlices, which is what everybody reads. It replaces upstream's endpointslice mirroring controller.
package endpointslicemirroring

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	manager = "endpointslicemirroring-controller.k8s.io"
	// leader marks Endpoints that old programs elect their leader with.
	leader = "control-plane.alpha.kubernetes.io/leader"
)

type controller struct{ reconcile.Deps }

// New returns the endpointslice mirroring controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("endpoint-slice-mirroring-controller")}
	return reconcile.New(c.Deps, reconcile.For[*corev1.Endpoints]{
		Controller: "endpointslice-mirroring-controller",
		Also: []reconcile.Source{
			reconcile.Changed(func(_ context.Context, _ reconcile.Deps, before, after *corev1.Service) []api.Key {
				if before != nil && after != nil && (before.Spec.Selector == nil) == (after.Spec.Selector == nil) {
					return nil
				}
				if after == nil {
					after = before
				}
				return []api.Key{api.KeyOf(after)}
			}),
			reconcile.Mapped(func(s *discoveryv1.EndpointSlice) []api.Key {
				if s.Labels[discoveryv1.LabelManagedBy] != manager {
					return nil
				}
				return []api.Key{{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
			}),
		},
		Write:     reconcile.Writes{api.EndpointSliceKind: {"create", "delete", "update"}},
		Reconcile: c.reconcile,
		Gone: func(ctx context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
			return reconcile.Result{}, c.apply(ctx, key, &corev1.Endpoints{})
		},
	})
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, e *corev1.Endpoints) (reconcile.Result, error) {
	svc, err := client.Get[*corev1.Service](ctx, c.Client, api.KeyOf(e))
	if err != nil && !apierrors.IsNotFound(err) {
		return reconcile.Result{}, fmt.Errorf("get service: %w", err)
	}
	_, elects := e.Annotations[leader]
	if err != nil || svc.Spec.Selector != nil || elects || e.Labels[discoveryv1.LabelSkipMirror] == "true" || e.DeletionTimestamp != nil {
		return reconcile.Result{}, c.apply(ctx, api.KeyOf(e), &corev1.Endpoints{})
	}
	return reconcile.Result{}, c.apply(ctx, api.KeyOf(e), e)
}

// apply makes the slices mirror e; the zero Endpoints have none.
func (c controller) apply(ctx context.Context, key api.Key, e *corev1.Endpoints) error {
	existing, err := client.List[*discoveryv1.EndpointSlice](ctx, c.Client, client.Query{Namespace: key.Namespace,
		Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: key.Name, discoveryv1.LabelManagedBy: manager})})
	if err != nil {
		return fmt.Errorf("list slices: %w", err)
	}
	p := arrange(e, existing)
	if p.invalid > 0 {
		c.Events.Event(e, corev1.EventTypeWarning, "InvalidIPAddress", fmt.Sprintf("Skipped %d invalid IP addresses when mirroring to EndpointSlices", p.invalid))
	}
	if p.skipped > 0 {
		c.Events.Event(e, corev1.EventTypeWarning, "TooManyAddressesToMirror",
			fmt.Sprintf("A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", perSubset, p.skipped))
	}
	for _, s := range p.create {
		if _, err := client.Create(ctx, c.Client, s); err != nil {
			return fmt.Errorf("create slice: %w", err)
		}
	}
	for _, s := range p.update {
		if _, err := c.Client.Update(ctx, s, ""); err != nil {
			return fmt.Errorf("update slice: %w", err)
		}
	}
	for _, s := range p.remove {
		if err := c.Client.Delete(ctx, s, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete slice: %w", err)
		}
	}
	return nil
}
