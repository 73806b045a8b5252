package builtin

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// What the kinds that make pods of a template have in common.

// workloadSelector checks a selector that must be given and not be empty.
func workloadSelector(s *metav1.LabelSelector, at *field.Path, kind string) (errs field.ErrorList) {
	if s == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	errs = podspec.Selector(s, at)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(at, s, "empty selector is invalid for "+kind))
	}
	return errs
}

// workloadTemplate checks that the selector finds the template's pods, and the template, whose restart policy is given.
func workloadTemplate(t *corev1.PodTemplateSpec, s *metav1.LabelSelector, spec *field.Path, restart corev1.RestartPolicy) (errs field.ErrorList) {
	at := spec.Child("template")
	if s != nil && len(s.MatchLabels)+len(s.MatchExpressions) > 0 && len(podspec.Selector(s, spec)) == 0 && !podspec.SelectorMatches(s, t.Labels) {
		errs = append(errs, field.Invalid(at.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, podspec.Template(t, at)...)
	if p := t.Spec.RestartPolicy; p != restart && restart != "" {
		errs = append(errs, field.NotSupported(at.Child("spec", "restartPolicy"), p, []corev1.RestartPolicy{restart}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil && restart != "" {
		errs = append(errs, field.Forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported"))
	}
	return errs
}

func zero(v *intstr.IntOrString) bool {
	if v == nil {
		return true
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, 100, true)
	return err == nil && n == 0
}

// intOrPercent checks a number that is not negative or a percentage.
func intOrPercent(v *intstr.IntOrString, at *field.Path) (errs field.ErrorList) {
	if v == nil {
		return nil
	}
	if v.Type == intstr.Int {
		return notNegative(v.IntVal, at)
	}
	return texts(at, v, validation.IsValidPercent(v.StrVal))
}

// surgeAndUnavailable checks how a rolling update may go beyond and below the wanted number.
func surgeAndUnavailable(surge, unavailable *intstr.IntOrString, at *field.Path) (errs field.ErrorList) {
	errs = append(intOrPercent(unavailable, at.Child("maxUnavailable")), intOrPercent(surge, at.Child("maxSurge"))...)
	if unavailable != nil && unavailable.Type == intstr.String {
		if n, err := intstr.GetScaledValueFromIntOrPercent(unavailable, 100, false); err == nil && n > 100 {
			errs = append(errs, field.Invalid(at.Child("maxUnavailable"), unavailable, "must not be greater than 100%"))
		}
	}
	return errs
}

// count32 is a number of replicas in a status.
type count32 struct {
	name string
	n    int32
}

// replicaCounts checks numbers in a status: none is negative, and those after the first are not beyond it, unavailable ones
// excepted.
func replicaCounts(at *field.Path, counts []count32, observed int64) (errs field.ErrorList) {
	for _, c := range counts {
		errs = append(errs, notNegative(c.n, at.Child(c.name))...)
	}
	errs = append(errs, notNegative(observed, at.Child("observedGeneration"))...)
	if counts[0].name != "replicas" {
		return errs
	}
	ready := int32(-1)
	for _, c := range counts[1:] {
		if c.name == "unavailableReplicas" || c.name == "terminatingReplicas" {
			continue
		}
		if c.n > counts[0].n {
			errs = append(errs, field.Invalid(at.Child(c.name), c.n, "cannot be greater than status.replicas"))
		}
		if c.name == "readyReplicas" {
			ready = c.n
		}
		if c.name == "availableReplicas" && ready >= 0 && c.n > ready {
			errs = append(errs, field.Invalid(at.Child(c.name), c.n, "cannot be greater than readyReplicas"))
		}
	}
	return errs
}
