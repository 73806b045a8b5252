package builtin

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// What the kinds that make pods of a template have in common.

// workloadSelector checks a selector that must be given and not be empty.
func workloadSelector(s *metav1.LabelSelector, at *field.Path, kind string) (errs field.ErrorList) {
	switch {
	case s == nil && kind == "daemonset": // that it selects no template is told
		return nil
	case s == nil:
		return field.ErrorList{field.Required(at, "")}
	}
	errs = podspec.Selector(s, at)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(at, s, "empty selector is invalid for "+kind))
	}
	return errs
}

// workloadTemplate checks the template of a workload that keeps its pods running, called kind in errors, and that the selector
// finds them.
func workloadTemplate(t *corev1.PodTemplateSpec, s *metav1.LabelSelector, spec *field.Path, kind string) field.ErrorList {
	_, err := metav1.LabelSelectorAsSelector(s)
	switch { // where the selector is wrong, kinds differ in how much further upstream looks
	case err == nil || kind == "DaemonSet":
	case kind == "StatefulSet":
		return append(field.ErrorList{field.Invalid(spec.Child("selector"), s, "")}, lasting(t, spec.Child("template"), kind)...)
	default:
		return field.ErrorList{field.Invalid(spec.Child("selector"), s, "invalid label selector")}
	}
	return append(selectsTemplate(t, s, spec), runningTemplate(t, spec.Child("template"), kind)...)
}

func selectsTemplate(t *corev1.PodTemplateSpec, s *metav1.LabelSelector, spec *field.Path) field.ErrorList {
	if sel, err := metav1.LabelSelectorAsSelector(s); err != nil || sel.Matches(labels.Set(t.Labels)) {
		return nil
	}
	return field.ErrorList{field.Invalid(spec.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`")}
}

// runningTemplate checks a template whose pods start again when they end.
func runningTemplate(t *corev1.PodTemplateSpec, at *field.Path, kind string) field.ErrorList {
	return append(podspec.Template(t, at), lasting(t, at, kind)...)
}

// lasting checks that nothing ends the pods for good.
func lasting(t *corev1.PodTemplateSpec, at *field.Path, kind string) (errs field.ErrorList) {
	if p := t.Spec.RestartPolicy; p != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(at.Child("spec", "restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(at.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

// podNameWarnings tell that a new object's name will be part of its pods' names, which are host names as well.
func podNameWarnings(o metav1.Object, create bool) []string {
	messages := validation.IsDNS1123Label(o.GetName())
	if !create || len(messages) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", messages)}
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

// notAboveAll refuses a percentage of more than everything.
func notAboveAll(v *intstr.IntOrString, at *field.Path) field.ErrorList {
	if v == nil || v.Type != intstr.String {
		return nil
	}
	if n, err := intstr.GetScaledValueFromIntOrPercent(v, 100, false); err != nil || n <= 100 {
		return nil
	}
	return field.ErrorList{field.Invalid(at, v, "must not be greater than 100%")}
}

// surgeAndUnavailable checks how a rolling update may go beyond and below the wanted number.
func surgeAndUnavailable(surge, unavailable *intstr.IntOrString, at *field.Path) (errs field.ErrorList) {
	errs = append(intOrPercent(unavailable, at.Child("maxUnavailable")), intOrPercent(surge, at.Child("maxSurge"))...)
	return append(errs, notAboveAll(unavailable, at.Child("maxUnavailable"))...)
}

// count32 is a number of replicas in a status.
type count32 struct {
	name string
	n    int32
}

const aboveReady = "cannot be greater than readyReplicas"

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
			errs = append(errs, field.Invalid(at.Child(c.name), c.n, aboveReady))
		}
	}
	return errs
}
