package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func resourceQuotas() *rest.Resource[*corev1.ResourceQuota] {
	type quota = *corev1.ResourceQuota
	return &rest.Resource[quota]{
		NoGeneration:  true,
		AnswerDeleted: true,
		Default: func(q quota) {
			for _, l := range []corev1.ResourceList{q.Spec.Hard, q.Status.Hard, q.Status.Used} {
				podspec.RoundUp(l)
			}
		},
		Validate: func(q quota) field.ErrorList {
			spec := field.NewPath("spec")
			errs := quotaAmounts(q.Spec.Hard, spec.Child("hard"))
			errs = append(errs, quotaScopes(&q.Spec, spec.Child("scopes"))...)
			return append(errs, quotaSelector(&q.Spec, spec.Child("scopeSelector", "matchExpressions"))...)
		},
		ValidateUpdate: func(now, old quota) field.ErrorList {
			if sets.New(now.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
				return nil
			}
			return field.ErrorList{field.Invalid(field.NewPath("spec", "scopes"), now.Spec.Scopes, "field is immutable")}
		},
		ValidateStatus: func(now, _ quota) field.ErrorList {
			at := field.NewPath("status")
			return append(quotaAmounts(now.Status.Hard, at.Child("hard")), quotaAmounts(now.Status.Used, at.Child("used"))...)
		},
		Warn: quotaWarnings,
		Columns: []rest.Column[quota]{
			{Name: "Request", Description: "Request represents a minimum amount of cpu/memory that a container may consume.", Cell: func(q quota) any { return quotaText(q, false) }},
			{Name: "Limit", Description: "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.", Cell: func(q quota) any { return quotaText(q, true) }},
			{Name: "Age"},
		},
	}
}

// quotaText is how much of what is bounded is used, of limits or of everything else.
func quotaText(q *corev1.ResourceQuota, limits bool) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(q.Status.Hard)) {
		if strings.HasPrefix(string(name), "limits.") != limits {
			continue
		}
		used, hard := q.Status.Used[name], q.Status.Hard[name]
		parts = append(parts, fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String()))
	}
	return strings.Join(parts, ", ")
}

func quotaAmounts(l corev1.ResourceList, at *field.Path) (errs field.ErrorList) {
	for _, name := range slices.Sorted(maps.Keys(l)) {
		p, q := at.Key(string(name)), l[name]
		errs = append(errs, podspec.ResourceName(name, p)...)
		if !strings.Contains(string(name), "/") && !bounded(name) {
			errs = append(errs, field.Invalid(p, name, "must be a standard resource for quota"))
		}
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(p, q.String(), "must be greater than or equal to 0"))
		}
		if (counted(name) || podspec.Extended(name)) && q.MilliValue()%1000 != 0 {
			errs = append(errs, field.Invalid(p, q, "must be an integer"))
		}
	}
	return errs
}

// counted are the resources that are numbers of objects.
func counted(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return false
}

// bounded are the resources without a domain that a quota can bound.
func bounded(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
		corev1.ResourceRequestsStorage, corev1.ResourceRequestsEphemeralStorage, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
		corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return counted(name) || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

func knownScope(s corev1.ResourceQuotaScope) bool {
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
		corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity,
		corev1.ResourceQuotaScopeVolumeAttributesClass:
		return true
	}
	return false
}

// scopeBounds says whether objects in the scope use the resource.
func scopeBounds(s corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch s {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	if !knownScope(s) {
		return true
	}
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory:
		return true
	}
	return false
}

// misapplied is an error for each bounded resource that the scope has nothing to do with.
func misapplied(s *corev1.ResourceQuotaSpec, scope corev1.ResourceQuotaScope, at *field.Path, value any) (errs field.ErrorList) {
	for _, name := range slices.Sorted(maps.Keys(s.Hard)) {
		if bounded(name) && !scopeBounds(scope, name) {
			errs = append(errs, field.Invalid(at, value, "unsupported scope applied to resource"))
		}
	}
	return errs
}

// contradicting is an error for each pair of scopes that no object is in.
func contradicting(s *corev1.ResourceQuotaSpec, has map[corev1.ResourceQuotaScope]bool, at *field.Path) (errs field.ErrorList) {
	if has[corev1.ResourceQuotaScopeBestEffort] && has[corev1.ResourceQuotaScopeNotBestEffort] {
		errs = append(errs, field.Invalid(at, s.Scopes, "conflicting scopes"))
	}
	if has[corev1.ResourceQuotaScopeTerminating] && has[corev1.ResourceQuotaScopeNotTerminating] {
		errs = append(errs, field.Invalid(at, s.Scopes, "conflicting scopes"))
	}
	return errs
}

func quotaScopes(s *corev1.ResourceQuotaSpec, at *field.Path) (errs field.ErrorList) {
	has := map[corev1.ResourceQuotaScope]bool{}
	for _, scope := range s.Scopes {
		if !knownScope(scope) {
			errs = append(errs, field.Invalid(at, s.Scopes, "unsupported scope"))
		}
		errs = append(errs, misapplied(s, scope, at, s.Scopes)...)
		has[scope] = true
	}
	return append(errs, contradicting(s, has, at)...)
}

func quotaSelector(s *corev1.ResourceQuotaSpec, at *field.Path) (errs field.ErrorList) {
	if s.ScopeSelector == nil {
		return nil
	}
	has := map[corev1.ResourceQuotaScope]bool{}
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !knownScope(r.ScopeName) {
			errs = append(errs, field.Invalid(at.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		errs = append(errs, misapplied(s, r.ScopeName, at, s.ScopeSelector)...)
		switch r.ScopeName {
		case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeTerminating,
			corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			if r.Operator != corev1.ScopeSelectorOpExists {
				errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, "+
					"ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
			}
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				errs = append(errs, field.Invalid(at.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		has[r.ScopeName] = true
	}
	return append(errs, contradicting(s, has, at)...)
}

// quotaWarnings tell of requests that are allowed more than limits.
func quotaWarnings(q, old *corev1.ResourceQuota) (warnings []string) {
	if old != nil {
		return nil
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceStorage, corev1.ResourceEphemeralStorage} {
		requests, limits := "requests."+name, "limits."+name
		request, ok := q.Spec.Hard[requests]
		if !ok && (name == corev1.ResourceCPU || name == corev1.ResourceMemory) {
			if request, ok = q.Spec.Hard[name]; ok {
				requests = name
			}
		}
		if limit, both := q.Spec.Hard[limits]; ok && both && request.Cmp(limit) > 0 {
			warnings = append(warnings, fmt.Sprintf("ResourceQuota %s (%s) should be less than %s (%s)", requests, request.String(), limits, limit.String()))
		}
	}
	return warnings
}
