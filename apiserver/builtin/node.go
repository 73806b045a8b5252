package builtin

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func nodes(d Deps) *rest.Resource[*corev1.Node] {
	return &rest.Resource[*corev1.Node]{
		StatusAtCreate: true,
		NoGeneration:   true,
		Default: func(n *corev1.Node) {
			if len(n.Status.Allocatable) == 0 && len(n.Status.Capacity) > 0 {
				n.Status.Allocatable = n.Status.Capacity.DeepCopy()
			}
			// The old singular field is the first of the list.
			if n.Spec.PodCIDR != "" && (len(n.Spec.PodCIDRs) == 0 || n.Spec.PodCIDRs[0] != n.Spec.PodCIDR) {
				n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
			}
			if n.Spec.PodCIDR == "" && len(n.Spec.PodCIDRs) > 0 {
				n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
			}
		},
		Validate:       validateNode,
		ValidateUpdate: updateNode,
		Fields: func(n *corev1.Node) fields.Set {
			return fields.Set{"spec.unschedulable": boolText(n.Spec.Unschedulable)}
		},
		Columns: nodeColumns(),
		Sub:     maps.Clone(d.NodeStreams),
	}
}

func validateNode(n *corev1.Node) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateTaints(n.Spec.Taints, field.NewPath("metadata", "taints"))
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(spec.Child("podCIDRs").Index(i), cidr, true, nil)...)
	}
	if len(n.Spec.PodCIDRs) > 1 {
		dual, err := netutils.IsDualStackCIDRStrings(n.Spec.PodCIDRs)
		if err != nil {
			errs = append(errs, field.InternalError(spec.Child("podCIDRs"), fmt.Errorf("invalid PodCIDRs. failed to check with dual stack with error:%w", err)))
		}
		if !dual || len(n.Spec.PodCIDRs) > 2 {
			errs = append(errs, field.Invalid(spec.Child("podCIDRs"), n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
	}
	errs = append(errs, amounts(n.Status.Capacity, field.NewPath("status", "capacity"))...)
	errs = append(errs, amounts(n.Status.Allocatable, field.NewPath("status", "allocatable"))...)
	if swap := n.Status.NodeInfo.Swap; swap != nil && swap.Capacity != nil && *swap.Capacity <= 0 {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "nodeSwapStatus", "capacity"), *swap.Capacity, "must be greater than zero"))
	}
	return append(errs, declaredFeatures(n.Status.DeclaredFeatures, field.NewPath("status", "declaredFeatures"))...)
}

// featureName matches MyFeature and MyFeature/mySubFeature.
var featureName = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*$`)

// declaredFeatures checks what a kubelet says that it can, in order.
func declaredFeatures(names []string, at *field.Path) (errs field.ErrorList) {
	for i, name := range names {
		switch {
		case len(name) > validation.DNS1123SubdomainMaxLength:
			errs = append(errs, field.Invalid(at.Index(i), name, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", name, validation.DNS1123SubdomainMaxLength)))
		case !featureName.MatchString(name):
			errs = append(errs, field.Invalid(at.Index(i), name, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, "+
				"with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", name)))
		}
		switch {
		case i == 0 || names[i-1] < name:
		case names[i-1] == name:
			errs = append(errs, field.Duplicate(at.Index(i), name))
		default:
			errs = append(errs, field.Invalid(at.Index(i), name, "list must be sorted alphabetically"))
		}
	}
	return errs
}

func amounts(l corev1.ResourceList, at *field.Path) (errs field.ErrorList) {
	for _, name := range slices.Sorted(maps.Keys(l)) {
		q := l[name]
		errs = append(errs, podspec.Quantity(name, &q, at.Child(string(name)))...)
	}
	return errs
}

func validateTaints(ts []corev1.Taint, at *field.Path) (errs field.ErrorList) {
	seen := map[string]bool{}
	for i, t := range ts {
		p := at.Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, p.Child("key"))...)
		if messages := validation.IsValidLabelValue(t.Value); len(messages) > 0 {
			errs = append(errs, field.Invalid(p.Child("value"), t.Value, strings.Join(messages, ";")))
		}
		errs = append(errs, oneOf(p.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		id := t.Key + ":" + string(t.Effect)
		if seen[id] {
			dup := field.Duplicate(p, t)
			dup.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, dup)
		}
		seen[id] = true
	}
	return errs
}

func updateNode(now, old *corev1.Node) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(now.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(spec.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && now.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Invalid(spec.Child("providerID"), now.Spec.ProviderID, "field cannot be modified once set"))
	}
	// What may change is made equal; whatever then differs may not.
	rest := now.Spec.DeepCopy()
	rest.PodCIDR, rest.PodCIDRs, rest.ProviderID = old.Spec.PodCIDR, old.Spec.PodCIDRs, old.Spec.ProviderID
	rest.Unschedulable, rest.Taints, rest.ConfigSource = old.Spec.Unschedulable, old.Spec.Taints, old.Spec.ConfigSource
	rest.PodPreemptionPolicy = old.Spec.PodPreemptionPolicy
	if !equality.Semantic.DeepEqual(rest, &old.Spec) {
		errs = append(errs, field.Forbidden(spec, "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)"))
	}
	return errs
}

const roleLabel = "node-role.kubernetes.io/"

// kernel is the kernel's version with the architecture that it was built for.
func kernel(i *corev1.NodeSystemInfo) string {
	text := or(i.KernelVersion, unknown)
	if i.Architecture != "" {
		text += " (" + i.Architecture + ")"
	}
	return text
}

func nodeColumns() []rest.Column[*corev1.Node] {
	type node = *corev1.Node
	info := corev1.NodeSystemInfo{}.SwaggerDoc()
	return []rest.Column[node]{
		{Name: "Status", Description: "The status of the node", Cell: func(n node) any { return nodeStatus(n) }},
		{Name: "Roles", Description: "The roles of the node", Cell: func(n node) any { return nodeRoles(n) }},
		{Name: "Age"},
		{Name: "Version", Description: info["kubeletVersion"], Cell: func(n node) any { return n.Status.NodeInfo.KubeletVersion }},
		{Name: "Internal-IP", Wide: true, Description: corev1.NodeStatus{}.SwaggerDoc()["addresses"], Cell: func(n node) any { return nodeAddress(n, corev1.NodeInternalIP) }},
		{Name: "External-IP", Wide: true, Description: corev1.NodeStatus{}.SwaggerDoc()["addresses"], Cell: func(n node) any { return nodeAddress(n, corev1.NodeExternalIP) }},
		{Name: "OS-Image", Wide: true, Description: info["osImage"], Cell: func(n node) any { return or(n.Status.NodeInfo.OSImage, unknown) }},
		{Name: "Kernel-Version", Wide: true, Description: info["kernelVersion"], Cell: func(n node) any { return kernel(&n.Status.NodeInfo) }},
		{Name: "Container-Runtime", Wide: true, Description: info["containerRuntimeVersion"], Cell: func(n node) any { return or(n.Status.NodeInfo.ContainerRuntimeVersion, unknown) }},
	}
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	if c := api.NodeCondition(n, corev1.NodeReady); c != nil {
		if status = "NotReady"; c.Status == corev1.ConditionTrue {
			status = "Ready"
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) string {
	var roles []string
	for _, k := range sortedKeys(n.Labels) {
		if role, ok := strings.CutPrefix(k, roleLabel); ok && role != "" {
			roles = append(roles, role)
		} else if k == "kubernetes.io/role" && n.Labels[k] != "" {
			roles = append(roles, n.Labels[k])
		}
	}
	slices.Sort(roles)
	return or(strings.Join(slices.Compact(roles), ","), none)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return none
}
