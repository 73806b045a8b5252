package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// notHere is what a field is refused with whose behaviour this release does not have. Ignoring it would run
// the pod as something else than was asked for.
const notHere = "not supported by this release"

// absent refuses, by name, fields whose behaviour does not exist. Volumes that a node cannot serve (NFS, others of old) are not here: their
// pods stay Pending and an event says why, as without the claim upstream.
func absent(s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	refuse := func(set bool, at *field.Path) {
		if set {
			errs = append(errs, field.Forbidden(at, notHere))
		}
	}
	refuse(s.SchedulingGroup != nil, path.Child("schedulingGroup"))
	refuse(len(s.EvictionResponders) > 0, path.Child("evictionResponders"))
	eachContainer(s, path, func(c *corev1.Container, at *field.Path) {
		for i := range c.VolumeMounts {
			refuse(len(c.VolumeMounts[i].BindMountOptions) > 0, at.Child("volumeMounts").Index(i).Child("bindMountOptions"))
		}
	})
	return errs
}

// TemplateWarnings are the Warnings of a template's pods.
func TemplateWarnings(t *corev1.PodTemplateSpec, path *field.Path) []string {
	return append(AppArmorWarnings(t.Annotations, &t.Spec, path.Child("metadata", "annotations"), false), Warnings(&t.Spec, path.Child("spec"))...)
}

// Warnings are texts for whoever creates s: what is accepted and probably not meant.
func Warnings(s *corev1.PodSpec, path *field.Path) (warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if s.TerminationGracePeriodSeconds != nil && *s.TerminationGracePeriodSeconds < 0 {
		warn("%s: must be >= 0; negative values are invalid and will be treated as 1", path.Child("terminationGracePeriodSeconds"))
	}
	for i := range s.HostAliases {
		for _, text := range ipWarnings(path.Child("hostAliases").Index(i).Child("ip"), s.HostAliases[i].IP) {
			warn("%s", text)
		}
	}
	for i, ref := range s.ImagePullSecrets {
		if ref.Name == "" {
			warn("%s: invalid empty name %q", path.Child("imagePullSecrets").Index(i).Child("name"), ref.Name)
		}
	}
	eachContainer(s, path, func(c *corev1.Container, at *field.Path) {
		seen := map[string]bool{}
		for i, e := range c.Env {
			if seen[e.Name] {
				warn("%s: hides previous definition of %q, which may be dropped when using apply", at.Child("env").Index(i), e.Name)
			}
			seen[e.Name] = true
		}
		ports := map[string]int{}
		for i, p := range c.Ports {
			key := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
			if first, ok := ports[key]; ok && c.Ports[first].HostPort == p.HostPort && c.Ports[first].HostIP == p.HostIP {
				warn("%s: duplicate port definition with %s", at.Child("ports").Index(i), at.Child("ports").Index(first))
			}
			ports[key] = i
		}
	})
	return warnings
}
