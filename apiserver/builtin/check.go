package builtin

import (
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Ways that files of this package share of saying what is wrong, and of showing values in columns.

const (
	none    = "<none>"
	unknown = "<unknown>"
	unset   = "<unset>"
)

// immutable is the error of a changed field that may not change.
func immutable(now, old any, at *field.Path) field.ErrorList {
	return apivalidation.ValidateImmutableField(now, old, at)
}

// sealed is immutable for the fields that upstream checks by generated rules, which do not show the value.
func sealed(now, old any, at *field.Path) field.ErrorList {
	if equality.Semantic.DeepEqual(now, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(at, nil, apivalidation.FieldImmutableErrorMsg)}
}

// newErrors drops from errs those that the object had before: what was accepted once does not stop other changes.
func newErrors(errs, before field.ErrorList) (out field.ErrorList) {
	had := map[string]bool{}
	for _, e := range before {
		had[e.Error()] = true
	}
	for _, e := range errs {
		if !had[e.Error()] {
			out = append(out, e)
		}
	}
	return out
}

func notNegative[T ~int32 | ~int64](v T, at *field.Path) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(int64(v), at)
}

func notNegativePtr[T ~int32 | ~int64](v *T, at *field.Path) field.ErrorList {
	if v == nil {
		return nil
	}
	return notNegative(*v, at)
}

func texts(at *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(at, value, m))
	}
	return errs
}

// oneOf is Required for the empty value and NotSupported for one that is not in allowed, which is shown in
// alphabetical order.
func oneOf[T ~string](at *field.Path, value T, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	return known(at, value, allowed...)
}

// known is NotSupported for a value that is not in allowed, the empty one too.
func known[T ~string](at *field.Path, value T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	allowed = slices.Clone(allowed)
	slices.Sort(allowed)
	return field.ErrorList{field.NotSupported(at, value, allowed)}
}

// notBelowZero checks the amount of a resource.
func notBelowZero(q resource.Quantity, at *field.Path) field.ErrorList {
	if q.Value() < 0 {
		return field.ErrorList{field.Invalid(at, q.Value(), "must be a valid resource quantity")}
	}
	return nil
}

// finalName checks names of the kinds whose names upstream checks by generated rules: not what they are made of.
func finalName(name string, prefix bool) []string {
	if prefix {
		return nil
	}
	return content.IsDNS1123Subdomain(name)
}

func isName(s string) []string { return apivalidation.NameIsDNSSubdomain(s, false) }

func isLabel(s string) []string { return apivalidation.NameIsDNSLabel(s, false) }

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func setPtr[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// yesNo is a boolean as columns show it.
func yesNo(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// shown is the value of an optional field as columns show it.
func shown[T ~string](p *T) string {
	if p == nil {
		return unset
	}
	return string(*p)
}

// selectorText is a label selector as kubectl shows it.
func selectorText(s *metav1.LabelSelector) string { return metav1.FormatLabelSelector(s) }

// mapText is a plain selector as kubectl shows it.
func mapText(m map[string]string) string {
	if len(m) == 0 {
		return none
	}
	return labels.FormatLabels(m)
}

// containerNames and containerImages are the wide columns of workloads.
func containerNames(t *corev1.PodTemplateSpec) string {
	names := make([]string, len(t.Spec.Containers))
	for i, c := range t.Spec.Containers {
		names[i] = c.Name
	}
	return strings.Join(names, ",")
}

func containerImages(t *corev1.PodTemplateSpec) string {
	images := make([]string, len(t.Spec.Containers))
	for i, c := range t.Spec.Containers {
		images[i] = c.Image
	}
	return strings.Join(images, ",")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
