package main

import (
	"crypto/x509"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/controllers"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/controllers/servicelb"
	"github.com/yare-dev/yare/reconcile"
)

// Every controller may write what it declares with upstream's role of its service account.
func TestAccountsMayWhatControllersDo(t *testing.T) {
	roles := map[string][]rbacv1.PolicyRule{}
	for _, r := range authz.ClusterRoles() {
		roles[r.Name] = r.Rules
	}
	list := controllers.List(controllers.Deps{LocalVolumes: true, LoadBalancer: &servicelb.Config{}, Deps: reconcile.Deps{Informers: reconcile.NewInformers(nil)},
		SecretToken: func(*corev1.Secret, *corev1.ServiceAccount) (string, error) { return "", nil }, SignCertificate: func(*x509.Certificate) ([]byte, error) { return nil, nil },
		Nodes: nodeipam.Config{Clusters: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}})
	if len(list) < 16 {
		t.Errorf("%d controllers", len(list))
	}
	for _, c := range list {
		role := "system:kube-controller-manager"
		if account := accountOf(c.Controller); account != "" {
			role = "system:controller:" + account
		}
		rules, ok := roles[role]
		if !ok {
			t.Errorf("%s: no role %s", c.Controller, role)
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
