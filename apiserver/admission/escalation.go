package admission

import (
	"context"
	"fmt"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// escalation lets nobody grant, by a role or a binding, what they may not do themselves, unless they have the verb
// escalate on the role, or bind on the role that is bound.
func escalation(roles *authz.RBAC) rest.Admission {
	e := &granting{roles}
	return onValidate("RBACEscalation", func(ctx context.Context, a *rest.Admitting) error {
		if a.Operation != rest.OpCreate && a.Operation != rest.OpUpdate || a.User.In(authn.Masters) {
			return nil
		}
		switch now := a.Object.(type) {
		case *rbacv1.Role:
			if old, ok := a.Old.(*rbacv1.Role); ok && equality.Semantic.DeepEqual(old.Rules, now.Rules) {
				return nil
			}
			return e.role(ctx, a, now.Rules, false)
		case *rbacv1.ClusterRole:
			old, ok := a.Old.(*rbacv1.ClusterRole)
			if ok && equality.Semantic.DeepEqual(old.Rules, now.Rules) && equality.Semantic.DeepEqual(old.AggregationRule, now.AggregationRule) {
				return nil
			}
			return e.role(ctx, a, now.Rules, now.AggregationRule != nil)
		case *rbacv1.RoleBinding:
			if old, ok := a.Old.(*rbacv1.RoleBinding); ok && equality.Semantic.DeepEqual(old.Subjects, now.Subjects) && old.RoleRef == now.RoleRef {
				return nil
			}
			return e.binding(ctx, a, &now.RoleRef)
		case *rbacv1.ClusterRoleBinding:
			if old, ok := a.Old.(*rbacv1.ClusterRoleBinding); ok && equality.Semantic.DeepEqual(old.Subjects, now.Subjects) && old.RoleRef == now.RoleRef {
				return nil
			}
			return e.binding(ctx, a, &now.RoleRef)
		}
		return nil
	})
}

type granting struct{ roles *authz.RBAC }

// role checks the rules of a role. One that is put together of others may hold anything in the end.
func (g *granting) role(ctx context.Context, a *rest.Admitting, rules []rbacv1.PolicyRule, aggregates bool) error {
	ok, _, err := g.roles.Authorize(ctx, &authz.Attributes{User: a.User, Verb: "escalate", Group: rbacv1.GroupName, Version: "v1",
		Resource: a.Kind.Plural, Namespace: a.Key.Namespace, Name: a.Object.GetName()})
	if err != nil || ok {
		return err
	}
	if aggregates {
		all := []rbacv1.PolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}, {Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}}
		if g.covers(a, all) != nil {
			return forbidden(a, "must have cluster-admin privileges to use an aggregationRule")
		}
	}
	return g.covers(a, rules)
}

func (g *granting) binding(ctx context.Context, a *rest.Admitting, ref *rbacv1.RoleRef) error {
	kind := api.ClusterRoleKind
	if ref.Kind == "Role" {
		kind = api.RoleKind
	}
	ok, _, err := g.roles.Authorize(ctx, &authz.Attributes{User: a.User, Verb: "bind", Group: rbacv1.GroupName, Version: "v1",
		Resource: kind.Plural, Namespace: a.Key.Namespace, Name: ref.Name})
	if err != nil || ok {
		return err
	}
	rules, found, err := g.roles.RoleRules(ref, a.Key.Namespace)
	if err != nil {
		return err
	}
	if !found {
		return forbidden(a, "%s %q not found", kind, ref.Name)
	}
	return g.covers(a, rules)
}

// covers says whether the user has all of rules where they would count.
func (g *granting) covers(a *rest.Admitting, rules []rbacv1.PolicyRule) error {
	own, err := g.roles.RulesFor(a.User, a.Key.Namespace)
	if err != nil {
		return err
	}
	ok, missing := validation.Covers(own, rules)
	if ok {
		return nil
	}
	lines := make([]string, len(missing))
	for i := range missing {
		lines[i] = ruleText(&missing[i])
	}
	return forbidden(a, "user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s", a.User.Name, a.User.Groups, strings.Join(lines, "\n"))
}

// ruleText is a rule in one line.
func ruleText(r *rbacv1.PolicyRule) string {
	var parts []string
	add := func(name string, list []string) {
		if len(list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", name, list))
		}
	}
	add("APIGroups", r.APIGroups)
	add("Resources", r.Resources)
	add("ResourceNames", r.ResourceNames)
	add("NonResourceURLs", r.NonResourceURLs)
	add("Verbs", r.Verbs)
	return "{" + strings.Join(parts, ", ") + "}"
}
