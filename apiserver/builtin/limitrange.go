package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func limitRanges() *rest.Resource[*corev1.LimitRange] {
	return &rest.Resource[*corev1.LimitRange]{
		CreateOnUpdate: true,
		NoGeneration:   true,
		Default: func(l *corev1.LimitRange) {
			for i := range l.Spec.Limits {
				defaultLimits(&l.Spec.Limits[i])
			}
		},
		Prepare: func(l *corev1.LimitRange) {
			if l.Name == "" {
				l.Name = string(uuid.NewUUID())
			}
		},
		Validate: func(l *corev1.LimitRange) (errs field.ErrorList) {
			seen := map[corev1.LimitType]bool{}
			for i := range l.Spec.Limits {
				item, at := &l.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
				errs = append(errs, limitType(item.Type, at.Child("type"))...)
				if seen[item.Type] {
					errs = append(errs, field.Duplicate(at.Child("type"), item.Type))
				}
				seen[item.Type] = true
				errs = append(errs, limits(item, at)...)
			}
			return errs
		},
	}
}

// defaultLimits completes what is said of containers: the greatest limit is the default one, and what is limited by default
// is requested by default.
func defaultLimits(l *corev1.LimitRangeItem) {
	if l.Type == corev1.LimitTypeContainer {
		setList(&l.Default, l.Max)
		setList(&l.DefaultRequest, l.Default)
		setList(&l.DefaultRequest, l.Min)
	}
	for _, list := range []corev1.ResourceList{l.Max, l.Min, l.Default, l.DefaultRequest, l.MaxLimitRequestRatio} {
		podspec.RoundUp(list)
	}
}

// setList adds to l what from has and l lacks.
func setList(l *corev1.ResourceList, from corev1.ResourceList) {
	if *l == nil {
		*l = corev1.ResourceList{}
	}
	for name, q := range from {
		if _, ok := (*l)[name]; !ok {
			(*l)[name] = q.DeepCopy()
		}
	}
}

func limitType(t corev1.LimitType, at *field.Path) field.ErrorList {
	errs := texts(at, t, validation.IsQualifiedName(string(t)))
	if len(errs) > 0 || strings.Contains(string(t), "/") {
		return errs
	}
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
		return nil
	}
	return field.ErrorList{field.Invalid(at, t, "must be a standard limit type or fully qualified")}
}

func limits(l *corev1.LimitRangeItem, at *field.Path) (errs field.ErrorList) {
	name := podspec.ResourceName
	if l.Type == corev1.LimitTypePod || l.Type == corev1.LimitTypeContainer {
		name = podspec.ContainerResource
	}
	keys := corev1.ResourceList{}
	names := func(list corev1.ResourceList, child string) {
		for _, r := range slices.Sorted(maps.Keys(list)) {
			errs = append(errs, name(r, at.Child(child).Key(string(r)))...)
			keys[r] = resource.Quantity{}
		}
	}
	names(l.Max, "max")
	names(l.Min, "min")
	if l.Type == corev1.LimitTypePod {
		for _, d := range []struct {
			name string
			list corev1.ResourceList
		}{{"default", l.Default}, {"defaultRequest", l.DefaultRequest}} {
			if len(d.list) > 0 {
				errs = append(errs, field.Forbidden(at.Child(d.name), "may not be specified when `type` is 'Pod'"))
			}
		}
		l = &corev1.LimitRangeItem{Max: l.Max, Min: l.Min, MaxLimitRequestRatio: l.MaxLimitRequestRatio}
	}
	names(l.Default, "default")
	names(l.DefaultRequest, "defaultRequest")
	if l.Type == corev1.LimitTypePersistentVolumeClaim {
		_, least := l.Min[corev1.ResourceStorage]
		_, most := l.Max[corev1.ResourceStorage]
		if !least && !most {
			errs = append(errs, field.Required(at.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
		}
	}
	names(l.MaxLimitRequestRatio, "maxLimitRequestRatio")
	for _, r := range slices.Sorted(maps.Keys(keys)) {
		errs = append(errs, limitOrder(l, r, at)...)
		errs = append(errs, limitRatio(l, r, at)...)
	}
	return errs
}

// limitOrder checks that the amounts of resource r rise as they should: min, default request, default, max.
func limitOrder(l *corev1.LimitRangeItem, r corev1.ResourceName, at *field.Path) (errs field.ErrorList) {
	least, hasMin := l.Min[r]
	most, hasMax := l.Max[r]
	limit, hasLimit := l.Default[r]
	request, hasRequest := l.DefaultRequest[r]
	// order says that low, called so in the text, is more than high.
	order := func(both bool, low, high resource.Quantity, lowName, highName, child string, shown resource.Quantity) {
		if both && low.Cmp(high) > 0 {
			errs = append(errs, field.Invalid(at.Child(child).Key(string(r)), shown,
				fmt.Sprintf("%s value %s is greater than %s value %s", lowName, low.String(), highName, high.String())))
		}
	}
	order(hasMin && hasMax, least, most, "min", "max", "min", least)
	order(hasRequest && hasMin, least, request, "min", "default request", "defaultRequest", request)
	order(hasRequest && hasMax, request, most, "default request", "max", "defaultRequest", request)
	order(hasRequest && hasLimit, request, limit, "default request", "default limit", "defaultRequest", request)
	order(hasLimit && hasMin, least, limit, "min", "default", "default", least)
	order(hasLimit && hasMax, limit, most, "default", "max", "default", most)
	if hasLimit && hasRequest && !podspec.MayOvercommit(r) && limit.Cmp(request) != 0 {
		errs = append(errs, field.Invalid(at.Child("defaultRequest").Key(string(r)), request,
			fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", limit.String(), request.String(), r)))
	}
	return errs
}

// limitRatio checks by how much limits may exceed requests: at least by nothing, and not by more than max exceeds min.
func limitRatio(l *corev1.LimitRangeItem, r corev1.ResourceName, at *field.Path) (errs field.ErrorList) {
	ratio, ok := l.MaxLimitRequestRatio[r]
	if !ok {
		return nil
	}
	at = at.Child("maxLimitRequestRatio").Key(string(r))
	if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
		errs = append(errs, field.Invalid(at, ratio, fmt.Sprintf("ratio %s is less than 1", ratio.String())))
	}
	least, hasMin := l.Min[r]
	most, hasMax := l.Max[r]
	if !hasMin || !hasMax {
		return errs
	}
	is, low, high := float64(ratio.Value()), least.Value(), most.Value()
	if ratio.Value() < resource.MaxMilliValue && low < resource.MaxMilliValue && high < resource.MaxMilliValue {
		is, low, high = float64(ratio.MilliValue())/1000, least.MilliValue(), most.MilliValue()
	}
	if may := float64(high) / float64(low); is > may {
		errs = append(errs, field.Invalid(at, ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), may)))
	}
	return errs
}
