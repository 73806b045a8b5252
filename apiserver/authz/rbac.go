package authz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/store"
)

// RBAC decides by the roles that are bound to a user and the user's groups. It holds bindings by subject, as new as the
// store, so that a decision looks at the user's own bindings only and a new binding counts at once. It is safe for
// concurrent use.
type RBAC struct {
	mu     sync.RWMutex
	follow *follow.Follower
	index  index
}

// index is the state that follows the store.
type index struct {
	// bindings holds, by subject, the roles bound to it. The set is by the binding's kind and key.
	bindings     map[subject]map[binding]grant
	roles        map[api.Key][]rbacv1.PolicyRule
	clusterRoles map[string][]rbacv1.PolicyRule
}

// binding names a RoleBinding, or a ClusterRoleBinding by a key without namespace.
type binding struct{ api.Key }

// grant is a role that is bound.
type grant struct {
	role      rbacv1.RoleRef
	namespace string // where it counts; empty: everywhere
}

// NewRBAC returns an authorizer over the roles and bindings in s.
func NewRBAC(s *store.Store) *RBAC {
	r := &RBAC{}
	r.follow = follow.New(s, &r.index, api.RoleKind, api.RoleBindingKind, api.ClusterRoleKind, api.ClusterRoleBindingKind)
	return r
}

// Reset implements follow.State.
func (x *index) Reset() {
	*x = index{bindings: map[subject]map[binding]grant{}, roles: map[api.Key][]rbacv1.PolicyRule{}, clusterRoles: map[string][]rbacv1.PolicyRule{}}
}

// Change implements follow.State.
func (x *index) Change(k *api.Kind, now, old api.Object) {
	switch k {
	case api.RoleKind:
		if r, ok := now.(*rbacv1.Role); ok {
			x.roles[api.KeyOf(r)] = r.Rules
		} else {
			delete(x.roles, api.KeyOf(old))
		}
	case api.ClusterRoleKind:
		if r, ok := now.(*rbacv1.ClusterRole); ok {
			x.clusterRoles[r.Name] = r.Rules
		} else {
			delete(x.clusterRoles, old.GetName())
		}
	case api.RoleBindingKind:
		if b, ok := old.(*rbacv1.RoleBinding); ok {
			x.unbind(binding{api.KeyOf(b)}, b.Subjects)
		}
		if b, ok := now.(*rbacv1.RoleBinding); ok {
			x.bind(binding{api.KeyOf(b)}, b.Subjects, grant{b.RoleRef, b.Namespace})
		}
	case api.ClusterRoleBindingKind:
		if b, ok := old.(*rbacv1.ClusterRoleBinding); ok {
			x.unbind(binding{api.KeyOf(b)}, b.Subjects)
		}
		if b, ok := now.(*rbacv1.ClusterRoleBinding); ok {
			x.bind(binding{api.KeyOf(b)}, b.Subjects, grant{b.RoleRef, ""})
		}
	}
}

func (x *index) bind(b binding, subjects []rbacv1.Subject, g grant) {
	for i := range subjects {
		k := keyOf(&subjects[i], b.Namespace)
		if x.bindings[k] == nil {
			x.bindings[k] = map[binding]grant{}
		}
		x.bindings[k][b] = g
	}
}

func (x *index) unbind(b binding, subjects []rbacv1.Subject) {
	for i := range subjects {
		k := keyOf(&subjects[i], b.Namespace)
		if delete(x.bindings[k], b); len(x.bindings[k]) == 0 {
			delete(x.bindings, k)
		}
	}
}

// rules returns the rules of a bound role, nil when there is no such role.
func (x *index) rules(ref *rbacv1.RoleRef, namespace string) []rbacv1.PolicyRule {
	if ref.Kind == "Role" {
		return x.roles[api.Key{Namespace: namespace, Name: ref.Name}]
	}
	return x.clusterRoles[ref.Name]
}

// reading returns with a read lock held over an index that has everything that was in the store when it was called.
func (r *RBAC) reading() error {
	r.mu.RLock()
	if r.follow.Current() {
		return nil
	}
	r.mu.RUnlock()
	r.mu.Lock()
	err := r.follow.CatchUp()
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read roles: %w", err)
	}
	r.mu.RLock()
	return nil
}

// Authorize implements Authorizer. Members of system:masters may do everything.
func (r *RBAC) Authorize(_ context.Context, a *Attributes) (bool, string, error) {
	if a.User.In(authn.Masters) {
		return true, "", nil
	}
	found := ""
	err := r.visit(a.User, a.Namespace, func(b binding, g *grant, rules []rbacv1.PolicyRule) bool {
		for i := range rules {
			if allows(&rules[i], a) {
				found = reason(b, g, a.User)
				return false
			}
		}
		return true
	})
	return found != "", found, err
}

func reason(b binding, g *grant, u *authn.User) string {
	kind := "ClusterRoleBinding"
	if b.Namespace != "" {
		kind = "RoleBinding"
	}
	return fmt.Sprintf("RBAC: allowed by %s %q of %s %q to User %q", kind, b.Key, g.role.Kind, g.role.Name, u.Name)
}

// visit calls f with each role bound to u that counts in namespace (empty: cluster-wide ones only) until it returns false.
func (r *RBAC) visit(u *authn.User, namespace string, f func(b binding, g *grant, rules []rbacv1.PolicyRule) bool) error {
	if err := r.reading(); err != nil {
		return err
	}
	defer r.mu.RUnlock()
	for _, s := range subjectsOf(u) {
		for b, g := range r.index.bindings[s] {
			if g.namespace != "" && g.namespace != namespace {
				continue
			}
			if !f(b, &g, r.index.rules(&g.role, g.namespace)) {
				return nil
			}
		}
	}
	return nil
}

// RulesFor returns every rule that u has in namespace; empty: those that count everywhere.
func (r *RBAC) RulesFor(u *authn.User, namespace string) ([]rbacv1.PolicyRule, error) {
	if u.In(authn.Masters) {
		return everything(), nil
	}
	var out []rbacv1.PolicyRule
	err := r.visit(u, namespace, func(_ binding, _ *grant, rules []rbacv1.PolicyRule) bool {
		out = append(out, rules...)
		return true
	})
	return out, err
}

// everything is what system:masters may do.
func everything() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
		{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
	}
}

// RoleRules returns the rules of the role that ref names, in namespace for a Role, and whether there is one.
func (r *RBAC) RoleRules(ref *rbacv1.RoleRef, namespace string) (rules []rbacv1.PolicyRule, ok bool, err error) {
	if err := r.reading(); err != nil {
		return nil, false, err
	}
	defer r.mu.RUnlock()
	if ref.Kind == "Role" {
		rules, ok = r.index.roles[api.Key{Namespace: namespace, Name: ref.Name}]
	} else {
		rules, ok = r.index.clusterRoles[ref.Name]
	}
	return rules, ok, nil
}

// Union asks each of as in turn until one allows, or denies by ErrDenied. Reasons of refusals and errors are joined.
func Union(as ...Authorizer) Authorizer { return union(as) }

type union []Authorizer

func (u union) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	var reasons []string
	var firstErr error
	for _, x := range u {
		ok, reason, err := x.Authorize(ctx, a)
		if ok {
			return true, reason, nil
		}
		if errors.Is(err, ErrDenied) {
			return false, reason, err
		}
		if err != nil && firstErr == nil {
			firstErr = err
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return false, strings.Join(reasons, ", "), firstErr
}
