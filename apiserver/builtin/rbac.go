package builtin

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Whether a user may grant what a role or binding grants is asked in admission, where the user is known.

// roleName allows what can stand in a URL: "system:node".
func roleName(name string, prefix bool) []string {
	return path.ValidatePathSegmentName(name, prefix)
}

func roles(Deps) *rest.Resource[*rbacv1.Role] {
	return &rest.Resource[*rbacv1.Role]{
		Name:           roleName,
		CreateOnUpdate: true,
		Validate: func(r *rbacv1.Role) (errs field.ErrorList) {
			for i := range r.Rules {
				errs = append(errs, policyRule(&r.Rules[i], true, field.NewPath("rules").Index(i))...)
			}
			return errs
		},
	}
}

func clusterRoles(Deps) *rest.Resource[*rbacv1.ClusterRole] {
	return &rest.Resource[*rbacv1.ClusterRole]{
		Name:           roleName,
		CreateOnUpdate: true,
		Validate: func(r *rbacv1.ClusterRole) (errs field.ErrorList) {
			for i := range r.Rules {
				errs = append(errs, policyRule(&r.Rules[i], false, field.NewPath("rules").Index(i))...)
			}
			if a := r.AggregationRule; a != nil {
				at := field.NewPath("aggregationRule", "clusterRoleSelectors")
				if len(a.ClusterRoleSelectors) == 0 {
					errs = append(errs, field.Required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
				}
				for i := range a.ClusterRoleSelectors {
					errs = append(errs, podspec.Selector(&a.ClusterRoleSelectors[i], at.Index(i))...)
					if _, err := metav1.LabelSelectorAsSelector(&a.ClusterRoleSelectors[i]); err != nil {
						errs = append(errs, field.Invalid(at.Index(i), a.ClusterRoleSelectors[i], "invalid label selector."))
					}
				}
			}
			return errs
		},
	}
}

func policyRule(r *rbacv1.PolicyRule, namespaced bool, at *field.Path) (errs field.ErrorList) {
	if len(r.Verbs) == 0 {
		errs = append(errs, field.Required(at.Child("verbs"), ""))
	}
	if len(r.NonResourceURLs) > 0 {
		if namespaced {
			errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
		}
		if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
			errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		return errs
	}
	if len(r.APIGroups) == 0 {
		errs = append(errs, field.Required(at.Child("apiGroups"), "resource rules must supply at least one api group"))
	}
	if len(r.Resources) == 0 {
		errs = append(errs, field.Required(at.Child("resources"), "resource rules must supply at least one resource"))
	}
	return errs
}

func roleBindings(Deps) *rest.Resource[*rbacv1.RoleBinding] {
	type b = *rbacv1.RoleBinding
	return &rest.Resource[b]{
		Name:           roleName,
		CreateOnUpdate: true,
		Default:        func(o b) { defaultBinding(&o.RoleRef, o.Subjects) },
		Validate: func(o b) field.ErrorList {
			return append(roleRef(&o.RoleRef, "Role", "ClusterRole"), subjects(o.Subjects, true)...)
		},
		ValidateUpdate: func(now, old b) field.ErrorList { return sameRole(now.RoleRef, old.RoleRef) },
		Columns: bindingColumns(func(o b) (*rbacv1.RoleRef, []rbacv1.Subject) { return &o.RoleRef, o.Subjects },
			"roleBinding", rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"]),
	}
}

func clusterRoleBindings(Deps) *rest.Resource[*rbacv1.ClusterRoleBinding] {
	type b = *rbacv1.ClusterRoleBinding
	return &rest.Resource[b]{
		Name:           roleName,
		CreateOnUpdate: true,
		Default:        func(o b) { defaultBinding(&o.RoleRef, o.Subjects) },
		Validate: func(o b) field.ErrorList {
			return append(roleRef(&o.RoleRef, "ClusterRole"), subjects(o.Subjects, false)...)
		},
		ValidateUpdate: func(now, old b) field.ErrorList { return sameRole(now.RoleRef, old.RoleRef) },
		Columns: bindingColumns(func(o b) (*rbacv1.RoleRef, []rbacv1.Subject) { return &o.RoleRef, o.Subjects },
			"clusterRoleBinding", rbacv1.ClusterRoleBinding{}.SwaggerDoc()["roleRef"]),
	}
}

func defaultBinding(r *rbacv1.RoleRef, ss []rbacv1.Subject) {
	setDefault(&r.APIGroup, rbacv1.GroupName)
	for i := range ss {
		if ss[i].Kind == rbacv1.UserKind || ss[i].Kind == rbacv1.GroupKind {
			setDefault(&ss[i].APIGroup, rbacv1.GroupName)
		}
	}
}

func sameRole(now, old rbacv1.RoleRef) field.ErrorList {
	if now != old {
		return field.ErrorList{field.Invalid(field.NewPath("roleRef"), now, "field is immutable")}
	}
	return nil
}

func roleRef(r *rbacv1.RoleRef, kinds ...string) (errs field.ErrorList) {
	at := field.NewPath("roleRef")
	if r.APIGroup != rbacv1.GroupName {
		errs = append(errs, field.NotSupported(at.Child("apiGroup"), r.APIGroup, []string{rbacv1.GroupName}))
	}
	errs = append(errs, known(at.Child("kind"), r.Kind, kinds...)...)
	if r.Name == "" {
		return append(errs, field.Required(at.Child("name"), ""))
	}
	return append(errs, texts(at.Child("name"), r.Name, roleName(r.Name, false))...)
}

func subjects(ss []rbacv1.Subject, namespaced bool) (errs field.ErrorList) {
	for i, s := range ss {
		at := field.NewPath("subjects").Index(i)
		if s.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		}
		group := rbacv1.GroupName
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			group = ""
			if s.Name != "" {
				errs = append(errs, texts(at.Child("name"), s.Name, isName(s.Name))...)
			}
			if !namespaced && s.Namespace == "" {
				errs = append(errs, field.Required(at.Child("namespace"), ""))
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
		default:
			errs = append(errs, field.NotSupported(at.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
			continue
		}
		if s.APIGroup != group {
			errs = append(errs, field.NotSupported(at.Child("apiGroup"), s.APIGroup, []string{group}))
		}
	}
	return errs
}

func bindingColumns[T api.Object](parts func(T) (*rbacv1.RoleRef, []rbacv1.Subject), kind, doc string) []rest.Column[T] {
	named := func(kind string) func(o T) any {
		return func(o T) any {
			var names []string
			_, ss := parts(o)
			for _, s := range ss {
				if s.Kind != kind {
					continue
				}
				name := s.Name
				if kind == rbacv1.ServiceAccountKind {
					name = s.Namespace + "/" + s.Name
				}
				names = append(names, name)
			}
			return strings.Join(names, ", ")
		}
	}
	return []rest.Column[T]{
		{Name: "Role", Description: strings.TrimSuffix(doc, " This field is immutable."), Cell: func(o T) any {
			r, _ := parts(o)
			return r.Kind + "/" + r.Name
		}},
		{Name: "Age"},
		{Name: "Users", Wide: true, Description: "Users in the " + kind, Cell: named(rbacv1.UserKind)},
		{Name: "Groups", Wide: true, Description: "Groups in the " + kind, Cell: named(rbacv1.GroupKind)},
		{Name: "ServiceAccounts", Wide: true, Description: "ServiceAccounts in the " + kind, Cell: named(rbacv1.ServiceAccountKind)},
	}
}
