package builtin

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// What webhook configurations and admission policies have alike: which requests they are about, and whom they call.

// staticSuffix ends the names of what is configured by files, which the API does not manage.
const staticSuffix = ".static.k8s.io"

const staticText = `names ending with ".static.k8s.io" are reserved for static manifest-based configurations and cannot be managed via the API`

func notStatic(name string) field.ErrorList {
	if strings.HasSuffix(name, staticSuffix) {
		return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), name, staticText)}
	}
	return nil
}

// warnStatic is for updates of objects that had their names before these were reserved.
func warnStatic(o, old metav1.Object) []string {
	if old != nil && strings.HasSuffix(o.GetName(), staticSuffix) {
		return []string{"metadata.name: " + staticText}
	}
	return nil
}

func defaultRule(r *admissionv1.Rule) { setPtr(&r.Scope, admissionv1.AllScopes) }

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	setPtr(&m.MatchPolicy, admissionv1.Equivalent)
	setPtr(&m.NamespaceSelector, metav1.LabelSelector{})
	setPtr(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			defaultRule(&rules[i].Rule)
		}
	}
}

// oneOfPtr is oneOf for a field that must be set but not by the client, who gets a default.
func oneOfPtr[T ~string](at *field.Path, value *T, allowed ...T) field.ErrorList {
	if value == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	slices.Sort(allowed)
	if !slices.Contains(allowed, *value) {
		return field.ErrorList{field.NotSupported(at, *value, allowed)}
	}
	return nil
}

func failMode(p *admissionv1.FailurePolicyType, at *field.Path) field.ErrorList {
	return oneOfPtr(at.Child("failurePolicy"), p, admissionv1.Fail, admissionv1.Ignore)
}

func matchPolicy(p *admissionv1.MatchPolicyType, at *field.Path) field.ErrorList {
	return oneOfPtr(at.Child("matchPolicy"), p, admissionv1.Equivalent, admissionv1.Exact)
}

func operationsRule(r *admissionv1.RuleWithOperations, at *field.Path) (errs field.ErrorList) {
	known := []admissionv1.OperationType{admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update}
	operations := at.Child("operations")
	if len(r.Operations) == 0 {
		errs = append(errs, field.Required(operations, ""))
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionv1.OperationAll) {
		errs = append(errs, field.Invalid(operations, r.Operations, "if '*' is present, must not specify other operations"))
	}
	for i, o := range r.Operations {
		if !slices.Contains(known, o) {
			errs = append(errs, field.NotSupported(operations.Index(i), o, known))
		}
	}
	all := func(values []string, at *field.Path, what string) {
		if len(values) == 0 {
			errs = append(errs, field.Required(at, ""))
		}
		if len(values) > 1 && slices.Contains(values, wildcard) {
			errs = append(errs, field.Invalid(at, values, "if '*' is present, must not specify other API "+what))
		}
	}
	all(r.APIGroups, at.Child("apiGroups"), "groups")
	all(r.APIVersions, at.Child("apiVersions"), "versions")
	for i, v := range r.APIVersions {
		if v == "" {
			errs = append(errs, field.Required(at.Child("apiVersions").Index(i), ""))
		}
	}
	errs = append(errs, ruleResources(r.Resources, at.Child("resources"))...)
	if r.Scope != nil {
		errs = append(errs, oneOfPtr(at.Child("scope"), r.Scope, admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)...)
	}
	return errs
}

// ruleResources checks names like "pods", "pods/*", "*/status", "*" and "*/*" against each other.
func ruleResources(names []string, at *field.Path) (errs field.ErrorList) {
	if len(names) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	whole, subs := map[string]bool{}, map[string]bool{}
	plain := false
	for i, n := range names {
		if n == "" {
			errs = append(errs, field.Required(at.Index(i), ""))
			continue
		}
		name, sub, ok := strings.Cut(n, "/")
		if !ok {
			plain = n != wildcard // of the last such name, as upstream has it
			continue
		}
		if whole[name] {
			errs = append(errs, field.Invalid(at.Index(i), n, fmt.Sprintf("if '%s/*' is present, must not specify %s", name, n)))
		}
		if subs[sub] {
			errs = append(errs, field.Invalid(at.Index(i), n, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, n)))
		}
		whole[name] = whole[name] || sub == wildcard
		subs[sub] = subs[sub] || name == wildcard
	}
	if len(names) > 1 && slices.Contains(names, "*/*") {
		errs = append(errs, field.Invalid(at, names, "if '*/*' is present, must not specify other resources"))
	}
	if plain && slices.Contains(names, wildcard) {
		errs = append(errs, field.Invalid(at, names, "if '*' is present, must not specify other resources without subresources"))
	}
	return errs
}

func matchResources(m *admissionv1.MatchResources, at *field.Path) field.ErrorList {
	if m == nil {
		return nil
	}
	errs := matchPolicy(m.MatchPolicy, at)
	errs = append(errs, podspec.Selector(m.NamespaceSelector, at.Child("namespaceSelector"))...)
	errs = append(errs, podspec.Selector(m.ObjectSelector, at.Child("objectSelector"))...)
	named := func(rules []admissionv1.NamedRuleWithOperations, at *field.Path) {
		for i := range rules {
			r, at := &rules[i], at.Index(i)
			for j, n := range r.ResourceNames {
				name := at.Child("resourceNames").Index(j)
				errs = append(errs, texts(name, n, content.IsPathSegmentName(n))...)
				if slices.Contains(r.ResourceNames[:j], n) {
					errs = append(errs, field.Duplicate(name, n))
				}
			}
			errs = append(errs, operationsRule(&r.RuleWithOperations, at)...)
		}
	}
	named(m.ResourceRules, at.Child("resourceRules"))
	named(m.ExcludeResourceRules, at.Child("excludeResourceRules"))
	return errs
}

// mutatingOperations checks that nothing is to be changed that is going away.
func mutatingOperations(m *admissionv1.MatchResources, at *field.Path) (errs field.ErrorList) {
	if m == nil {
		return nil
	}
	known := []admissionv1.OperationType{admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Update}
	for i := range m.ResourceRules {
		for _, o := range m.ResourceRules[i].Operations {
			if !slices.Contains(known, o) {
				errs = append(errs, field.NotSupported(at.Child("resourceRules", "operations"), o, known))
			}
		}
	}
	return errs
}

func paramKind(k *admissionv1.ParamKind, at *field.Path) (errs field.ErrorList) {
	version := at.Child("apiVersion")
	switch group, v, ok := strings.Cut(k.APIVersion, "/"); {
	case k.APIVersion == "":
		errs = append(errs, field.Required(version, ""))
	case strings.Contains(v, "/"):
		errs = append(errs, field.Invalid(version, k.APIVersion, "unexpected GroupVersion string: "+k.APIVersion))
	default:
		if !ok {
			group, v = "", k.APIVersion
		}
		if msgs := validation.IsDNS1123Subdomain(group); group != "" && len(msgs) > 0 {
			errs = append(errs, field.Invalid(version, group, strings.Join(msgs, ",")))
		}
		if v == "" {
			errs = append(errs, field.Invalid(version, k.APIVersion, "version must be specified"))
		} else if msgs := validation.IsDNS1035Label(v); len(msgs) > 0 {
			errs = append(errs, field.Invalid(version, v, strings.Join(msgs, ",")))
		}
	}
	if k.Kind == "" {
		errs = append(errs, field.Required(at.Child("kind"), ""))
	} else if msgs := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(msgs) > 0 {
		errs = append(errs, field.Invalid(at.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(msgs, ",")))
	}
	return errs
}

func paramRef(r *admissionv1.ParamRef, at *field.Path) (errs field.ErrorList) {
	if r == nil {
		return nil
	}
	const exclusive = "name and selector are mutually exclusive"
	if r.Name != "" {
		errs = append(errs, texts(at.Child("name"), r.Name, content.IsPathSegmentName(r.Name))...)
		if r.Selector != nil {
			errs = append(errs, field.Forbidden(at.Child("name"), exclusive))
		}
	}
	if r.Selector != nil {
		errs = append(errs, podspec.Selector(r.Selector, at.Child("selector"))...)
		if r.Name != "" {
			errs = append(errs, field.Forbidden(at.Child("selector"), exclusive))
		}
	}
	if r.Name == "" && r.Selector == nil {
		errs = append(errs, field.Required(at, "one of name or selector must be specified"))
	}
	known := []admissionv1.ParameterNotFoundActionType{admissionv1.DenyAction, admissionv1.AllowAction}
	switch a := deref(r.ParameterNotFoundAction); {
	case a == "":
		errs = append(errs, field.Required(at.Child("parameterNotFoundAction"), ""))
	case !slices.Contains(known, a):
		errs = append(errs, field.NotSupported(at.Child("parameterNotFoundAction"), a, known))
	}
	return errs
}

// webhookURL checks where a webhook is reached outside the cluster.
func webhookURL(text string, at *field.Path) (errs field.ErrorList) {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(text)
	if err != nil {
		return field.ErrorList{field.Required(at, "url must be a valid URL: "+err.Error()+form)}
	}
	if u.Scheme != "https" {
		errs = append(errs, field.Invalid(at, u.Scheme, "'https' is the only allowed URL scheme"+form))
	}
	if u.Host == "" {
		errs = append(errs, field.Invalid(at, u.Host, "host must be specified"+form))
	}
	if u.User != nil {
		errs = append(errs, field.Invalid(at, u.User.String(), "user information is not permitted in the URL"))
	}
	if u.Fragment != "" {
		errs = append(errs, field.Invalid(at, u.Fragment, "fragments are not permitted in the URL"))
	}
	if u.RawQuery != "" {
		errs = append(errs, field.Invalid(at, u.RawQuery, "query parameters are not permitted in the URL"))
	}
	return errs
}

// webhookService checks the Service that a webhook is behind. Upstream takes the name for the namespace when it says
// which is missing, and so do we.
func webhookService(namespace, name string, path *string, port int32, at *field.Path) (errs field.ErrorList) {
	if namespace == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	}
	if name == "" {
		errs = append(errs, field.Required(at.Child("namespace"), ""))
	}
	if msgs := validation.IsValidPortNum(int(port)); msgs != nil {
		errs = append(errs, field.Invalid(at.Child("port"), port, "port is not valid: "+strings.Join(msgs, ", ")))
	}
	at = at.Child("path")
	text := deref(path)
	switch {
	case text == "" || text == "/":
		return errs
	case text == "//":
		return append(errs, field.Invalid(at, text, "segment[0] may not be empty"))
	case !strings.HasPrefix(text, "/"):
		errs = append(errs, field.Invalid(at, text, "must start with a '/'"))
	}
	for i, step := range strings.Split(strings.TrimSuffix(text[1:], "/"), "/") {
		if step == "" {
			errs = append(errs, field.Invalid(at, text, fmt.Sprintf("segment[%d] may not be empty", i)))
			continue
		}
		for _, m := range validation.IsDNS1123Subdomain(step) {
			errs = append(errs, field.Invalid(at, text, fmt.Sprintf("segment[%d]: %v", i, m)))
		}
	}
	return errs
}
