// Package roles compares the roles and bindings that every cluster has with upstream's, as its own tests record them.
package roles

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver/authz"
)

// upstream reads the objects of a list that upstream's tests expect, by namespace and name.
func upstream[T any](t *testing.T, file string, key func(*T) string) map[string]T {
	t.Helper()
	dir, err := exec.Command("go", "list", "-C", "../conformance", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "plugin/pkg/auth/authorizer/rbac/bootstrappolicy/testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []T }
	if err := yaml.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]T{}
	for i := range list.Items {
		all[key(&list.Items[i])] = list.Items[i]
	}
	if len(all) == 0 {
		t.Fatalf("%s has no objects", file)
	}
	return all
}

func ours[T any](list []*T, key func(*T) string) map[string]T {
	all := map[string]T{}
	for _, o := range list {
		all[key(o)] = *o
	}
	return all
}

// compare reports objects that only one side has, and differences. Extra names are ours by intent, each with its reason.
func compare[T any](t *testing.T, want, got map[string]T, extra map[string]string, normal func(*T) any) {
	t.Helper()
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w, wanted := want[name]
		g, has := got[name]
		switch {
		case !has:
			t.Errorf("%s is missing", name)
		case !wanted && extra[name] == "":
			t.Errorf("%s is not upstream's", name)
		case wanted:
			if d := cmp.Diff(normal(&w), normal(&g)); d != "" {
				t.Errorf("%s (- upstream, + ours):\n%s", name, d)
			}
		}
	}
}

// grants spells rules one permission a line, so that their grouping does not matter.
func grants(rules []rbacv1.PolicyRule) []string {
	set := map[string]bool{}
	for _, r := range rules {
		for _, v := range r.Verbs {
			for _, u := range r.NonResourceURLs {
				set[v+" "+u] = true
			}
			for _, g := range r.APIGroups {
				for _, res := range r.Resources {
					line := v + " " + res + "." + g
					if len(r.ResourceNames) == 0 {
						set[line] = true
					}
					for _, n := range r.ResourceNames {
						set[line+" "+n] = true
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

type role struct {
	Labels, Annotations map[string]string
	Aggregate           *rbacv1.AggregationRule
	Grants              []string
}

type binding struct {
	Labels, Annotations map[string]string
	Role                rbacv1.RoleRef
	Subjects            []rbacv1.Subject
}

func name(m metav1.ObjectMeta) string { return m.Namespace + "/" + m.Name }

func clusterRoleName(r *rbacv1.ClusterRole) string           { return name(r.ObjectMeta) }
func roleName(r *rbacv1.Role) string                         { return name(r.ObjectMeta) }
func bindingName(b *rbacv1.RoleBinding) string               { return name(b.ObjectMeta) }
func clusterBindingName(b *rbacv1.ClusterRoleBinding) string { return name(b.ObjectMeta) }

func TestClusterRoles(t *testing.T) {
	want := upstream(t, "cluster-roles.yaml", clusterRoleName)
	maps.Copy(want, upstream(t, "controller-roles.yaml", clusterRoleName))
	extra := map[string]string{"/system:aggregated-metrics-reader": "metrics-server's: metrics.k8s.io is built in",
		"/system:controller:local-volume-controller": "of the built-in local storage",
		"/yare:network-policies":                     "network policies are built in"}
	compare(t, want, ours(authz.ClusterRoles(), clusterRoleName), extra, func(r *rbacv1.ClusterRole) any {
		return role{r.Labels, r.Annotations, r.AggregationRule, grants(r.Rules)}
	})
}

func TestClusterRoleBindings(t *testing.T) {
	want := upstream(t, "cluster-role-bindings.yaml", clusterBindingName)
	maps.Copy(want, upstream(t, "controller-role-bindings.yaml", clusterBindingName))
	extra := map[string]string{"/system:controller:local-volume-controller": "of the built-in local storage",
		"/yare:network-policies": "network policies are built in"}
	compare(t, want, ours(authz.ClusterRoleBindings(), clusterBindingName), extra, func(b *rbacv1.ClusterRoleBinding) any {
		return binding{b.Labels, b.Annotations, b.RoleRef, b.Subjects}
	})
}

func TestRoles(t *testing.T) {
	compare(t, upstream(t, "namespace-roles.yaml", roleName), ours(authz.Roles(), roleName), nil, func(r *rbacv1.Role) any {
		return role{r.Labels, r.Annotations, nil, grants(r.Rules)}
	})
}

func TestRoleBindings(t *testing.T) {
	compare(t, upstream(t, "namespace-role-bindings.yaml", bindingName), ours(authz.RoleBindings(), bindingName), nil, func(b *rbacv1.RoleBinding) any {
		return binding{b.Labels, b.Annotations, b.RoleRef, b.Subjects}
	})
}
