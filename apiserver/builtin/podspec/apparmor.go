package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Annotations that name the AppArmor profiles of containers are older than the fields. A new pod's are copied into the fields, after which
// these alone count.

const maxLocalhostProfile = 4095 // the longest path that the kernel takes

// AppArmorFields fills in the profiles of containers that have one by annotation alone.
func AppArmorFields(p *corev1.Pod) {
	if isWindows(&p.Spec) {
		return
	}
	eachContainer(&p.Spec, nil, func(c *corev1.Container, _ *field.Path) { // a new pod has no ephemeral ones
		profile := annotatedProfile(p.Annotations, c.Name)
		if profile == nil || profileOf(c) != nil || len(appArmor(profile, nil)) > 0 || equality.Semantic.DeepEqual(profile, podProfile(&p.Spec)) {
			return
		}
		if c.SecurityContext == nil {
			c.SecurityContext = &corev1.SecurityContext{}
		}
		c.SecurityContext.AppArmorProfile = profile
	})
}

func isWindows(s *corev1.PodSpec) bool { return s.OS != nil && s.OS.Name == corev1.Windows }

func podProfile(s *corev1.PodSpec) *corev1.AppArmorProfile {
	if s.SecurityContext == nil {
		return nil
	}
	return s.SecurityContext.AppArmorProfile
}

func profileOf(c *corev1.Container) *corev1.AppArmorProfile {
	if c.SecurityContext == nil {
		return nil
	}
	return c.SecurityContext.AppArmorProfile
}

// annotatedProfile is what a container's annotation says; nil where it has none, or it says nothing that a field can.
func annotatedProfile(annotations map[string]string, container string) *corev1.AppArmorProfile {
	text := annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+container]
	switch text {
	case corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	}
	if name, ok := strings.CutPrefix(text, corev1.DeprecatedAppArmorBetaProfileNamePrefix); ok && name != "" {
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

// AppArmorAnnotations checks the form of the annotations, of which each must be about a container.
func AppArmorAnnotations(annotations map[string]string, s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
		if !ok {
			continue
		}
		found := false
		eachContainer(s, nil, func(c *corev1.Container, _ *field.Path) { found = found || c.Name == name })
		if !found {
			errs = append(errs, field.Invalid(path.Key(key), name, "container not found"))
		}
		text := annotations[key]
		usual := []string{"", corev1.DeprecatedAppArmorBetaProfileRuntimeDefault, corev1.DeprecatedAppArmorBetaProfileNameUnconfined}
		if !slices.Contains(usual, text) && !strings.HasPrefix(text, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
			errs = append(errs, field.Invalid(path.Key(key), text, fmt.Sprintf("invalid AppArmor profile name: %q", text)))
		}
	}
	return errs
}

// AppArmorAgrees makes sure that annotations say the same as fields.
func AppArmorAgrees(annotations map[string]string, s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	if isWindows(s) {
		return nil
	}
	eachContainer(s, path, func(c *corev1.Container, at *field.Path) {
		profile := profileOf(c)
		if profile == nil {
			profile = podProfile(s)
		}
		text, ok := annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
		if profile == nil || !ok {
			return
		}
		at = at.Child("securityContext", "appArmorProfile")
		name, local := strings.CutPrefix(text, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
		same := true
		switch profile.Type {
		case corev1.AppArmorProfileTypeUnconfined:
			same = text == corev1.DeprecatedAppArmorBetaProfileNameUnconfined
		case corev1.AppArmorProfileTypeRuntimeDefault:
			same = text == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
		case corev1.AppArmorProfileTypeLocalhost:
			same = local
			if local && (profile.LocalhostProfile == nil || *profile.LocalhostProfile != name) {
				errs = append(errs, field.Forbidden(at.Child("localhostProfile"), "apparmor profile in annotation and field must match"))
			}
		}
		if !same {
			errs = append(errs, field.Forbidden(at.Child("type"), "apparmor type in annotation and field must match"))
		}
	})
	return errs
}

// AppArmorWarnings tells who still uses annotations alone. Filled says that fields may be there that were made of them.
func AppArmorWarnings(annotations map[string]string, s *corev1.PodSpec, path *field.Path, filled bool) (warnings []string) {
	eachContainer(s, nil, func(c *corev1.Container, _ *field.Path) {
		key := corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name
		if _, ok := annotations[key]; !ok || profileOf(c) != nil && !filled {
			return
		}
		if pod := podProfile(s); pod == nil || !equality.Semantic.DeepEqual(pod, annotatedProfile(annotations, c.Name)) {
			warnings = append(warnings, fmt.Sprintf(`%s: deprecated since v1.30; use the "appArmorProfile" field instead`, path.Key(key)))
		}
	})
	return warnings
}

// AppArmorUnchanged forbids a pod's annotations to change: the pod runs under what they said.
func AppArmorUnchanged(now, old *metav1.ObjectMeta, path *field.Path) (errs field.ErrorList) {
	ours := func(key string) bool {
		return strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
	}
	for _, key := range slices.Sorted(maps.Keys(old.Annotations)) {
		if text, ok := now.Annotations[key]; ours(key) && (!ok || text != old.Annotations[key]) {
			errs = append(errs, field.Forbidden(path.Key(key), "may not remove or update AppArmor annotations"))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now.Annotations)) {
		if _, ok := old.Annotations[key]; ours(key) && !ok {
			errs = append(errs, field.Forbidden(path.Key(key), "may not add AppArmor annotations"))
		}
	}
	return errs
}

func appArmor(a *corev1.AppArmorProfile, p *field.Path) field.ErrorList {
	if a == nil {
		return nil
	}
	if a.Type == "" {
		return field.ErrorList{field.Required(p.Child("type"), "type is required when appArmorProfile is set")}
	}
	errs := known(p.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	at := p.Child("localhostProfile")
	switch local := a.LocalhostProfile; {
	case len(errs) > 0: // of an unknown type nothing else can be said
	case a.Type != corev1.AppArmorProfileTypeLocalhost && local != nil:
		errs = append(errs, field.Invalid(at, *local, "can only be set when AppArmor type is Localhost"))
	case a.Type == corev1.AppArmorProfileTypeLocalhost && (local == nil || *local == ""):
		errs = append(errs, field.Required(at, "must be set when AppArmor type is Localhost"))
	case a.Type == corev1.AppArmorProfileTypeLocalhost && strings.TrimSpace(*local) != *local:
		errs = append(errs, field.Invalid(at, *local, "must not be padded with whitespace"))
	}
	if a.LocalhostProfile != nil && len(*a.LocalhostProfile) > maxLocalhostProfile {
		errs = append(errs, field.TooLong(at, "", maxLocalhostProfile))
	}
	return errs
}
