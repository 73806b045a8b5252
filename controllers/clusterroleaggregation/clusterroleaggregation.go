// Package clusterroleaggregation fills ClusterRoles that have an aggregationRule with the rules of those that it
// selects. It replaces upstream's clusterrole-aggregation controller.
package clusterroleaggregation

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the clusterrole-aggregation controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*rbacv1.ClusterRole]{
		Controller: "clusterrole-aggregation-controller",
		Also:       []reconcile.Source{reconcile.MappedBy(aggregates)},
		Write:      reconcile.Writes{api.ClusterRoleKind: {"update"}},
		Reconcile:  c.reconcile,
	})
}

// aggregates returns the roles that select r.
func aggregates(ctx context.Context, d reconcile.Deps, r *rbacv1.ClusterRole) []api.Key {
	if len(r.Labels) == 0 {
		return nil
	}
	all, err := client.List[*rbacv1.ClusterRole](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list cluster roles", "err", err)
		return nil
	}
	var keys []api.Key
	for _, a := range all {
		if a.AggregationRule != nil && selects(a, r) {
			keys = append(keys, api.KeyOf(a))
		}
	}
	return keys
}

func selects(a, r *rbacv1.ClusterRole) bool {
	for i := range a.AggregationRule.ClusterRoleSelectors {
		if reconcile.Selector(&a.AggregationRule.ClusterRoleSelectors[i]).Matches(labels.Set(r.Labels)) {
			return a.Name != r.Name
		}
	}
	return false
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, r *rbacv1.ClusterRole) (reconcile.Result, error) {
	if r.AggregationRule == nil {
		return reconcile.Result{}, nil
	}
	all, err := client.List[*rbacv1.ClusterRole](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list cluster roles: %w", err)
	}
	_, err = client.Mutate(ctx, c.Client, r, "", func(r *rbacv1.ClusterRole) { r.Rules = aggregate(r, all) })
	return reconcile.Result{}, err
}

// aggregate returns the rules of all roles that r selects, selector by selector and by name, each once.
func aggregate(r *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for i := range r.AggregationRule.ClusterRoleSelectors {
		s := reconcile.Selector(&r.AggregationRule.ClusterRoleSelectors[i])
		for _, o := range all { // lists come ordered by name
			if o.Name == r.Name || !s.Matches(labels.Set(o.Labels)) {
				continue
			}
			for _, rule := range o.Rules {
				if !slices.ContainsFunc(rules, func(x rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(x, rule) }) {
					rules = append(rules, *rule.DeepCopy())
				}
			}
		}
	}
	return rules
}
