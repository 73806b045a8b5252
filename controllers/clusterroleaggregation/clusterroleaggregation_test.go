package clusterroleaggregation

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func role(name, to string, resources ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if to != "" {
		r.Labels = map[string]string{"to-" + to: "true"}
	}
	for _, x := range resources {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Resources: []string{x}})
	}
	return r
}

func aggregating(name, to string) *rbacv1.ClusterRole {
	r := role(name, to)
	r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{"to-" + name: "true"}}}}
	return r
}

// Rules pass from view through edit to admin, each once, and go again.
func TestAggregation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		expect := func(name string, want ...string) {
			t.Helper()
			synctest.Wait()
			got := []string{}
			for _, r := range rt.Get[*rbacv1.ClusterRole](t, c, "", name).Rules {
				got = append(got, r.Resources...)
			}
			if d := cmp.Diff(append([]string{}, want...), got); d != "" {
				t.Errorf("%s: %s", name, d)
			}
		}
		rt.Create(t, c, aggregating("admin", ""))
		rt.Create(t, c, aggregating("edit", "admin"))
		rt.Create(t, c, role("b", "edit", "pods", "services"))
		a := rt.Create(t, c, role("a", "edit", "pods", "nodes"))
		expect("edit", "pods", "nodes", "services")
		expect("admin", "pods", "nodes", "services")
		rt.Mutate(t, c, a, "", func(r *rbacv1.ClusterRole) { r.Labels = nil })
		expect("admin", "pods", "services")
		rt.Delete(t, c, role("b", ""), client.DeleteOptions{})
		expect("admin")
	})
}
