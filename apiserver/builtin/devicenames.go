package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	devicecel "k8s.io/dynamic-resource-allocation/cel"
)

// What the kinds of dynamic resource allocation have alike: names, lists with limits, selectors and taints.

const (
	maxPoolName   = 253
	maxIdentifier = 32
)

// atMost checks a list of at most so many items.
func atMost[T any](items []T, most int, at *field.Path, check func(item *T, at *field.Path) field.ErrorList) (errs field.ErrorList) {
	if len(items) > most {
		return field.ErrorList{field.TooMany(at, len(items), most)}
	}
	for i := range items {
		errs = append(errs, check(&items[i], at.Index(i))...)
	}
	return errs
}

// distinct says which items are there before under the same key.
func distinct[T any, K comparable](items []T, at *field.Path, key func(T) K) (errs field.ErrorList) {
	seen := map[K]bool{}
	for i, item := range items {
		k := key(item)
		if seen[k] {
			errs = append(errs, field.Duplicate(at.Index(i), item))
		}
		seen[k] = true
	}
	return errs
}

func self[T any](v T) T { return v }

func labelName(name string, at *field.Path) field.ErrorList { return texts(at, name, isLabel(name)) }

// coveredDriver checks a driver's name where upstream does by generated rules.
func coveredDriver(name string, at *field.Path) field.ErrorList { return attacher(name, at) }

// poolName checks a name like "node-1/gpus". Upstream's two ways to say what is wrong differ; generated is that of its
// generated rules.
func poolName(name string, generated bool, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(name) > maxPoolName {
		errs = append(errs, field.TooLong(at, "", maxPoolName))
	}
	for i, part := range strings.Split(name, "/") {
		if !generated {
			errs = append(errs, texts(at, part, validation.IsDNS1123Subdomain(part))...)
			continue
		}
		prefix := fmt.Sprintf("segment %d: ", i)
		if part == "" {
			errs = append(errs, field.Invalid(at, name, prefix+"must not be empty"))
			continue
		}
		for _, m := range validation.IsDNS1123Subdomain(part) {
			errs = append(errs, field.Invalid(at, part, prefix+m))
		}
	}
	return errs
}

func shareID(id string, at *field.Path) field.ErrorList {
	ok := len(id) == 36
	for i := 0; ok && i < len(id); i++ {
		switch c := id[i]; i {
		case 8, 13, 18, 23:
			ok = c == '-'
		default:
			ok = c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		}
	}
	if ok {
		return nil
	}
	return field.ErrorList{field.Invalid(at, id, "must be a lowercase UUID in 8-4-4-4-12 format")}
}

func identifier(id string, at *field.Path) (errs field.ErrorList) {
	if len(id) > maxIdentifier {
		errs = append(errs, field.TooLong(at, "", maxIdentifier))
	}
	return append(errs, texts(at, id, content.IsCIdentifier(id))...)
}

// qualified checks the name of an attribute or capacity: an identifier, which a domain may go before.
func qualified(name resourcev1.QualifiedName, at *field.Path) (errs field.ErrorList) {
	domain, id, ok := strings.Cut(string(name), "/")
	switch {
	case !ok:
		return identifier(string(name), at)
	case strings.Contains(id, "/"):
		return nil // as upstream, which looks at names of one or two parts
	case domain == "":
		errs = append(errs, field.Invalid(at, "", "the domain must not be empty"))
	default:
		errs = append(errs, driverName(domain, at)...)
	}
	if id == "" {
		return append(errs, field.Invalid(at, "", "the name must not be empty"))
	}
	return append(errs, identifier(id, at)...)
}

// fullyQualified checks the name of an attribute in a claim, which stands for no driver's own.
func fullyQualified(name resourcev1.FullyQualifiedName, at *field.Path) (errs field.ErrorList) {
	domain, id, ok := strings.Cut(string(name), "/")
	switch {
	case !ok:
		errs = append(identifier(string(name), at), field.Invalid(at, string(name), "a fully qualified name must be a domain and a name separated by a slash"))
		return errs
	case strings.Contains(id, "/"):
		return nil
	case domain == "":
		errs = append(errs, field.Invalid(at, "", "prefix must not be empty"))
	default:
		if len(domain) > maxDriverName {
			errs = append(errs, field.TooLong(at, "", maxDriverName))
		}
		for _, m := range validation.IsDNS1123Subdomain(domain) {
			errs = append(errs, field.Invalid(at, domain, "prefix: "+m))
		}
	}
	if id == "" {
		return append(errs, field.Invalid(at, "", "name must not be empty"))
	}
	return append(errs, identifier(id, at)...)
}

// deviceSelectors compiles what selects devices.
func deviceSelectors(selectors []resourcev1.DeviceSelector, at *field.Path) field.ErrorList {
	return atMost(selectors, resourcev1.DeviceSelectorsMaxSize, at, func(s *resourcev1.DeviceSelector, at *field.Path) field.ErrorList {
		at = at.Child("cel")
		if s.CEL == nil {
			return field.ErrorList{field.Required(at, "")}
		}
		at = at.Child("expression")
		text := s.CEL.Expression
		if len(text) > resourcev1.CELSelectorExpressionMaxLength {
			return field.ErrorList{field.TooLong(at, "", resourcev1.CELSelectorExpressionMaxLength)}
		}
		fresh := environment.NewExpressions
		result := devicecel.GetCompiler(devicecel.Features{EnableConsumableCapacity: true}).CompileCELExpression(text, devicecel.Options{EnvType: &fresh})
		switch {
		case result.Error != nil:
			return celError(result.Error, text, at)
		case result.MaxCost > resourcev1.CELSelectorExpressionMaxCost:
			return field.ErrorList{field.Forbidden(at, "too complex, exceeds cost limit")}
		}
		return nil
	})
}

// deviceConfig checks the parameters of a driver, which are opaque but for being an object.
func deviceConfig(c *resourcev1.DeviceConfiguration, at *field.Path) field.ErrorList {
	at = at.Child("opaque")
	if c.Opaque == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	return append(rawObject(&c.Opaque.Parameters, resourcev1.OpaqueParametersMaxLength, at.Child("parameters")), coveredDriver(c.Opaque.Driver, at.Child("driver"))...)
}

func rawObject(raw *runtime.RawExtension, most int, at *field.Path) field.ErrorList {
	var v any
	switch {
	case len(raw.Raw) == 0:
		return field.ErrorList{field.Required(at, "")}
	case len(raw.Raw) > most:
		return field.ErrorList{field.TooLong(at, "", most)}
	}
	if err := json.Unmarshal(raw.Raw, &v); err != nil {
		return field.ErrorList{field.Invalid(at, omitted, fmt.Sprintf("error parsing data as JSON: %v", err))}
	}
	if v == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	if _, ok := v.(map[string]any); !ok {
		return field.ErrorList{field.Invalid(at, omitted, "must be a valid JSON object")}
	}
	return nil
}

func taintEffects() []resourcev1.DeviceTaintEffect {
	return []resourcev1.DeviceTaintEffect{resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone}
}

func deviceTaint(t *resourcev1.DeviceTaint, at *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabelName(t.Key, at.Child("key"))
	errs = append(errs, texts(at.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
	return append(errs, oneOf(at.Child("effect"), t.Effect, taintEffects()...)...)
}

func deviceToleration(t *resourcev1.DeviceToleration, at *field.Path) (errs field.ErrorList) {
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(at.Child("value"), t.Value, "must be empty for operator `Exists`"))
		}
	case resourcev1.DeviceTolerationOpEqual:
		errs = append(errs, texts(at.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
	}
	if t.Key != "" {
		errs = append(errs, texts(at.Child("key"), t.Key, content.IsLabelKey(t.Key))...)
	}
	errs = append(errs, oneOf(at.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)...)
	if t.Effect != "" {
		errs = append(errs, oneOf(at.Child("effect"), t.Effect, taintEffects()...)...)
	}
	return errs
}

func deviceTolerations(ts []resourcev1.DeviceToleration, at *field.Path) (errs field.ErrorList) {
	for i := range ts {
		errs = append(errs, deviceToleration(&ts[i], at.Index(i))...)
	}
	return errs
}

// bindingConditions checks the conditions that a device waits for, and those that say that it waits in vain.
func bindingConditions(wanted, failed []string, at *field.Path) field.ErrorList {
	want, fail := at.Child("bindingConditions"), at.Child("bindingFailureConditions")
	name := func(s *string, at *field.Path) field.ErrorList { return metavalidation.ValidateLabelName(*s, at) }
	errs := atMost(wanted, resourcev1.BindingConditionsMaxSize, want, name)
	errs = append(errs, atMost(failed, resourcev1.BindingFailureConditionsMaxSize, fail, name)...)
	errs = append(errs, distinct(wanted, want, self)...)
	errs = append(errs, distinct(failed, fail, self)...)
	for i, c := range failed {
		if slices.Contains(wanted, c) {
			errs = append(errs, field.Invalid(fail.Index(i), c, "bindingFailureConditions must not overlap with bindingConditions"))
		}
	}
	if len(wanted) == 0 && len(failed) > 0 {
		errs = append(errs, field.Invalid(want, wanted, "bindingConditions are required to use bindingFailureConditions"))
	}
	if len(failed) == 0 && len(wanted) > 0 {
		errs = append(errs, field.Invalid(fail, failed, "bindingFailureConditions are required to use bindingConditions"))
	}
	return errs
}

// inOrder returns the keys of a map in the order in which its errors are told.
func inOrder[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
