package authz

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

// allows says whether rule r permits a.
func allows(r *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(r.Verbs, a.Verb) {
		return false
	}
	if a.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, func(p string) bool { return matchPath(p, a.Path) })
	}
	return has(r.APIGroups, a.Group) && matchResource(r.Resources, a.Resource, a.Subresource) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name))
}

func has(list []string, v string) bool {
	return slices.Contains(list, rbacv1.VerbAll) || slices.Contains(list, v)
}

// matchResource knows "*", "pods", "pods/log" and "*/scale".
func matchResource(list []string, resource, sub string) bool {
	for _, r := range list {
		if r == rbacv1.ResourceAll || sub == "" && r == resource {
			return true
		}
		if sub == "" {
			continue
		}
		if name, s, ok := strings.Cut(r, "/"); ok && s == sub && (name == "*" || name == resource) {
			return true
		}
	}
	return false
}

// matchPath knows "*", "/healthz" and "/apis/*".
func matchPath(pattern, path string) bool {
	if pattern == rbacv1.NonResourceAll || pattern == path {
		return true
	}
	prefix, ok := strings.CutSuffix(pattern, "*")
	return ok && strings.HasPrefix(path, prefix)
}

// subject is an index key: who a binding speaks of.
type subject struct {
	kind, namespace, name string
}

// subjectsOf are the keys under which a user's bindings are found.
func subjectsOf(u *authn.User) []subject {
	out := make([]subject, 0, len(u.Groups)+2)
	out = append(out, subject{kind: rbacv1.UserKind, name: u.Name})
	for _, g := range u.Groups {
		out = append(out, subject{kind: rbacv1.GroupKind, name: g})
	}
	if key, ok := authn.ParseServiceAccount(u.Name); ok {
		out = append(out, subject{kind: rbacv1.ServiceAccountKind, namespace: key.Namespace, name: key.Name})
	}
	return out
}

// keyOf is the key of a binding's subject. A service account without a namespace is in the binding's own.
func keyOf(s *rbacv1.Subject, namespace string) subject {
	if s.Kind != rbacv1.ServiceAccountKind {
		return subject{kind: s.Kind, name: s.Name}
	}
	if s.Namespace != "" {
		namespace = s.Namespace
	}
	return subject{kind: s.Kind, namespace: namespace, name: s.Name}
}
