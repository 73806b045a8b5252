package podspec

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// changeable ends the refusal of every other change.
const changeable = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`," +
	"`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` " +
	"(allow it to be set to 1 if it was previously negative)"

// Update checks what changed between old and now, two states of one Pod.
func Update(now, old *corev1.Pod) (errs field.ErrorList) {
	path := field.NewPath("spec")
	if len(now.Spec.Containers) != len(old.Spec.Containers) {
		return field.ErrorList{field.Forbidden(path.Child("containers"), "pod updates may not add or remove containers")}
	}
	if len(now.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return field.ErrorList{field.Forbidden(path.Child("initContainers"), "pod updates may not add or remove containers")}
	}
	errs = append(errs, deadline(now.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	errs = append(errs, moreTolerations(now.Spec.Tolerations, old.Spec.Tolerations, path.Child("tolerations"))...)
	errs = append(errs, fewerGates(now, old, path)...)
	// What may change is made equal; whatever then differs may not.
	rest := now.Spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	rest.Tolerations = old.Spec.Tolerations
	rest.SchedulingGates = old.Spec.SchedulingGates
	if len(old.Spec.SchedulingGates) > 0 {
		errs = append(errs, gatedNodes(now, old, path)...)
		rest.NodeSelector = old.Spec.NodeSelector
		if rest.Affinity != nil && old.Spec.Affinity != nil {
			rest.Affinity.NodeAffinity = old.Spec.Affinity.NodeAffinity
		} else if onlyNodes(rest.Affinity) {
			rest.Affinity = old.Spec.Affinity
		}
	}
	if g, was := rest.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds; g != nil && *g == 1 && was != nil && *was < 0 {
		rest.TerminationGracePeriodSeconds = was
	}
	if !equality.Semantic.DeepEqual(rest, &old.Spec) {
		errs = append(errs, field.Forbidden(path, changeable+"\n"+diff.Diff(old.Spec, *rest)))
	}
	return errs
}

func onlyNodes(a *corev1.Affinity) bool {
	return a != nil && a.PodAffinity == nil && a.PodAntiAffinity == nil
}

// deadline may be set, and shortened.
func deadline(now, old *int64, at *field.Path) field.ErrorList {
	switch {
	case now != nil && old != nil && *now > *old:
		return field.ErrorList{field.Invalid(at, *now, "must be less than or equal to previous value")}
	case now == nil && old != nil:
		return field.ErrorList{field.Invalid(at, now, "must not update from a positive integer to nil value")}
	}
	return nil
}

// moreTolerations lets tolerations be added, and the seconds of one change.
func moreTolerations(now, old []corev1.Toleration, at *field.Path) field.ErrorList {
	for _, o := range old {
		o.TolerationSeconds = nil
		if !slices.ContainsFunc(now, func(n corev1.Toleration) bool {
			n.TolerationSeconds = nil
			return n == o
		}) {
			return field.ErrorList{field.Forbidden(at, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return Tolerations(now, at)
}

func fewerGates(now, old *corev1.Pod, path *field.Path) (errs field.ErrorList) {
	for i, g := range now.Spec.SchedulingGates {
		if !slices.Contains(old.Spec.SchedulingGates, g) {
			errs = append(errs, field.Forbidden(path.Child("schedulingGates").Index(i).Child("name"), "only deletion is allowed, but found new scheduling gate '"+g.Name+"'"))
		}
	}
	return errs
}

// gatedNodes lets a pod that waits at a gate be restricted to fewer nodes, never to others.
func gatedNodes(now, old *corev1.Pod, path *field.Path) (errs field.ErrorList) {
	for k, v := range old.Spec.NodeSelector {
		if got, ok := now.Spec.NodeSelector[k]; !ok || got != v {
			errs = append(errs, field.Invalid(path.Child("nodeSelector"), now.Spec.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	was := requiredNodes(old)
	if was == nil {
		return errs
	}
	at := path.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
	is := requiredNodes(now)
	if is == nil || len(is.NodeSelectorTerms) != len(was.NodeSelectorTerms) {
		return append(errs, field.Invalid(at.Child("nodeSelectorTerms"), is, "no additions/deletions to non-empty NodeSelectorTerms list are allowed"))
	}
	for i := range was.NodeSelectorTerms {
		w, n := &was.NodeSelectorTerms[i], &is.NodeSelectorTerms[i]
		if !opens(n.MatchExpressions, w.MatchExpressions) || !opens(n.MatchFields, w.MatchFields) {
			errs = append(errs, field.Invalid(at.Child("nodeSelectorTerms").Index(i), n, "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

// opens says whether long begins with all of short.
func opens(long, short []corev1.NodeSelectorRequirement) bool {
	return len(long) >= len(short) && equality.Semantic.DeepEqual(long[:len(short)], short)
}

func requiredNodes(p *corev1.Pod) *corev1.NodeSelector {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil {
		return nil
	}
	return p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
}

// Ephemeral checks a write of pods/ephemeralcontainers: containers may be added, never changed or taken away.
func Ephemeral(now, old *corev1.Pod) (errs field.ErrorList) {
	path := field.NewPath("spec", "ephemeralContainers")
	errs = Spec(&now.Spec, field.NewPath("spec"))
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		errs = append(errs, field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers"))
	}
	byName := map[string]corev1.EphemeralContainer{}
	for _, c := range now.Spec.EphemeralContainers {
		byName[c.Name] = c
	}
	for _, c := range old.Spec.EphemeralContainers {
		n, ok := byName[c.Name]
		if !ok {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", c.Name)))
		} else if !equality.Semantic.DeepEqual(n, c) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", c.Name, diff.Diff(c, n))))
		}
	}
	return errs
}

// oneOfEachFamily checks a list of addresses, which is value: those that are not had are well-formed, and of each family there is one at most.
func oneOfEachFamily(at *field.Path, value any, ips, had []string) (errs field.ErrorList) {
	for i, ip := range ips {
		errs = append(errs, validation.IsValidIPForLegacyField(at.Index(i), ip, true, had)...)
		if slices.Contains(ips[:i], ip) {
			errs = append(errs, field.Duplicate(at.Index(i), ip))
		}
	}
	if dual, err := netutils.IsDualStackIPStrings(ips); len(ips) > 1 && (err != nil || !dual || len(ips) > 2) {
		errs = append(errs, field.Invalid(at, value, "may specify no more than one IP for each IP family"))
	}
	return errs
}

// Status checks a write of a Pod's status.
func Status(now, old *corev1.Pod) (errs field.ErrorList) {
	path := field.NewPath("status")
	if n := now.Status.NominatedNodeName; n != "" {
		errs = append(errs, texts(path.Child("nominatedNodeName"), n, isName(n))...)
	}
	var pods, hosts []string // what older rules accepted stays
	for _, ip := range old.Status.PodIPs {
		pods = append(pods, ip.IP)
	}
	for _, ip := range old.Status.HostIPs {
		hosts = append(hosts, ip.IP)
	}
	var is []string
	for _, ip := range now.Status.PodIPs {
		is = append(is, ip.IP)
	}
	errs = append(errs, oneOfEachFamily(path.Child("podIPs"), now.Status.PodIPs, is, pods)...)
	is = nil
	for _, ip := range now.Status.HostIPs {
		is = append(is, ip.IP)
	}
	errs = append(errs, oneOfEachFamily(path.Child("hostIPs"), now.Status.HostIPs, is, hosts)...)
	for i, c := range now.Status.Conditions {
		at := path.Child("conditions").Index(i)
		if c.ObservedGeneration < 0 {
			errs = append(errs, field.Invalid(at.Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer"))
		}
		switch c.Type {
		case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized:
		default:
			errs = append(errs, texts(at.Child("Type"), string(c.Type), validation.IsQualifiedName(string(c.Type)))...)
		}
	}
	errs = append(errs, claimStatuses(now, old, path)...)
	extended := now.Status.ExtendedResourceClaimStatus
	errs = append(errs, deviceHealth(now.Status.ContainerStatuses, old.Spec.Containers, extended, path.Child("containerStatuses"))...)
	errs = append(errs, deviceHealth(now.Status.InitContainerStatuses, old.Spec.InitContainers, extended, path.Child("initContainerStatuses"))...)
	if was := old.Status.QOSClass; was != "" && now.Status.QOSClass != was {
		errs = append(errs, field.Invalid(path.Child("qosClass"), now.Status.QOSClass, "field is immutable"))
	}
	// A container's own policy or rules may start it again where the pod's would not.
	own := func(c *corev1.Container) bool { return c.RestartPolicy != nil }
	if old.Spec.RestartPolicy == corev1.RestartPolicyAlways || slices.ContainsFunc(ptrs(old.Spec.Containers), own) {
		return errs
	}
	return append(errs, rises(now.Status.ContainerStatuses, old.Status.ContainerStatuses, old.Spec.RestartPolicy, path.Child("containerStatuses"))...)
}

func ptrs(cs []corev1.Container) []*corev1.Container {
	out := make([]*corev1.Container, len(cs))
	for i := range cs {
		out[i] = &cs[i]
	}
	return out
}

// rises refuses a container that has ended for good to run again.
func rises(now, old []corev1.ContainerStatus, policy corev1.RestartPolicy, path *field.Path) (errs field.ErrorList) {
	for i, o := range old {
		t := o.State.Terminated
		if t == nil || t.ExitCode != 0 && policy == corev1.RestartPolicyOnFailure {
			continue
		}
		for _, n := range now {
			if n.Name == o.Name && n.State.Terminated == nil {
				errs = append(errs, field.Forbidden(path.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
			}
		}
	}
	return errs
}

func ipWarnings(path *field.Path, ip string) []string { return validation.GetWarningsForIP(path, ip) }
