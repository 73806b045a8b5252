package builtin

import (
	"fmt"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/apiserver/rest"
)

const wildcard = "*"

func flowSchemas() *rest.Resource[*flowcontrolv1.FlowSchema] {
	type schema = *flowcontrolv1.FlowSchema
	doc := flowcontrolv1.FlowSchemaSpec{}.SwaggerDoc()
	return &rest.Resource[schema]{
		Default:        func(s schema) { setDefault(&s.Spec.MatchingPrecedence, 1000) },
		Validate:       validateFlowSchema,
		StrictStatus:   true,
		ValidateStatus: func(now, _ schema) field.ErrorList { return flowConditions(flowConditionTypes(now)) },
		Columns: []rest.Column[schema]{
			{Name: "PriorityLevel", Description: flowcontrolv1.PriorityLevelConfigurationReference{}.SwaggerDoc()["name"], Cell: func(s schema) any { return s.Spec.PriorityLevelConfiguration.Name }},
			{Name: "MatchingPrecedence", Description: doc["matchingPrecedence"], Cell: func(s schema) any { return int64(s.Spec.MatchingPrecedence) }},
			{Name: "DistinguisherMethod", Description: doc["distinguisherMethod"], Cell: func(s schema) any {
				if s.Spec.DistinguisherMethod == nil {
					return none
				}
				return string(s.Spec.DistinguisherMethod.Type)
			}},
			{Name: "Age"},
			{Name: "MissingPL", Description: "references a broken or non-existent PriorityLevelConfiguration", Cell: func(s schema) any {
				for _, c := range s.Status.Conditions {
					if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
						return string(c.Status)
					}
				}
				return "?"
			}},
		},
	}
}

func flowConditionTypes(s *flowcontrolv1.FlowSchema) (types []string) {
	for _, c := range s.Status.Conditions {
		types = append(types, string(c.Type))
	}
	return types
}

// flowConditions checks that each condition has a type of its own.
func flowConditions(types []string) (errs field.ErrorList) {
	at := field.NewPath("status", "conditions")
	for i, t := range types {
		at := at.Index(i).Child("type")
		if slices.Contains(types[:i], t) {
			errs = append(errs, field.Duplicate(at, t))
		}
		if t == "" {
			errs = append(errs, field.Required(at, ""))
		}
	}
	return errs
}

func validateFlowSchema(s *flowcontrolv1.FlowSchema) (errs field.ErrorList) {
	at := field.NewPath("spec")
	precedence := at.Child("matchingPrecedence")
	switch n := s.Spec.MatchingPrecedence; {
	case n <= 0:
		errs = append(errs, field.Invalid(precedence, n, "must be a positive value"))
	case n > flowcontrolv1.FlowSchemaMaxMatchingPrecedence:
		errs = append(errs, field.Invalid(precedence, n, fmt.Sprintf("must not be greater than %v", flowcontrolv1.FlowSchemaMaxMatchingPrecedence)))
	case n == 1 && s.Name != flowcontrolv1.FlowSchemaNameExempt:
		errs = append(errs, field.Invalid(precedence, n, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	methods := []flowcontrolv1.FlowDistinguisherMethodType{flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType}
	if m := s.Spec.DistinguisherMethod; m != nil && !slices.Contains(methods, m.Type) {
		errs = append(errs, field.NotSupported(at.Child("distinguisherMethod", "type"), m, methods))
	}
	level := at.Child("priorityLevelConfiguration", "name")
	if name := s.Spec.PriorityLevelConfiguration.Name; name == "" {
		errs = append(errs, field.Required(level, "must reference a priority level"))
	} else {
		errs = append(errs, texts(level, name, isName(name))...)
	}
	for i := range s.Spec.Rules {
		errs = append(errs, flowRule(&s.Spec.Rules[i], at.Child("rules").Index(i))...)
	}
	for _, must := range bootstrap.MandatoryFlowSchemas {
		if must.Name == s.Name && !equality.Semantic.DeepEqual(s.Spec, must.Spec) {
			errs = append(errs, field.Invalid(at, s.Spec, fmt.Sprintf("spec of '%s' must equal the fixed value", s.Name)))
		}
	}
	return errs
}

func flowRule(r *flowcontrolv1.PolicyRulesWithSubjects, at *field.Path) (errs field.ErrorList) {
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(at.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range r.Subjects {
		errs = append(errs, flowSubject(&r.Subjects[i], at.Child("subjects").Index(i))...)
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(at, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range r.ResourceRules {
		errs = append(errs, flowResources(&r.ResourceRules[i], at.Child("resourceRules").Index(i))...)
	}
	for i, n := range r.NonResourceRules {
		at := at.Child("nonResourceRules").Index(i)
		errs = append(errs, flowVerbs(n.Verbs, at.Child("verbs"))...)
		urls := at.Child("nonResourceURLs")
		errs = append(errs, listed(n.NonResourceURLs, urls, "nonResourceURLs must contain at least one value", "non-resource URLs")...)
		if slices.Contains(n.NonResourceURLs, wildcard) {
			continue
		}
		for j, u := range n.NonResourceURLs {
			if why := badFlowPath(u); why != "" {
				errs = append(errs, field.Invalid(urls.Index(j), u, why))
			}
		}
	}
	return errs
}

func flowSubject(s *flowcontrolv1.Subject, at *field.Path) (errs field.ErrorList) {
	user, group, account := at.Child("user"), at.Child("group"), at.Child("serviceAccount")
	kinds := []flowcontrolv1.SubjectKind{flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser}
	if !slices.Contains(kinds, s.Kind) {
		return field.ErrorList{field.NotSupported(at.Child("kind"), s.Kind, kinds)}
	}
	named := func(present bool, name string, at *field.Path, what string) {
		if !present {
			errs = append(errs, field.Required(at, fmt.Sprintf("%s is required when subject kind is '%s'", what, s.Kind)))
		} else if name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		}
	}
	switch s.Kind {
	case flowcontrolv1.SubjectKindServiceAccount:
		errs = append(errs, flowAccount(s.ServiceAccount, account)...)
	case flowcontrolv1.SubjectKindUser:
		named(s.User != nil, deref(s.User).Name, user, "user")
	case flowcontrolv1.SubjectKindGroup:
		named(s.Group != nil, deref(s.Group).Name, group, "group")
	}
	forbid := func(present bool, at *field.Path, what string, kind flowcontrolv1.SubjectKind) {
		if present && s.Kind != kind {
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("%s is forbidden when subject kind is not '%s'", what, kind)))
		}
	}
	forbid(s.ServiceAccount != nil, account, "serviceAccount", flowcontrolv1.SubjectKindServiceAccount)
	forbid(s.User != nil, user, "user", flowcontrolv1.SubjectKindUser)
	forbid(s.Group != nil, group, "group", flowcontrolv1.SubjectKindGroup)
	return errs
}

func flowAccount(a *flowcontrolv1.ServiceAccountSubject, at *field.Path) (errs field.ErrorList) {
	if a == nil {
		return field.ErrorList{field.Required(at, "serviceAccount is required when subject kind is 'ServiceAccount'")}
	}
	switch a.Name {
	case wildcard:
	case "":
		errs = append(errs, field.Required(at.Child("name"), ""))
	default:
		errs = append(errs, texts(at.Child("name"), a.Name, apivalidation.ValidateServiceAccountName(a.Name, false))...)
	}
	if a.Namespace == "" {
		return append(errs, field.Required(at.Child("namespace"), "must specify namespace for service account"))
	}
	return append(errs, texts(at.Child("namespace"), a.Namespace, apivalidation.ValidateNamespaceName(a.Namespace, false))...)
}

func flowVerbs(verbs []string, at *field.Path) field.ErrorList {
	known := []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}
	errs := listed(verbs, at, "verbs must contain at least one value", "verbs")
	if !slices.Contains(verbs, wildcard) && slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(known, v) }) {
		errs = append(errs, field.NotSupported(at, verbs, known))
	}
	return errs
}

// listed checks a list that has to have something, and nothing beside the wildcard.
func listed(values []string, at *field.Path, required, what string) field.ErrorList {
	switch {
	case len(values) == 0:
		return field.ErrorList{field.Required(at, required)}
	case len(values) > 1 && slices.Contains(values, wildcard):
		return field.ErrorList{field.Invalid(at, values, "if '*' is present, must not specify other "+what)}
	}
	return nil
}

func flowResources(r *flowcontrolv1.ResourcePolicyRule, at *field.Path) field.ErrorList {
	errs := flowVerbs(r.Verbs, at.Child("verbs"))
	errs = append(errs, listed(r.APIGroups, at.Child("apiGroups"), "resource rules must supply at least one api group", "api groups")...)
	errs = append(errs, listed(r.Resources, at.Child("resources"), "resource rules must supply at least one resource", "resources")...)
	namespaces := at.Child("namespaces")
	if len(r.Namespaces) > 0 || !r.ClusterScope {
		errs = append(errs, listed(r.Namespaces, namespaces, "resource rules that are not cluster scoped must supply at least one namespace", "namespaces")...)
	}
	if slices.Contains(r.Namespaces, wildcard) {
		return errs
	}
	for i, ns := range r.Namespaces {
		for _, m := range apivalidation.ValidateNamespaceName(ns, false) {
			errs = append(errs, field.Invalid(namespaces.Index(i), ns, "each member of this list must be '*' or a DNS-1123 label; "+m))
		}
	}
	return errs
}

// badFlowPath says what is wrong with a path outside the API.
func badFlowPath(p string) string {
	switch n := strings.Count(p, wildcard); {
	case p == "":
		return "must not be empty"
	case !strings.HasPrefix(p, "/"):
		return "must start with slash"
	case strings.Contains(p, " "):
		return "must not contain white-space"
	case strings.Contains(p, "//"):
		return "must not contain double slash"
	case n > 1 || n == 1 && !strings.HasSuffix(p, "/*"):
		return "wildcard can only do suffix matching"
	}
	return ""
}
