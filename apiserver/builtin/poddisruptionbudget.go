package builtin

import (
	"slices"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// legacySelector is a label by which the old version of the API told selectors of nothing and of everything apart. It is used for
// nothing else.
const legacySelector = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"

func podDisruptionBudgets() *rest.Resource[*policyv1.PodDisruptionBudget] {
	type pdb = *policyv1.PodDisruptionBudget
	orNA := func(v *intstr.IntOrString) any {
		if v == nil {
			return "N/A"
		}
		return v.String()
	}
	return &rest.Resource[pdb]{
		AnyFinalizer:    true,
		RequireRevision: true,
		Name:            func(string, bool) []string { return nil }, // upstream looks at no form
		Prepare:         func(p pdb) { dropLegacy(p.Spec.Selector) },
		PrepareUpdate: func(now, old pdb) {
			if !equality.Semantic.DeepEqual(now.Spec.Selector, old.Spec.Selector) {
				dropLegacy(now.Spec.Selector)
			}
		},
		Validate: func(p pdb) field.ErrorList { return budget(&p.Spec, field.NewPath("spec")) },
		ValidateStatus: func(now, _ pdb) field.ErrorList {
			s, at := &now.Status, field.NewPath("status")
			errs := metavalidation.ValidateConditions(s.Conditions, at.Child("conditions"))
			errs = append(errs, notNegative(s.DisruptionsAllowed, at.Child("disruptionsAllowed"))...)
			errs = append(errs, notNegative(s.CurrentHealthy, at.Child("currentHealthy"))...)
			errs = append(errs, notNegative(s.DesiredHealthy, at.Child("desiredHealthy"))...)
			return append(errs, notNegative(s.ExpectedPods, at.Child("expectedPods"))...)
		},
		Columns: []rest.Column[pdb]{
			{Name: "Min Available", Description: "The minimum number of pods that must be available.", Cell: func(p pdb) any { return orNA(p.Spec.MinAvailable) }},
			{Name: "Max Unavailable", Description: "The maximum number of pods that may be unavailable.", Cell: func(p pdb) any { return orNA(p.Spec.MaxUnavailable) }},
			{Name: "Allowed Disruptions", Type: "integer", Description: "Calculated number of pods that may be disrupted at this time.", Cell: func(p pdb) any { return int64(p.Status.DisruptionsAllowed) }},
			{Name: "Age"},
		},
	}
}

// dropLegacy takes the label out of a selector in which it is not alone.
func dropLegacy(s *metav1.LabelSelector) {
	if s == nil || equality.Semantic.DeepEqual(s, &metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: legacySelector, Operator: metav1.LabelSelectorOpExists}}}) {
		return
	}
	s.MatchExpressions = slices.DeleteFunc(s.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return r.Key == legacySelector })
}

func budget(s *policyv1.PodDisruptionBudgetSpec, at *field.Path) (errs field.ErrorList) {
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(at, *s, "minAvailable and maxUnavailable cannot be both set"))
	}
	for _, v := range []struct {
		name  string
		value *intstr.IntOrString
	}{{"minAvailable", s.MinAvailable}, {"maxUnavailable", s.MaxUnavailable}} {
		errs = append(errs, intOrPercent(v.value, at.Child(v.name))...)
		errs = append(errs, notAboveAll(v.value, at.Child(v.name))...)
	}
	errs = append(errs, podspec.Selector(s.Selector, at.Child("selector"))...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, known(at.Child("unhealthyPodEvictionPolicy"), *p, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)...)
	}
	return errs
}
