// Package podspec fills in and checks the PodSpec of Pods and of the templates in workloads. It
// replaces the pod parts of upstream's pkg/apis/core defaults and validation, split by concern:
//
//	default.go     what the API fills in
//	podspec.go     the pod as a whole        update.go   what may change
//	containers.go  containers of each sort   probes.go   probes and lifecycle handlers
//	env.go         environment               volumes.go, mounts.go
//	claim.go       claims for volumes        foreignvolumes.go  what CSI drivers have taken over
//	resourceclaims.go  claims of devices
//	resources.go   quantities                security.go security contexts, sysctls
//	scheduling.go  affinity, tolerations, spread
//	absent.go      fields whose behaviour this release does not have, refused by name
//
// Functions are pure. They report every problem with the path of its field, and the texts are those that users of
// Kubernetes know.
package podspec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of the DNS part.
const (
	maxNameservers  = 3
	maxSearches     = 32
	maxSearchLength = 2048
)

// Template checks a pod template at path.
func Template(t *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabels(t.Labels, path.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, path.Child("annotations"))...)
	errs = append(errs, annotations(t.Annotations, &t.Spec, path.Child("annotations"))...)
	errs = append(errs, Spec(&t.Spec, path.Child("spec"))...)
	errs = append(errs, AppArmorAgrees(t.Annotations, &t.Spec, path.Child("spec"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(path.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

// Spec checks s at path, defaults being filled in.
func Spec(s *corev1.PodSpec, path *field.Path) field.ErrorList {
	v := &check{spec: s}
	errs := v.volumes(path.Child("volumes"))
	errs = append(errs, resourceClaims(s.ResourceClaims, path.Child("resourceClaims"))...)
	errs = append(errs, v.allContainers(path)...)
	errs = append(errs, v.whole(path.Child("resources"))...)
	errs = append(errs, v.policies(path)...)
	errs = append(errs, v.names(path)...)
	errs = append(errs, v.dns(path)...)
	errs = append(errs, v.security(path)...)
	errs = append(errs, v.scheduling(path)...)
	errs = append(errs, v.system(path)...)
	errs = append(errs, hostPorts(s, path)...)
	return append(errs, absent(s, path)...)
}

// check is one validation of one spec.
type check struct {
	spec  *corev1.PodSpec
	known sets.Set[string] // containers of every sort
	vols  map[string]*corev1.VolumeSource
}

// grace returns the termination grace period in seconds.
func (v *check) grace() int64 {
	if g := v.spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return 0
}

func (v *check) policies(path *field.Path) (errs field.ErrorList) {
	s := v.spec
	errs = append(errs, oneOf(path.Child("restartPolicy"), s.RestartPolicy,
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(path.Child("dnsPolicy"), s.DNSPolicy,
		corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if g := s.TerminationGracePeriodSeconds; g == nil {
		errs = append(errs, field.Required(path.Child("terminationGracePeriodSeconds"), ""))
	} else if *g < 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *g, "must be greater than or equal to 0"))
	}
	if p := s.PreemptionPolicy; p != nil {
		errs = append(errs, oneOf(path.Child("preemptionPolicy"), *p, corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	for i, g := range s.ReadinessGates {
		errs = append(errs, texts(path.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType),
			validation.IsQualifiedName(string(g.ConditionType)))...)
	}
	return errs
}

func (v *check) names(path *field.Path) (errs field.ErrorList) {
	s := v.spec
	optional := func(name, value string, check func(string) []string) {
		if value != "" {
			errs = append(errs, texts(path.Child(name), value, check(value))...)
		}
	}
	optional("serviceAccountName", s.ServiceAccountName, isName)
	optional("nodeName", s.NodeName, isName)
	optional("priorityClassName", s.PriorityClassName, isName)
	optional("hostname", s.Hostname, validation.IsDNS1123Label)
	optional("subdomain", s.Subdomain, validation.IsDNS1123Label)
	if s.RuntimeClassName != nil {
		errs = append(errs, texts(path.Child("runtimeClassName"), *s.RuntimeClassName, isName(*s.RuntimeClassName))...)
	}
	if h := s.HostnameOverride; h != nil {
		errs = append(errs, hostnameOverride(s, *h, path)...)
	}
	return errs
}

func hostnameOverride(s *corev1.PodSpec, name string, path *field.Path) (errs field.ErrorList) {
	p := path.Child("hostnameOverride")
	errs = texts(p, name, validation.IsDNS1123Subdomain(name))
	if len(name) > 64 {
		errs = append(errs, field.TooLong(p, name, 64))
	}
	if s.SetHostnameAsFQDN != nil && *s.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(p, "may not be specified when setHostnameAsFQDN is true"))
	}
	if s.HostNetwork {
		errs = append(errs, field.Forbidden(p, "may not be specified when hostNetwork is true"))
	}
	return errs
}

func (v *check) dns(path *field.Path) (errs field.ErrorList) {
	c := v.spec.DNSConfig
	p := path.Child("dnsConfig")
	if v.spec.DNSPolicy == corev1.DNSNone && c == nil {
		return field.ErrorList{field.Required(p, "must provide `dnsConfig` when `dnsPolicy` is None")}
	}
	for i, a := range v.spec.HostAliases {
		at := path.Child("hostAliases").Index(i)
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), a.IP, true, nil)...)
		for j, h := range a.Hostnames {
			errs = append(errs, texts(at.Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h))...)
		}
	}
	if c == nil {
		return errs
	}
	if v.spec.DNSPolicy == corev1.DNSNone && len(c.Nameservers) == 0 {
		errs = append(errs, field.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if len(c.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers)))
	}
	for i, ns := range c.Nameservers {
		errs = append(errs, validation.IsValidIPForLegacyField(p.Child("nameservers").Index(i), ns, true, nil)...)
	}
	if len(c.Searches) > maxSearches {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches)))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchLength {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchLength)))
	}
	for i, s := range c.Searches {
		if s == "." {
			continue // resolves absolute names only
		}
		name := strings.TrimSuffix(s, ".")
		errs = append(errs, texts(p.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(name))...)
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(p.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

// system checks what ties a pod to one operating system.
func (v *check) system(path *field.Path) (errs field.ErrorList) {
	if v.spec.OS == nil {
		return nil
	}
	p := path.Child("os", "name")
	if v.spec.OS.Name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if errs = oneOf(path.Child("os"), v.spec.OS.Name, corev1.Linux, corev1.Windows); len(errs) > 0 {
		return errs
	}
	forbid := func(bad bool, where *field.Path, text string) {
		if bad {
			errs = append(errs, field.Forbidden(where, text))
		}
	}
	windows := v.spec.OS.Name == corev1.Windows
	pod := v.spec.SecurityContext
	forbid(!windows && pod != nil && pod.WindowsOptions != nil, path.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod")
	forbid(windows && v.spec.HostPID, path.Child("hostPID"), "cannot be set for a windows pod")
	forbid(windows && v.spec.HostIPC, path.Child("hostIPC"), "cannot be set for a windows pod")
	forbid(windows && v.spec.HostNetwork, path.Child("hostNetwork"), "cannot be set for a windows pod")
	forbid(windows && v.spec.ShareProcessNamespace != nil, path.Child("shareProcessNamespace"), "cannot be set for a windows pod")
	eachContainer(v.spec, path, func(c *corev1.Container, at *field.Path) {
		sc := c.SecurityContext
		forbid(!windows && sc != nil && sc.WindowsOptions != nil, at.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod")
	})
	return errs
}

// annotations checks those that the API gives a meaning.
func annotations(a map[string]string, s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	if _, ok := a[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		errs = append(errs, field.Invalid(path.Key(corev1.MirrorPodAnnotationKey), "", "must set spec.nodeName if mirror pod annotation is set"))
	}
	return append(errs, AppArmorAnnotations(a, s, path)...)
}

// eachContainer visits containers of every sort with their paths. Ephemeral ones are visited as copies.
func eachContainer(s *corev1.PodSpec, path *field.Path, visit func(c *corev1.Container, at *field.Path)) {
	for i := range s.InitContainers {
		visit(&s.InitContainers[i], path.Child("initContainers").Index(i))
	}
	for i := range s.Containers {
		visit(&s.Containers[i], path.Child("containers").Index(i))
	}
	for i := range s.EphemeralContainers {
		c := corev1.Container(s.EphemeralContainers[i].EphemeralContainerCommon)
		visit(&c, path.Child("ephemeralContainers").Index(i))
	}
}

// oneOf is Required for the empty value and NotSupported for one that is not in allowed, which is shown in
// alphabetical order.
func oneOf[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return known(path, value, allowed...)
}

// known is NotSupported for a value that is not in allowed, the empty one too.
func known[T ~string](path *field.Path, value T, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	allowed = slices.Clone(allowed)
	slices.Sort(allowed)
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

// texts turns the messages of apimachinery's checks into errors.
func texts(path *field.Path, value any, messages []string) (errs field.ErrorList) {
	for _, m := range messages {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}

// name checks the name of another object, which must be given.
func name(path *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return texts(path, value, isName(value))
}

func isName(s string) []string { return apivalidation.NameIsDNSSubdomain(s, false) }
