package builtin

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func runtimeClasses() *rest.Resource[*nodev1.RuntimeClass] {
	type class = *nodev1.RuntimeClass
	handler := field.NewPath("handler")
	return &rest.Resource[class]{
		AnyFinalizer:   true,
		CreateOnUpdate: true, RequireRevision: true,
		Validate: func(c class) field.ErrorList {
			errs := runtimeClassPods(c)
			if c.Handler == "" {
				return append(errs, field.Required(handler, ""))
			}
			return append(errs, texts(handler, c.Handler, apivalidation.NameIsDNSLabel(c.Handler, false))...)
		},
		ValidateUpdate: func(now, old class) field.ErrorList { return sealed(now.Handler, old.Handler, handler) },
		Warn: func(c, _ class) (warnings []string) {
			if c.Scheduling == nil {
				return nil
			}
			for _, label := range sortedKeys(c.Scheduling.NodeSelector) {
				if text := podspec.RetiredLabel(label); text != "" {
					warnings = append(warnings, "scheduling.nodeSelector: "+text)
				}
			}
			return warnings
		},
		Columns: []rest.Column[class]{
			{Name: "Handler", Cell: func(c class) any { return c.Handler }},
			{Name: "Age"},
		},
	}
}

// runtimeClassPods checks what the class adds to pods.
func runtimeClassPods(c *nodev1.RuntimeClass) (errs field.ErrorList) {
	if c.Overhead != nil {
		errs = append(errs, podspec.Requirements(&corev1.ResourceRequirements{Limits: c.Overhead.PodFixed}, field.NewPath("overhead"))...)
	}
	s, at := c.Scheduling, field.NewPath("scheduling")
	if s == nil {
		return errs
	}
	errs = append(errs, metavalidation.ValidateLabels(s.NodeSelector, at.Child("nodeSelector"))...)
	at = at.Child("tolerations")
	errs = append(errs, podspec.Tolerations(s.Tolerations, at)...)
	seen := map[corev1.Toleration]bool{}
	for i, t := range s.Tolerations {
		key := t
		key.TolerationSeconds = nil
		if seen[key] {
			errs = append(errs, field.Duplicate(at.Index(i), t))
		}
		seen[key] = true
	}
	return errs
}
