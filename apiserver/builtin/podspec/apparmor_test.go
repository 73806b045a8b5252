package podspec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What annotations say becomes fields of those containers that have none, where it says something else than the pod's.
func TestAppArmorFields(t *testing.T) {
	t.Parallel()
	mine := "mine"
	local := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &mine}
	usual := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	for name, c := range map[string]struct {
		annotation     string
		pod, container *corev1.AppArmorProfile
		want           string
		warns          bool
	}{
		"nothing":             {want: ""},
		"local":               {annotation: "localhost/mine", want: "Localhost mine", warns: true},
		"default":             {annotation: "runtime/default", want: "RuntimeDefault", warns: true},
		"unconfined":          {annotation: "unconfined", want: "Unconfined", warns: true},
		"the container's own": {annotation: "unconfined", container: local, want: "Localhost mine", warns: true},
		"the pod's":           {annotation: "runtime/default", pod: usual, want: ""},
		"not the pod's":       {annotation: "unconfined", pod: usual, want: "Unconfined", warns: true},
		"no name":             {annotation: "localhost/", want: "", warns: true},
		"padded":              {annotation: "localhost/ mine", want: "", warns: true},
		"odd":                 {annotation: "odd", want: "", warns: true},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}, SecurityContext: &corev1.PodSecurityContext{AppArmorProfile: c.pod}}}
		if c.annotation != "" {
			p.Annotations = map[string]string{corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "a": c.annotation}
		}
		if c.container != nil {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: c.container}
		}
		AppArmorFields(p)
		got := ""
		if f := profileOf(&p.Spec.Containers[0]); f != nil {
			got = string(f.Type)
			if f.LocalhostProfile != nil {
				got += " " + *f.LocalhostProfile
			}
		}
		warnings := AppArmorWarnings(p.Annotations, &p.Spec, field.NewPath("metadata", "annotations"), true)
		if got != c.want || len(warnings) > 0 != c.warns {
			t.Errorf("%s: %q, want %q; warnings %q", name, got, c.want, warnings)
		}
	}
}

func TestAppArmorUnchanged(t *testing.T) {
	t.Parallel()
	const key = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "a"
	of := func(text string) *metav1.ObjectMeta {
		return &metav1.ObjectMeta{Annotations: map[string]string{key: text, "b": text}}
	}
	for _, c := range []struct {
		now, old *metav1.ObjectMeta
		want     string
	}{
		{of("x"), of("x"), ""},
		{of("y"), of("x"), "may not remove or update"},
		{&metav1.ObjectMeta{}, of("x"), "may not remove or update"},
		{of("x"), &metav1.ObjectMeta{}, "may not add"},
	} {
		errs := AppArmorUnchanged(c.now, c.old, field.NewPath("metadata", "annotations"))
		if len(errs) > 1 || len(errs) == 0 != (c.want == "") || len(errs) == 1 && !strings.Contains(errs[0].Error(), c.want) {
			t.Errorf("%v to %v: %v, want %q", c.old.Annotations, c.now.Annotations, errs, c.want)
		}
	}
}
