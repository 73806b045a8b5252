// Package servicelb gives Services of type LoadBalancer addresses: those of the nodes, which package proxy takes traffic at on every node. It stands
// where others run a cloud's service controller, k3s' ServiceLB or MetalLB. No pod and no program is behind an address; the client's own is
// kept with externalTrafficPolicy: Local, for which only nodes with endpoints of the Service are given.
//
// Invariants:
//   - Nobody's port is taken away: a node is given to a Service only with all of its ports, none of which another Service, a node port, a pod's
//     hostPort or Config.Reserved has there. Who had it first keeps it.
//   - Services of another loadBalancerClass are left alone.
package servicelb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Class is the loadBalancerClass of Services that are to have nodes' addresses whatever else gives addresses here.
const Class = "yare.dev/nodes"

// Config says what is given to whom.
type Config struct {
	// OnlyClass leaves Services without a class to somebody else.
	OnlyClass bool
	// Reserved are ports that stay the nodes' own.
	Reserved []int32
}

type controller struct {
	reconcile.Deps
	config Config
	told   map[api.Key]string // what was last said of a Service that has no address; only touched by run
	// local are the Services that had a look at their endpoints last, or are about to. Changes of others' slices concern no address.
	local *atomic.Pointer[map[api.Key]bool]
}

// New returns the controller.
func New(d reconcile.Deps, config Config) *reconcile.Controller {
	c := controller{d.Named("service-controller"), config, map[api.Key]string{}, new(atomic.Pointer[map[api.Key]bool])}
	return reconcile.NewLoop(c.Deps, reconcile.Loop{
		Controller: "service-lb-controller",
		Wake:       []*api.Kind{api.ServiceKind, api.NodeKind, api.PodKind, api.EndpointSliceKind},
		Heeds:      c.heeds,
		Write:      reconcile.Writes{api.ServiceKind: {"update/status"}},
		Run:        c.run,
	})
}

// heeds says whether a change can concern anybody's address.
func (c controller) heeds(e client.Event) bool {
	any := func(concerns func(api.Object) bool) bool {
		return concerns(e.Object) || e.Old != nil && concerns(e.Old)
	}
	switch o := e.Object.(type) {
	case *corev1.Service:
		return any(func(o api.Object) bool {
			s := o.(*corev1.Service)
			return s.Spec.Type != corev1.ServiceTypeClusterIP || len(s.Spec.ExternalIPs) > 0
		})
	case *corev1.Pod:
		old, _ := e.Old.(*corev1.Pod)
		return any(func(o api.Object) bool { return len(hostPorts(o.(*corev1.Pod))) > 0 }) &&
			(old == nil || e.Op == client.Deleted || old.Spec.NodeName != o.Spec.NodeName || api.PodTerminal(old) != api.PodTerminal(o))
	case *corev1.Node:
		old, _ := e.Old.(*corev1.Node)
		return old == nil || e.Op == client.Deleted || takes(old) != takes(o) || !slices.Equal(old.Status.Addresses, o.Status.Addresses)
	case *discoveryv1.EndpointSlice:
		old, _ := e.Old.(*discoveryv1.EndpointSlice)
		if old == nil && e.Op == client.Modified {
			return true // nobody knows whose it was
		}
		return any(c.isLocal) && (old == nil || e.Op == client.Deleted || serviceOf(old) != serviceOf(o) || !slices.Equal(nodesOf(old), nodesOf(o)))
	}
	return true
}

// isLocal says whether a slice is of a Service that looks at its endpoints. Before anybody has looked all may be.
func (c controller) isLocal(o api.Object) bool {
	local := c.local.Load()
	return local == nil || (*local)[serviceOf(o.(*discoveryv1.EndpointSlice))]
}

// serviceOf is whose endpoints a slice has.
func serviceOf(s *discoveryv1.EndpointSlice) api.Key {
	return api.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

func (c controller) run(ctx context.Context, log *slog.Logger) (reconcile.Result, error) {
	w, err := c.gather(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	var errs []error
	given := w.give(c.config)
	for _, g := range given {
		errs = append(errs, c.tell(ctx, log, g))
	}
	for key := range c.told {
		if !slices.ContainsFunc(given, func(g gift) bool { return api.KeyOf(g.service) == key }) {
			delete(c.told, key)
		}
	}
	return reconcile.Result{}, errors.Join(errs...)
}

// gather reads what decides.
func (c controller) gather(ctx context.Context) (w world, err error) {
	all, err := client.List[*corev1.Service](ctx, c.Client, client.Query{})
	if err != nil {
		return w, fmt.Errorf("list services: %w", err)
	}
	w.services = all
	looks := func(s *corev1.Service) bool {
		return c.config.mine(s) && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	}
	local := map[api.Key]bool{}
	for _, s := range all {
		if looks(s) {
			local[api.KeyOf(s)] = true
		}
	}
	c.local.Store(&local) // before slices are listed: a change that comes later is heeded
	if !slices.ContainsFunc(all, c.config.mine) {
		return w, nil
	}
	if w.nodes, err = client.List[*corev1.Node](ctx, c.Client, client.Query{}); err != nil {
		return w, fmt.Errorf("list nodes: %w", err)
	}
	if w.pods, err = client.List[*corev1.Pod](ctx, c.Client, client.Query{}); err != nil {
		return w, fmt.Errorf("list pods: %w", err)
	}
	w.endpoints = map[api.Key][]string{}
	for _, s := range all {
		if !looks(s) {
			continue
		}
		list, err := client.List[*discoveryv1.EndpointSlice](ctx, c.Client, client.Query{Namespace: s.Namespace,
			Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name})})
		if err != nil {
			return w, fmt.Errorf("list slices: %w", err)
		}
		for _, slice := range list {
			w.endpoints[api.KeyOf(s)] = append(w.endpoints[api.KeyOf(s)], nodesOf(slice)...)
		}
	}
	return w, nil
}

// tell writes a Service's addresses down, and says what has come of it where that is new.
func (c controller) tell(ctx context.Context, log *slog.Logger, g gift) error {
	key := api.KeyOf(g.service)
	if !slices.EqualFunc(g.service.Status.LoadBalancer.Ingress, g.ingress, sameAddress) {
		_, err := client.Mutate(ctx, c.Client, g.service, "status", func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = g.ingress })
		if err != nil {
			return fmt.Errorf("update status of service %s: %w", key, err)
		}
		log.Info("addresses of a Service", "service", key.String(), "addresses", len(g.ingress))
		if len(g.ingress) > 0 {
			c.Events.Event(g.service, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer")
		}
	}
	why := g.why
	if len(g.ingress) > 0 {
		why = ""
	}
	if c.told[key] == why {
		return nil
	}
	if c.told[key] = why; why != "" {
		c.Events.Event(g.service, corev1.EventTypeWarning, "SyncLoadBalancerFailed", "No node's address can be given: "+why)
	}
	return nil
}

func sameAddress(a, b corev1.LoadBalancerIngress) bool {
	mode := func(in corev1.LoadBalancerIngress) corev1.LoadBalancerIPMode {
		if in.IPMode == nil {
			return corev1.LoadBalancerIPModeVIP
		}
		return *in.IPMode
	}
	return a.IP == b.IP && a.Hostname == b.Hostname && mode(a) == mode(b) && len(a.Ports) == len(b.Ports)
}

// nodesOf returns the nodes of a slice's endpoints that take traffic, in order, each once.
func nodesOf(s *discoveryv1.EndpointSlice) (names []string) {
	for _, e := range s.Endpoints {
		if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
			names = append(names, *e.NodeName)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
