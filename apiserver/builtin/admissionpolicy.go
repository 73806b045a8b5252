package builtin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policycel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/client-go/util/jsonpath"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	maxAuditNotes      = 20
	maxAuditExpression = 5 << 10
)

func validatingAdmissionPolicies(d Deps, e *expressions) *rest.Resource[*admissionv1.ValidatingAdmissionPolicy] {
	type policy = *admissionv1.ValidatingAdmissionPolicy
	r := policies(d, func(p policy) policySpec { return policySpec{&p.Spec.FailurePolicy, p.Spec.MatchConstraints} }, validatingTexts, e.validatingPolicy,
		rest.Column[policy]{Name: "Validations", Type: "integer", Description: "Validations indicates the number of validation rules defined in this configuration",
			Cell: func(p policy) any { return int64(len(p.Spec.Validations)) }})
	r.StrictStatus = true
	if check := d.CheckTypes; check != nil {
		// What upstream's controller finds out later is said at once: it follows from the object alone.
		r.Prepare = func(p policy) { observe(p, 1, check) }
		r.PrepareUpdate = func(now, old policy) {
			if !equality.Semantic.DeepEqual(now.Spec, old.Spec) {
				observe(now, old.Generation+1, check)
			}
		}
	}
	r.ValidateStatus = func(now, _ policy) field.ErrorList {
		at := field.NewPath("status")
		return append(typeWarnings(now.Status.TypeChecking, at.Child("typeChecking", "expressionWarnings")),
			metavalidation.ValidateConditions(now.Status.Conditions, at.Child("conditions"))...)
	}
	return r
}

// observe says in the status what the types of a policy's expressions are like.
func observe(p *admissionv1.ValidatingAdmissionPolicy, generation int64, check func(*admissionv1.ValidatingAdmissionPolicy) []admissionv1.ExpressionWarning) {
	p.Status.ObservedGeneration = generation
	p.Status.TypeChecking = &admissionv1.TypeChecking{ExpressionWarnings: check(p)}
}

// validatingTexts are the expressions of a policy.
func validatingTexts(p *admissionv1.ValidatingAdmissionPolicy) map[string]bool {
	texts := map[string]bool{}
	for _, c := range p.Spec.MatchConditions {
		texts[c.Expression] = true
	}
	for _, v := range p.Spec.Validations {
		texts[v.Expression], texts[v.MessageExpression] = true, true
	}
	for _, a := range p.Spec.AuditAnnotations {
		texts[a.ValueExpression] = true
	}
	return texts
}

func (e *expressions) validatingPolicy(p *admissionv1.ValidatingAdmissionPolicy, stored map[string]bool) field.ErrorList {
	s, at := &p.Spec, field.NewPath("spec")
	params := s.ParamKind != nil
	errs := policyHead(s.FailurePolicy, s.ParamKind, s.MatchConstraints, at)
	errs = append(errs, e.conditions(s.MatchConditions, params, stored, at.Child("matchConditions"))...)
	compiler := e.plain()
	if len(s.Variables) > 0 {
		c, more := composed(s.Variables, params, stored, at.Child("variables"))
		if errs = append(errs, more...); c == nil {
			return errs
		}
		compiler = c
	}
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		const text = "validations or auditAnnotations must contain at least one item"
		return append(errs, field.Required(at.Child("validations"), text), field.Required(at.Child("auditAnnotations"), text))
	}
	for i := range s.Validations {
		errs = append(errs, policyValidation(compiler, &s.Validations[i], params, stored, at.Child("validations").Index(i))...)
	}
	notes := at.Child("auditAnnotations")
	if len(s.AuditAnnotations) > maxAuditNotes {
		errs = append(errs, field.Invalid(notes, s.AuditAnnotations, fmt.Sprintf("must not have more than %d auditAnnotations", maxAuditNotes)))
	}
	for i, a := range s.AuditAnnotations {
		at := notes.Index(i)
		errs = append(errs, auditNote(compiler, p.Name, a, params, stored, at)...)
		if slices.ContainsFunc(s.AuditAnnotations[:i], func(o admissionv1.AuditAnnotation) bool { return o.Key == a.Key }) {
			errs = append(errs, field.Duplicate(at.Child("key"), a.Key))
		}
	}
	return errs
}

// policyHead checks what validating and mutating policies open with.
func policyHead(fail *admissionv1.FailurePolicyType, kind *admissionv1.ParamKind, match *admissionv1.MatchResources, at *field.Path) field.ErrorList {
	errs := failMode(fail, at)
	if kind != nil {
		errs = append(errs, paramKind(kind, at.Child("paramKind"))...)
	}
	constraints := at.Child("matchConstraints")
	if match == nil {
		return append(errs, field.Required(constraints, ""))
	}
	errs = append(errs, matchResources(match, constraints)...)
	if len(match.ResourceRules) == 0 {
		errs = append(errs, field.Required(constraints.Child("resourceRules"), ""))
	}
	return errs
}

func policyValidation(c policycel.Compiler, v *admissionv1.Validation, params bool, stored map[string]bool, at *field.Path) (errs field.ErrorList) {
	if strings.TrimSpace(v.Expression) == "" {
		errs = append(errs, field.Required(at.Child("expression"), "expression is not specified"))
	} else {
		errs = append(errs, compile(c, expression{text: v.Expression, types: []*cel.Type{cel.BoolType}},
			policycel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}, kindOf(v.Expression, stored), at.Child("expression"))...)
	}
	const empty = "must be non-empty if specified"
	if v.MessageExpression != "" && strings.TrimSpace(v.MessageExpression) == "" {
		errs = append(errs, field.Invalid(at.Child("messageExpression"), v.MessageExpression, empty))
	} else if v.MessageExpression != "" {
		errs = append(errs, compile(c, expression{text: v.MessageExpression, types: []*cel.Type{cel.StringType}},
			policycel.OptionalVariableDeclarations{HasParams: params}, kindOf(v.MessageExpression, stored), at.Child("messageExpression"))...)
	}
	switch text := strings.TrimSpace(v.Message); {
	case v.Message != "" && text == "":
		errs = append(errs, field.Invalid(at.Child("message"), v.Message, empty))
	case strings.ContainsAny(text, "\n\r"):
		errs = append(errs, field.Invalid(at.Child("message"), v.Message, "must not contain line breaks"))
	}
	if v.Reason != nil {
		errs = append(errs, oneOfPtr(at.Child("reason"), v.Reason, metav1.StatusReasonForbidden, metav1.StatusReasonInvalid,
			metav1.StatusReasonRequestEntityTooLarge)...)
	}
	return errs
}

func auditNote(c policycel.Compiler, policy string, a admissionv1.AuditAnnotation, params bool, stored map[string]bool, at *field.Path) field.ErrorList {
	key := policy + "/" + a.Key
	errs := texts(at.Child("key"), key, validation.IsQualifiedName(key))
	at = at.Child("valueExpression")
	text := strings.TrimSpace(a.ValueExpression)
	switch {
	case text == "":
		return append(errs, field.Required(at, "valueExpression is not specified"))
	case len(text) > maxAuditExpression:
		return append(errs, field.Required(at, fmt.Sprintf("must not exceed %d bytes in length", maxAuditExpression)))
	}
	x := expression{text: text, types: []*cel.Type{cel.StringType, cel.NullType}}
	result := c.CompileCELExpression(x, policycel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}, kindOf(a.ValueExpression, stored))
	if result.Error != nil {
		errs = append(errs, celError(result.Error, a.ValueExpression, at)...)
	}
	return errs
}

func typeWarnings(t *admissionv1.TypeChecking, at *field.Path) (errs field.ErrorList) {
	if t == nil {
		return nil
	}
	for i, w := range t.ExpressionWarnings {
		at := at.Index(i)
		if w.Warning == "" {
			errs = append(errs, field.Required(at.Child("warning"), ""))
		}
		ref := strings.TrimSpace(w.FieldRef)
		if ref == "" {
			errs = append(errs, field.Required(at.Child("fieldRef"), ""))
		} else if err := jsonpath.New("spec").Parse("{" + ref + "}"); err != nil {
			errs = append(errs, field.Invalid(at.Child("fieldRef"), ref, fmt.Sprintf("invalid JSONPath: %v", err)))
		}
	}
	return errs
}

func validatingAdmissionPolicyBindings(d Deps) *rest.Resource[*admissionv1.ValidatingAdmissionPolicyBinding] {
	type binding = *admissionv1.ValidatingAdmissionPolicyBinding
	return policyBindings(d, api.ValidatingAdmissionPolicyKind, func(b binding) bindingSpec {
		return bindingSpec{b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources}
	}, func(b binding, at *field.Path) field.ErrorList {
		return validationActions(b.Spec.ValidationActions, at.Child("validationActions"))
	})
}

func validationActions(as []admissionv1.ValidationAction, at *field.Path) (errs field.ErrorList) {
	seen := map[admissionv1.ValidationAction]bool{}
	for i, a := range as {
		if known := []admissionv1.ValidationAction{admissionv1.Audit, admissionv1.Deny, admissionv1.Warn}; !slices.Contains(known, a) {
			errs = append(errs, field.NotSupported(at.Index(i), a, known))
		}
		if seen[a] {
			errs = append(errs, field.Duplicate(at.Index(i), a))
		}
		seen[a] = true
	}
	if seen[admissionv1.Deny] && seen[admissionv1.Warn] {
		errs = append(errs, field.Invalid(at, as, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
	}
	if len(as) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	return errs
}
