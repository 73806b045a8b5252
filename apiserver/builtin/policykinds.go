package builtin

import (
	"context"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Admission policies are of two sorts, validating and mutating, each with bindings. What both sorts have is here.

// Descriptions of columns.
const (
	paramKindText  = "ParamKind specifies the kind of resources used to parameterize this policy"
	policyNameText = "PolicyName indicates the policy definition which the policy binding binded to"
	paramRefText   = "ParamRef indicates the param resource which sets the configuration param"
)

func kindCell(k *admissionv1.ParamKind) string {
	if k == nil {
		return unset
	}
	return k.APIVersion + "/" + k.Kind
}

func refCell(r *admissionv1.ParamRef) string {
	switch {
	case r == nil:
		return unset
	case r.Name != "":
		return or(r.Namespace, wildcard) + "/" + r.Name
	case r.Selector != nil:
		return r.Selector.String()
	}
	return unset
}

// pointer is an object that may be missing.
type pointer[T any] interface {
	*T
	api.Object
}

// policySpec is what is filled into policies of both sorts.
type policySpec struct {
	fail  **admissionv1.FailurePolicyType
	match *admissionv1.MatchResources
}

// policies are those of one sort. texts are a policy's expressions: those that were stored once are taken again.
func policies[T any, P pointer[T]](d Deps, spec func(P) policySpec, texts func(P) map[string]bool, validate func(P, map[string]bool) field.ErrorList, first rest.Column[P]) *rest.Resource[P] {
	return &rest.Resource[P]{
		RequireRevision: true,
		AnyFinalizer:    true,
		Default: func(p P) {
			s := spec(p)
			setPtr(s.fail, admissionv1.Fail)
			defaultMatch(s.match)
		},
		ValidateCreate: func(p P) field.ErrorList { return append(validate(p, nil), notStatic(p.GetName())...) },
		ValidateUpdate: func(now, old P) field.ErrorList {
			stored := texts(old)
			errs := validate(now, stored)
			if len(errs) == 0 {
				return nil
			}
			return newErrors(errs, validate(old, stored))
		},
		Permit: func(ctx context.Context, now, old P) field.ErrorList {
			var was *admissionv1.ParamKind
			if old != nil {
				was = paramKindOf(old)
			}
			return d.mayReadKind(ctx, paramKindOf(now), was)
		},
		Warn: func(p, old P) []string { return warnStatic(p, asMeta(old)) },
		Columns: []rest.Column[P]{
			first,
			{Name: "ParamKind", Description: paramKindText, Cell: func(p P) any { return kindCell(paramKindOf(p)) }},
			{Name: "Age"},
		},
	}
}

func paramKindOf(policy api.Object) *admissionv1.ParamKind {
	if p, ok := policy.(*admissionv1.MutatingAdmissionPolicy); ok {
		return p.Spec.ParamKind
	}
	return policy.(*admissionv1.ValidatingAdmissionPolicy).Spec.ParamKind
}

// bindingSpec is what bindings of both sorts say.
type bindingSpec struct {
	policy string
	params *admissionv1.ParamRef
	match  *admissionv1.MatchResources
}

// policyBindings are those of one sort of policies. more checks what bindings of this sort alone say.
func policyBindings[T any, B pointer[T]](d Deps, policy *api.Kind, spec func(B) bindingSpec, more func(B, *field.Path) field.ErrorList) *rest.Resource[B] {
	validate := func(b B) field.ErrorList {
		s, at := spec(b), field.NewPath("spec")
		errs := requiredName(s.policy, at.Child("policyName"), isName)
		errs = append(errs, paramRef(s.params, at.Child("paramRef"))...)
		errs = append(errs, matchResources(s.match, at.Child("matchResources"))...)
		return append(errs, more(b, at)...)
	}
	return &rest.Resource[B]{
		RequireRevision: true,
		AnyFinalizer:    true,
		Default:         func(b B) { defaultMatch(spec(b).match) },
		ValidateCreate:  func(b B) field.ErrorList { return append(validate(b), notStatic(b.GetName())...) },
		ValidateUpdate:  func(now, _ B) field.ErrorList { return validate(now) },
		Permit: func(ctx context.Context, now, old B) field.ErrorList {
			s := spec(now)
			if old != nil && s.policy == spec(old).policy && equality.Semantic.DeepEqual(s.params, spec(old).params) {
				return nil
			}
			return d.mayReadParam(ctx, s.policy, s.params, func() (*admissionv1.ParamKind, bool) {
				p := d.Store.Snapshot(policy).Get(api.Key{Name: s.policy})
				if p == nil {
					return nil, false
				}
				return paramKindOf(p.Object), true
			})
		},
		Warn: func(b, old B) []string { return warnStatic(b, asMeta(old)) },
		Columns: []rest.Column[B]{
			{Name: "PolicyName", Description: policyNameText, Cell: func(b B) any { return spec(b).policy }},
			{Name: "ParamRef", Description: paramRefText, Cell: func(b B) any { return refCell(spec(b).params) }},
			{Name: "Age"},
		},
	}
}
