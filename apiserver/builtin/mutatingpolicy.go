package builtin

import (
	"maps"
	"strings"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policycel "k8s.io/apiserver/pkg/admission/plugin/cel"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

func mutatingTexts(p *admissionv1.MutatingAdmissionPolicy) map[string]bool {
	texts := map[string]bool{}
	for _, c := range p.Spec.MatchConditions {
		texts[c.Expression] = true
	}
	for _, m := range p.Spec.Mutations {
		maps.Copy(texts, map[string]bool{deref(m.ApplyConfiguration).Expression: true, deref(m.JSONPatch).Expression: true})
	}
	return texts
}

func mutatingAdmissionPolicies(d Deps, e *expressions) *rest.Resource[*admissionv1.MutatingAdmissionPolicy] {
	type policy = *admissionv1.MutatingAdmissionPolicy
	return policies(d, func(p policy) policySpec { return policySpec{&p.Spec.FailurePolicy, p.Spec.MatchConstraints} }, mutatingTexts, e.mutatingPolicy,
		rest.Column[policy]{Name: "Mutations", Type: "integer", Description: "Mutation indicates the number of mutations rules defined in this configuration",
			Cell: func(p policy) any { return int64(len(p.Spec.Mutations)) }})
}

func (e *expressions) mutatingPolicy(p *admissionv1.MutatingAdmissionPolicy, stored map[string]bool) field.ErrorList {
	s, at := &p.Spec, field.NewPath("spec")
	params := s.ParamKind != nil
	errs := policyHead(s.FailurePolicy, s.ParamKind, s.MatchConstraints, at)
	errs = append(errs, mutatingOperations(s.MatchConstraints, at.Child("matchConstraints"))...)
	errs = append(errs, e.conditions(s.MatchConditions, params, stored, at.Child("matchConditions"))...)
	c, more := composed(s.Variables, params, stored, at.Child("variables"))
	if errs = append(errs, more...); c == nil {
		return errs
	}
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(at.Child("mutations"), "mutations must contain at least one item"))
	}
	for i := range s.Mutations {
		errs = append(errs, mutation(c, &s.Mutations[i], params, stored, at.Child("mutations").Index(i))...)
	}
	return append(errs, oneOf(at.Child("reinvocationPolicy"), s.ReinvocationPolicy, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
}

func mutation(c policycel.Compiler, m *admissionv1.Mutation, params bool, stored map[string]bool, at *field.Path) field.ErrorList {
	patch, apply := at.Child("jsonPatch"), at.Child("applyConfiguration")
	check := func(text string, yields *cel.Type, at *field.Path) field.ErrorList {
		at = at.Child("expression")
		if text = strings.TrimSpace(text); text == "" {
			return field.ErrorList{field.Required(at, "")}
		}
		vars := policycel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true, HasPatchTypes: true}
		return compile(c, expression{text: text, types: []*cel.Type{yields}}, vars, kindOf(text, stored), at)
	}
	switch m.PatchType {
	case "":
		return field.ErrorList{field.Required(at.Child("patchType"), "")}
	case admissionv1.PatchTypeJSONPatch:
		errs := field.ErrorList{field.Required(patch, "must be specified when patchType is JSONPatch")}
		if m.JSONPatch != nil {
			errs = check(m.JSONPatch.Expression, cel.ListType(cel.ObjectType("JSONPatch")), patch)
		}
		if m.ApplyConfiguration != nil {
			errs = append(errs, field.Invalid(apply, "{applyConfiguration}", "must not be specified when patchType is JSONPatch"))
		}
		return errs
	case admissionv1.PatchTypeApplyConfiguration:
		errs := field.ErrorList{field.Required(apply, "must be specified when patchType is ApplyConfiguration")}
		if m.ApplyConfiguration != nil {
			errs = check(m.ApplyConfiguration.Expression, cel.ObjectType("Object"), apply)
		}
		if m.JSONPatch != nil {
			errs = append(errs, field.Invalid(patch, "{jsonPatch}", "must not be specified when patchType is ApplyConfiguration"))
		}
		return errs
	}
	return field.ErrorList{field.NotSupported(at.Child("patchType"), m.PatchType, []admissionv1.PatchType{admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch})}
}

func mutatingAdmissionPolicyBindings(d Deps) *rest.Resource[*admissionv1.MutatingAdmissionPolicyBinding] {
	type binding = *admissionv1.MutatingAdmissionPolicyBinding
	return policyBindings(d, api.MutatingAdmissionPolicyKind, func(b binding) bindingSpec {
		return bindingSpec{b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources}
	}, func(b binding, at *field.Path) field.ErrorList {
		return mutatingOperations(b.Spec.MatchResources, at.Child("matchResources"))
	})
}
