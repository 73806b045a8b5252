package fairness

import (
	"cmp"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

// rules are the FlowSchemas in the order of asking, and the levels that they send to. They never change.
type rules struct {
	flows  []*flow
	levels map[string]*level
	rest   *flow // of requests that no FlowSchema is about
}

// flow is a FlowSchema with the level that serves it.
type flow struct {
	schema *flowcontrolv1.FlowSchema
	level  *level
	uid    string // of the level's configuration
	counts *counts
}

// classify returns the first flow that a request is of.
func (r *rules) classify(a *authz.Attributes) *flow {
	for _, f := range r.flows {
		if matches(f.schema, a) {
			return f
		}
	}
	return r.rest
}

// ordered sorts schemas by precedence, then name, as they are asked.
func ordered(schemas []*flowcontrolv1.FlowSchema) []*flowcontrolv1.FlowSchema {
	slices.SortFunc(schemas, func(a, b *flowcontrolv1.FlowSchema) int {
		return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), strings.Compare(a.Name, b.Name))
	})
	return schemas
}

func matches(s *flowcontrolv1.FlowSchema, a *authz.Attributes) bool {
	for i := range s.Spec.Rules {
		r := &s.Spec.Rules[i]
		if slices.ContainsFunc(r.Subjects, func(s flowcontrolv1.Subject) bool { return isSubject(&s, a.User) }) && about(r, a) {
			return true
		}
	}
	return false
}

func isSubject(s *flowcontrolv1.Subject, u *authn.User) bool {
	switch {
	case s.Kind == flowcontrolv1.SubjectKindUser && s.User != nil:
		return s.User.Name == flowcontrolv1.NameAll || s.User.Name == u.Name
	case s.Kind == flowcontrolv1.SubjectKindGroup && s.Group != nil:
		return s.Group.Name == flowcontrolv1.NameAll || u.In(s.Group.Name)
	case s.Kind == flowcontrolv1.SubjectKindServiceAccount && s.ServiceAccount != nil:
		key, ok := authn.ParseServiceAccount(u.Name)
		return ok && key.Namespace == s.ServiceAccount.Namespace && (s.ServiceAccount.Name == flowcontrolv1.NameAll || s.ServiceAccount.Name == key.Name)
	}
	return false
}

func about(r *flowcontrolv1.PolicyRulesWithSubjects, a *authz.Attributes) bool {
	if a.Path != "" {
		return slices.ContainsFunc(r.NonResourceRules, func(n flowcontrolv1.NonResourcePolicyRule) bool {
			return has(n.Verbs, a.Verb) && slices.ContainsFunc(n.NonResourceURLs, func(u string) bool {
				prefix := strings.TrimSuffix(strings.TrimSuffix(u, "*"), "/") + "/"
				return u == "*" || u == a.Path || strings.HasPrefix(a.Path, prefix)
			})
		})
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	return slices.ContainsFunc(r.ResourceRules, func(n flowcontrolv1.ResourcePolicyRule) bool {
		if !has(n.Verbs, a.Verb) || !has(n.Resources, resource) || !has(n.APIGroups, a.Group) {
			return false
		}
		if a.Namespace == "" {
			return n.ClusterScope
		}
		return has(n.Namespaces, a.Namespace)
	})
}

// has says whether value is in the list, which may be "*" alone.
func has(list []string, value string) bool {
	return len(list) == 1 && list[0] == "*" || slices.Contains(list, value)
}

// distinguisher tells the flows of one schema apart: users or namespaces, or nothing.
func distinguisher(s *flowcontrolv1.FlowSchema, a *authz.Attributes) string {
	if s.Spec.DistinguisherMethod == nil {
		return ""
	}
	switch s.Spec.DistinguisherMethod.Type {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		return a.User.Name
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		return a.Namespace
	}
	return ""
}

// known are the kinds that the rules are made of.
func known() []*api.Kind {
	return []*api.Kind{api.FlowSchemaKind, api.PriorityLevelConfigurationKind}
}
