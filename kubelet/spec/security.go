package spec

import (
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// EffectiveUser returns the user and group that the container shall run as, nil where the image decides, and whether it
// must not be root. The container's own word counts over the pod's.
func EffectiveUser(pod *corev1.Pod, c *corev1.Container) (uid, gid *int64, nonRoot bool) {
	var non *bool
	if p := pod.Spec.SecurityContext; p != nil {
		uid, gid, non = p.RunAsUser, p.RunAsGroup, p.RunAsNonRoot
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			uid = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			gid = s.RunAsGroup
		}
		if s.RunAsNonRoot != nil {
			non = s.RunAsNonRoot
		}
	}
	return uid, gid, non != nil && *non
}

// VerifyNonRoot checks runAsNonRoot against the resolved user: the spec's, or else the image's.
func VerifyNonRoot(pod *corev1.Pod, c *corev1.Container, image *runtimeapi.Image) error {
	uid, _, nonRoot := EffectiveUser(pod, c)
	if !nonRoot {
		return nil
	}
	switch {
	case uid != nil && *uid == 0:
		return configErrorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod.Namespace+"/"+pod.Name, c.Name)
	case uid != nil:
		return nil
	case image.GetUid() != nil && image.Uid.Value == 0:
		return configErrorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod.Namespace+"/"+pod.Name, c.Name)
	case image.GetUid() == nil && image.GetUsername() != "":
		return configErrorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)",
			image.Username, pod.Namespace+"/"+pod.Name, c.Name)
	case image.GetUid() == nil:
		return configErrorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod.Namespace+"/"+pod.Name, c.Name)
	}
	return nil
}

// maskedPaths and readonlyPaths are those of the default procMount.
func maskedPaths() []string {
	return []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// containerSecurity returns the CRI security context of one container.
func containerSecurity(pod *corev1.Pod, c *corev1.Container, image *runtimeapi.Image, users *runtimeapi.UserNamespace, n Node) (*runtimeapi.LinuxContainerSecurityContext, error) {
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: Namespaces(pod, users), MaskedPaths: maskedPaths(), ReadonlyPaths: readonlyPaths(),
	}
	uid, gid, _ := EffectiveUser(pod, c)
	switch {
	case uid != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *uid}
	case image.GetUid() != nil:
		out.RunAsUser = image.Uid
	default:
		out.RunAsUsername = image.GetUsername()
	}
	if gid != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *gid}
	}
	p := pod.Spec.SecurityContext
	if p != nil {
		out.SupplementalGroups, out.SupplementalGroupsPolicy = supplementalGroups(p), groupsPolicy(p)
		out.SelinuxOptions = selinux(p.SELinuxOptions)
	}
	s := c.SecurityContext
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	if s.SELinuxOptions != nil {
		out.SelinuxOptions = selinux(s.SELinuxOptions)
	}
	out.Privileged = s.Privileged != nil && *s.Privileged
	out.ReadonlyRootfs = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
	out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
	if s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount {
		out.MaskedPaths, out.ReadonlyPaths = nil, nil
	}
	if out.Privileged {
		out.MaskedPaths, out.ReadonlyPaths = nil, nil
	}
	if caps := s.Capabilities; caps != nil {
		out.Capabilities = &runtimeapi.Capability{AddCapabilities: capNames(caps.Add), DropCapabilities: capNames(caps.Drop)}
	}
	var err error
	if out.Seccomp, err = seccomp(s, p, n); err != nil {
		return nil, err
	}
	if out.Apparmor, out.ApparmorProfile, err = apparmor(pod, c); err != nil {
		return nil, err
	}
	return out, nil
}

func capNames(caps []corev1.Capability) (out []string) {
	for _, c := range caps {
		out = append(out, string(c))
	}
	return out
}

func supplementalGroups(p *corev1.PodSecurityContext) []int64 {
	groups := slices.Clone(p.SupplementalGroups)
	if p.FSGroup != nil && !slices.Contains(groups, *p.FSGroup) {
		groups = append(groups, *p.FSGroup)
	}
	return groups
}

func groupsPolicy(p *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// seccomp returns the profile: the container's, or else the pod's, or else none, as upstream without seccompDefault.
func seccomp(s *corev1.SecurityContext, p *corev1.PodSecurityContext, n Node) (*runtimeapi.SecurityProfile, error) {
	var profile *corev1.SeccompProfile
	if p != nil {
		profile = p.SeccompProfile
	}
	if s != nil && s.SeccompProfile != nil {
		profile = s.SeccompProfile
	}
	if profile == nil || profile.Type == corev1.SeccompProfileTypeUnconfined {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
	if profile.Type == corev1.SeccompProfileTypeRuntimeDefault {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	}
	if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
		return nil, configErrorf("seccomp profile of type Localhost: localhostProfile must be set")
	}
	path := filepath.Join(n.SeccompRoot, *profile.LocalhostProfile)
	if !strings.HasPrefix(path, filepath.Clean(n.SeccompRoot)+"/") {
		return nil, configErrorf("seccomp profile %s lies outside %s", *profile.LocalhostProfile, n.SeccompRoot)
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}, nil
}

// AppArmorProfile returns which profile a container is to have, nil where neither it nor its pod says. Pods of the API have their annotations in
// fields; static ones may have them alone.
func AppArmorProfile(pod *corev1.Pod, c *corev1.Container) *corev1.AppArmorProfile {
	if s := c.SecurityContext; s != nil && s.AppArmorProfile != nil {
		return s.AppArmorProfile
	}
	text := pod.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
	switch text {
	case corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	}
	if name, ok := strings.CutPrefix(text, corev1.DeprecatedAppArmorBetaProfileNamePrefix); ok {
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	if p := pod.Spec.SecurityContext; p != nil {
		return p.AppArmorProfile
	}
	return nil
}

// apparmor returns the profile in both of CRI's ways; runtimes may know the older one alone.
func apparmor(pod *corev1.Pod, c *corev1.Container) (*runtimeapi.SecurityProfile, string, error) {
	profile := AppArmorProfile(pod, c)
	if profile == nil {
		return nil, "", nil
	}
	switch profile.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, corev1.DeprecatedAppArmorBetaProfileNameUnconfined, nil
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, corev1.DeprecatedAppArmorBetaProfileRuntimeDefault, nil
	}
	if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
		return nil, "", configErrorf("AppArmor profile of type Localhost: localhostProfile must be set")
	}
	name := *profile.LocalhostProfile
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, corev1.DeprecatedAppArmorBetaProfileNamePrefix + name, nil
}
