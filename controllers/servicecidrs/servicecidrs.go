// Package servicecidrs keeps a ServiceCIDR from going while Services have addresses that only it covers, and says whether new ones come from
// it (KEP-1880). It replaces upstream's service CIDRs controller; addresses themselves are allocated by package apiserver/builtin, which
// takes none from a range that is being deleted.
package servicecidrs

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	finalizer = "networking.k8s.io/service-cidr-finalizer"
	// grace is how long a range outlasts its deletion at least: the addresses of Services that were made just before are written down by then.
	grace = 10 * time.Second
)

type controller struct{ reconcile.Deps }

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*networkingv1.ServiceCIDR]{
		Controller: "service-cidrs-controller",
		Also: []reconcile.Source{
			reconcile.MappedBy(deleted[*networkingv1.ServiceCIDR], api.ServiceCIDRKind),
			reconcile.MappedBy(deleted[*networkingv1.IPAddress], api.ServiceCIDRKind),
		},
		Write:     reconcile.Writes{api.ServiceCIDRKind: {"update", "update/status"}},
		Reconcile: c.reconcile,
	})
}

// deleted returns the ranges that are being deleted, for which another range, or an address less, may be what they wait for.
func deleted[S api.Object](ctx context.Context, d reconcile.Deps, _ S) (keys []api.Key) {
	all, err := client.List[*networkingv1.ServiceCIDR](ctx, d.Client, client.Query{})
	if err != nil {
		return nil
	}
	for _, c := range all {
		if c.DeletionTimestamp != nil {
			keys = append(keys, api.KeyOf(c))
		}
	}
	return keys
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, cidr *networkingv1.ServiceCIDR) (reconcile.Result, error) {
	has := slices.Contains(cidr.Finalizers, finalizer)
	if cidr.DeletionTimestamp == nil {
		if !has {
			return reconcile.Result{}, c.mutate(ctx, cidr, "", func(s *networkingv1.ServiceCIDR) { s.Finalizers = append(s.Finalizers, finalizer) })
		}
		return reconcile.Result{}, c.ready(ctx, cidr, metav1.Condition{Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready"})
	}
	if !has {
		return reconcile.Result{}, nil
	}
	address, err := c.orphan(ctx, cidr)
	if err != nil {
		return reconcile.Result{}, err
	}
	if address != "" {
		log.Debug("a Service's address has no other range", "address", address)
		return reconcile.Result{}, c.ready(ctx, cidr, metav1.Condition{Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"})
	}
	if left := time.Until(cidr.DeletionTimestamp.Add(grace)); left > 0 {
		return reconcile.Result{After: left}, nil
	}
	return reconcile.Result{}, c.mutate(ctx, cidr, "", func(s *networkingv1.ServiceCIDR) {
		s.Finalizers = slices.DeleteFunc(s.Finalizers, func(f string) bool { return f == finalizer })
	})
}

// ready sets the condition, where it says something else. The default range's message is its maker's.
func (c controller) ready(ctx context.Context, cidr *networkingv1.ServiceCIDR, now metav1.Condition) error {
	now.Type = networkingv1.ServiceCIDRConditionReady
	if is := meta.FindStatusCondition(cidr.Status.Conditions, now.Type); is != nil && is.Status == now.Status {
		return nil
	}
	return c.mutate(ctx, cidr, "status", func(s *networkingv1.ServiceCIDR) { meta.SetStatusCondition(&s.Status.Conditions, now) })
}

func (c controller) mutate(ctx context.Context, cidr *networkingv1.ServiceCIDR, sub string, fn func(*networkingv1.ServiceCIDR)) error {
	if _, err := client.Mutate(ctx, c.Client, cidr, sub, fn); err != nil {
		return fmt.Errorf("update ServiceCIDR: %w", err)
	}
	return nil
}

// orphan returns an address of the range that would be in none without it; "" for none.
func (c controller) orphan(ctx context.Context, cidr *networkingv1.ServiceCIDR) (string, error) {
	all, err := client.List[*networkingv1.ServiceCIDR](ctx, c.Client, client.Query{})
	if err != nil {
		return "", fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	addresses, err := client.List[*networkingv1.IPAddress](ctx, c.Client, client.Query{})
	if err != nil {
		return "", fmt.Errorf("list IPAddresses: %w", err)
	}
	var others []netip.Prefix
	for _, other := range all {
		if other.Name != cidr.Name && other.DeletionTimestamp == nil {
			others = append(others, ranges(other)...)
		}
	}
	mine := ranges(cidr)
	for _, a := range addresses {
		addr, err := netip.ParseAddr(a.Name)
		in := func(p netip.Prefix) bool { return p.Contains(addr) }
		if err == nil && slices.ContainsFunc(mine, in) && !slices.ContainsFunc(others, in) {
			return a.Name, nil
		}
	}
	return "", nil
}

func ranges(c *networkingv1.ServiceCIDR) (prefixes []netip.Prefix) {
	for _, text := range c.Spec.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}
