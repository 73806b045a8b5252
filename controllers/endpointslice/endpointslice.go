// Package endpointslice lists the pods behind each Service in EndpointSlices. It replaces upstream's
// endpointslice controller.
//
// Vocabulary: a group is all endpoints of one address family with the same ports, since a slice has one list of
// ports. A group is spread over slices of at most 100 endpoints. What is in a slice already stays in
// it, so that a change of one pod is a write of one slice.
package endpointslice

import (
	"context"
	"errors"
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

const manager = "endpointslice-controller.k8s.io"

type controller struct{ reconcile.Deps }

// New returns the endpointslice controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*corev1.Service]{
		Controller: "endpointslice-controller",
		Also: []reconcile.Source{
			reconcile.ServicesOfPods(),
			reconcile.Mapped(func(s *discoveryv1.EndpointSlice) []api.Key {
				if s.Labels[discoveryv1.LabelManagedBy] != manager {
					return nil
				}
				return []api.Key{{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
			}),
			reconcile.Changed(func(ctx context.Context, d reconcile.Deps, before, after *corev1.Node) []api.Key {
				if zone(before) == zone(after) {
					return nil
				}
				return reconcile.Every(ctx, d, api.ServiceKind, "")
			}),
		},
		Write:     reconcile.Writes{api.EndpointSliceKind: {"create", "update", "delete"}},
		Reconcile: c.reconcile,
	})
}

func zone(n *corev1.Node) string {
	if n == nil {
		return ""
	}
	return n.Labels[corev1.LabelTopologyZone]
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, svc *corev1.Service) (reconcile.Result, error) {
	if svc.DeletionTimestamp != nil || svc.Spec.Selector == nil {
		return reconcile.Result{}, nil // without a selector the slices are the user's
	}
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Namespace: svc.Namespace,
		Labels: labels.SelectorFromSet(svc.Spec.Selector)})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list pods: %w", err)
	}
	existing, err := client.List[*discoveryv1.EndpointSlice](ctx, c.Client, client.Query{Namespace: svc.Namespace,
		Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: manager})})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list endpointslices: %w", err)
	}
	zones, err := c.zones(ctx, pods)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, c.apply(ctx, arrange(svc, desired(svc, pods, zones), existing))
}

// zones returns the zones of the Nodes that pods are on.
func (c controller) zones(ctx context.Context, pods []*corev1.Pod) (map[string]string, error) {
	zones := map[string]string{}
	for _, p := range pods {
		name := p.Spec.NodeName
		if _, known := zones[name]; known || name == "" {
			continue
		}
		n, err := client.Get[*corev1.Node](ctx, c.Client, api.Key{Name: name})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("get node %s: %w", name, err)
		}
		if err == nil {
			zones[name] = zone(n)
		}
	}
	return zones, nil
}

func (c controller) apply(ctx context.Context, p plan) error {
	var errs []error
	for _, s := range p.create {
		if _, err := client.Create(ctx, c.Client, s); err != nil {
			errs = append(errs, fmt.Errorf("create endpointslice: %w", err))
		}
	}
	for _, u := range p.update {
		_, err := client.Mutate(ctx, c.Client, u.now, "", func(s *discoveryv1.EndpointSlice) {
			s.Labels, s.OwnerReferences, s.Endpoints, s.Ports = u.next.Labels, u.next.OwnerReferences, u.next.Endpoints, u.next.Ports
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("update endpointslice %s: %w", u.now.Name, err))
		}
	}
	for _, s := range p.remove {
		err := c.Client.Delete(ctx, s, client.DeleteOptions{AnyRevision: true})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete endpointslice %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}
