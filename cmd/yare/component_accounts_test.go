package main

import (
	"net/netip"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/controllers"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/reconcile"
)

// Every controller may write what it declares with upstream's role of its service account.
func TestAccountsMayWhatControllersDo(t *testing.T) {
	roles := map[string][]rbacv1.PolicyRule{}
	for _, r := range authz.ClusterRoles() {
		roles[r.Name] = r.Rules
	}
	list := controllers.List(controllers.Deps{Deps: reconcile.Deps{Informers: reconcile.NewInformers(nil)},
		Nodes: nodeipam.Config{Clusters: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}})
	if len(list) < 16 {
		t.Errorf("%d controllers", len(list))
	}
	for _, c := range list {
		rules, ok := roles["system:controller:"+accountOf(c.Controller)]
		if !ok {
			t.Errorf("%s: no role for service account %s", c.Controller, accountOf(c.Controller))
			continue
		}
		writes := reconcile.Declaration{Controller: c.Controller, Writes: c.Writes}
		var want []rbacv1.PolicyRule
		for _, r := range writes.Role().Rules {
			if len(r.Resources) == 1 && r.Resources[0] == "events" {
				continue // recorded by the process for all
			}
			want = append(want, r)
		}
		if _, missing := validation.Covers(rules, want); len(missing) > 0 {
			t.Errorf("%s may not: %v", c.Controller, missing)
		}
	}
}
