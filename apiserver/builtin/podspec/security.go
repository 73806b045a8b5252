package podspec

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// sysctlName is the form of a sysctl, with dots or slashes.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

const (
	maxSysctlName = 253
	maxGMSASpec   = 64 << 10
)

func (v *check) security(path *field.Path) (errs field.ErrorList) {
	s := v.spec
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		errs = append(errs, field.Invalid(path.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	if s.HostUsers != nil && !*s.HostUsers {
		forbid := func(set bool, name string) {
			if set {
				errs = append(errs, field.Forbidden(path.Child(name), "when `hostUsers` is false"))
			}
		}
		forbid(s.HostNetwork, "hostNetwork")
		forbid(s.HostPID, "HostPID") // upstream's spelling, on the wire
		forbid(s.HostIPC, "HostIPC")
	}
	sc, p := s.SecurityContext, path.Child("securityContext")
	if sc == nil {
		return errs
	}
	errs = append(errs, ids(sc.RunAsUser, sc.RunAsGroup, p)...)
	if sc.FSGroup != nil {
		errs = append(errs, texts(p.Child("fsGroup"), *sc.FSGroup, validation.IsValidGroupID(*sc.FSGroup))...)
	}
	for i, g := range sc.SupplementalGroups {
		errs = append(errs, texts(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))...)
	}
	if sp := sc.SupplementalGroupsPolicy; sp != nil {
		errs = append(errs, oneOf(p.Child("supplementalGroupsPolicy"), *sp, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if fp := sc.FSGroupChangePolicy; fp != nil {
		errs = append(errs, oneOf(p.Child("fsGroupChangePolicy"), *fp, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)...)
	}
	if cp := sc.SELinuxChangePolicy; cp != nil {
		errs = append(errs, oneOf(p.Child("seLinuxChangePolicy"), *cp, corev1.SELinuxChangePolicyRecursive, corev1.SELinuxChangePolicyMountOption)...)
	}
	errs = append(errs, windowsOptions(sc.WindowsOptions, p.Child("windowsOptions"))...)
	errs = append(errs, v.sysctls(sc.Sysctls, p.Child("sysctls"))...)
	errs = append(errs, seccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	return append(errs, appArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
}

func ids(user, group *int64, p *field.Path) (errs field.ErrorList) {
	if user != nil {
		errs = append(errs, texts(p.Child("runAsUser"), *user, validation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, texts(p.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))...)
	}
	return errs
}

func (v *check) sysctls(list []corev1.Sysctl, p *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i, s := range list {
		at := p.Index(i).Child("name")
		name := dotted(s.Name)
		switch { // two spellings of one name are two names
		case s.Name == "":
			errs = append(errs, field.Required(at, ""))
		case len(s.Name) > maxSysctlName || !sysctlName.MatchString(s.Name):
			errs = append(errs, field.Invalid(at, s.Name, "must have at most 253 characters and match regex "+sysctlName.String()))
		case seen.Has(s.Name):
			errs = append(errs, field.Duplicate(at, s.Name))
		}
		seen.Insert(s.Name)
		if v.spec.HostNetwork && strings.HasPrefix(name, "net.") {
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostNetwork' is true"))
		}
		ipc := slices.ContainsFunc([]string{"kernel.shm", "kernel.msg", "fs.mqueue."}, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) || name == "kernel.sem"
		if v.spec.HostIPC && ipc {
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostIPC' is true"))
		}
	}
	return errs
}

// dotted returns a sysctl's name in the form with dots: where the first separator is a slash, the two are swapped.
func dotted(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

func seccomp(s *corev1.SeccompProfile, p *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := oneOf(p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	at := p.Child("localhostProfile")
	if s.Type != corev1.SeccompProfileTypeLocalhost {
		if s.LocalhostProfile != nil {
			errs = append(errs, field.Invalid(at, s, "can only be set when seccomp type is Localhost"))
		}
		return errs
	}
	if s.LocalhostProfile == nil {
		return append(errs, field.Required(at, "must be set when seccomp type is Localhost"))
	}
	if path.IsAbs(*s.LocalhostProfile) || strings.HasPrefix(path.Clean(*s.LocalhostProfile), "..") {
		errs = append(errs, field.Invalid(at, *s.LocalhostProfile, "must be a relative path"))
	}
	return append(errs, NoBackstep(*s.LocalhostProfile, at)...)
}

// windowsOptions checks the form of what the pods of other nodes are started with.
func windowsOptions(w *corev1.WindowsSecurityContextOptions, p *field.Path) (errs field.ErrorList) {
	if w == nil {
		return nil
	}
	if name := w.GMSACredentialSpecName; name != nil {
		errs = append(errs, texts(p.Child("gmsaCredentialSpecName"), *name, validation.IsDNS1123Subdomain(*name))...)
	}
	if spec := w.GMSACredentialSpec; spec != nil {
		at := p.Child("gmsaCredentialSpec")
		switch {
		case *spec == "":
			errs = append(errs, field.Invalid(at, *spec, "gmsaCredentialSpec cannot be an empty string"))
		case len(*spec) > maxGMSASpec:
			errs = append(errs, field.Invalid(at, *spec, "gmsaCredentialSpec size must be under 64 KiB"))
		}
	}
	if user := w.RunAsUserName; user != nil {
		at := p.Child("runAsUserName")
		switch {
		case *user == "":
			errs = append(errs, field.Invalid(at, *user, "runAsUserName cannot be an empty string"))
		case strings.ContainsFunc(*user, unicode.IsControl):
			errs = append(errs, field.Invalid(at, *user, "runAsUserName cannot contain control characters"))
		case strings.Count(*user, `\`) > 1:
			errs = append(errs, field.Invalid(at, *user, "runAsUserName cannot contain more than one backslash"))
		}
	}
	return errs
}

func (v *check) containerSecurity(sc *corev1.SecurityContext, p *field.Path) (errs field.ErrorList) {
	if sc == nil {
		return nil
	}
	errs = ids(sc.RunAsUser, sc.RunAsGroup, p)
	if m := sc.ProcMount; m != nil {
		errs = append(errs, oneOf(p.Child("procMount"), *m, corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if *m == corev1.UnmaskedProcMount && (v.spec.HostUsers == nil || *v.spec.HostUsers) {
			errs = append(errs, field.Invalid(p.Child("procMount"), *m, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, seccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	errs = append(errs, appArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
	errs = append(errs, windowsOptions(sc.WindowsOptions, p.Child("windowsOptions"))...)
	if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		return errs
	}
	if sc.Privileged != nil && *sc.Privileged {
		errs = append(errs, field.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
	}
	if c := sc.Capabilities; c != nil && slices.ContainsFunc(c.Add, func(c corev1.Capability) bool { return c == "CAP_SYS_ADMIN" }) {
		errs = append(errs, field.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
	}
	return errs
}
