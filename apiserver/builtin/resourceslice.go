package builtin

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of what a slice says of devices.
const (
	maxDevices           = 128
	maxAdvancedDevices   = 64 // with taints or counters
	maxCounterSets       = 8
	maxCounters          = 32
	maxConsumptions      = 2
	maxDeviceAttributes  = 32
	maxAttributeValues   = 48
	maxAttributeLength   = 64
	maxPolicyValues      = 10
	maxQualified         = 63 + 1 + maxIdentifier
	capacityNotPermitted = "allowMultipleAllocations must be true"
)

// resourceSlices say which devices there are.
func resourceSlices() *rest.Resource[*resourcev1.ResourceSlice] {
	type slice = *resourcev1.ResourceSlice
	doc := resourcev1.ResourceSliceSpec{}.SwaggerDoc()
	return &rest.Resource[slice]{
		AnswerDeleted: true,
		Default: func(s slice) {
			for i := range s.Spec.Devices {
				for j := range s.Spec.Devices[i].Taints {
					defaultTaint(&s.Spec.Devices[i].Taints[j])
				}
			}
		},
		Prepare:        func(s slice) { dropAlpha(&s.Spec) },
		PrepareUpdate:  func(now, _ slice) { dropAlpha(&now.Spec) },
		ValidateCreate: func(s slice) field.ErrorList { return sliceErrors(&s.Spec, nil) },
		ValidateUpdate: func(now, old slice) field.ErrorList {
			at := field.NewPath("spec")
			errs := immutable(now.Spec.Pool.Name, old.Spec.Pool.Name, at.Child("pool", "name"))
			errs = append(errs, immutable(now.Spec.Driver, old.Spec.Driver, at.Child("driver"))...)
			errs = append(errs, immutable(now.Spec.NodeName, old.Spec.NodeName, at.Child("nodeName"))...)
			return append(errs, sliceErrors(&now.Spec, &old.Spec)...)
		},
		Warn: func(s, _ slice) []string {
			if n := s.Spec.Driver; n != strings.ToLower(n) {
				return []string{fmt.Sprintf("spec.driver: driver names should be lowercase; %q contains uppercase characters", n)}
			}
			return nil
		},
		Fields: func(s slice) fields.Set {
			return fields.Set{"spec.nodeName": deref(s.Spec.NodeName), "spec.driver": s.Spec.Driver, "spec.pool.name": s.Spec.Pool.Name}
		},
		Columns: []rest.Column[slice]{
			{Name: "Node", Description: doc["nodeName"], Cell: func(s slice) any { return deref(s.Spec.NodeName) }},
			{Name: "Driver", Description: doc["driver"], Cell: func(s slice) any { return s.Spec.Driver }},
			{Name: "Pool", Description: resourcev1.ResourcePool{}.SwaggerDoc()["name"], Cell: func(s slice) any { return s.Spec.Pool.Name }},
			{Name: "Age"},
		},
	}
}

// dropAlpha removes what belongs to alpha features of upstream, off by default there.
func dropAlpha(s *resourcev1.ResourceSliceSpec) {
	s.PartitionTypeAttribute, s.SkipNodeOperations = nil, nil
	for i := range s.Devices {
		d := &s.Devices[i]
		d.NodeAllocatableResources = nil
		for j := range d.ConsumesCounters {
			d.ConsumesCounters[j].CompatibilityGroups = nil
		}
		for k, a := range d.Attributes {
			a.IntValues, a.BoolValues, a.StringValues, a.VersionValues = nil, nil, nil, nil
			d.Attributes[k] = a
		}
	}
}

func sliceErrors(s, old *resourcev1.ResourceSliceSpec) field.ErrorList {
	at := field.NewPath("spec")
	errs := driverName(s.Driver, at.Child("driver"))
	errs = append(errs, poolName(s.Pool.Name, false, at.Child("pool", "name"))...)
	if n := s.Pool.ResourceSliceCount; n <= 0 {
		errs = append(errs, field.Invalid(at.Child("pool", "resourceSliceCount"), n, "must be greater than zero"))
	}
	if n := s.Pool.Generation; n < 0 {
		errs = append(errs, field.Invalid(at.Child("pool", "generation"), n, "must be greater than or equal to zero"))
	}
	errs = append(errs, sliceNodes(s, at)...)
	if s.SharedCounters != nil && s.Devices != nil {
		errs = append(errs, field.Invalid(at, "", "only one of `sharedCounters` or `devices` is allowed"))
	}
	most, devices := maxDevices, at.Child("devices")
	if slices.ContainsFunc(s.Devices, func(d resourcev1.Device) bool { return len(d.Taints) > 0 || len(d.ConsumesCounters) > 0 }) {
		most = maxAdvancedDevices
	}
	errs = append(errs, atMost(s.Devices, most, devices, func(d *resourcev1.Device, at *field.Path) field.ErrorList {
		var was *resourcev1.Device
		if old != nil {
			if i := slices.IndexFunc(old.Devices, func(o resourcev1.Device) bool { return o.Name == d.Name }); i >= 0 {
				was = &old.Devices[i]
			}
		}
		return device(d, was, deref(s.PerDeviceNodeSelection), at)
	})...)
	if len(s.Devices) <= most {
		seen := map[string]bool{}
		for i, d := range s.Devices {
			if seen[d.Name] {
				errs = append(errs, field.Duplicate(devices.Index(i), d.Name))
			}
			seen[d.Name] = true
		}
	}
	counters := at.Child("sharedCounters")
	errs = append(errs, atMost(s.SharedCounters, maxCounterSets, counters, func(c *resourcev1.CounterSet, at *field.Path) field.ErrorList {
		return counterSet(c.Name, c.Counters, at.Child("name"), at.Child("counters"))
	})...)
	if len(s.SharedCounters) <= maxCounterSets {
		errs = append(errs, distinct(s.SharedCounters, counters, func(c resourcev1.CounterSet) string { return c.Name })...)
	}
	return errs
}

// counterSet checks counters and the name of their set.
func counterSet(name string, counters map[string]resourcev1.Counter, nameAt, at *field.Path) field.ErrorList {
	errs := requiredName(name, nameAt, isLabel)
	switch n := len(counters); {
	case n == 0:
		return append(errs, field.Required(at, ""))
	case n > maxCounters:
		return append(errs, field.TooMany(at, n, maxCounters))
	}
	for _, k := range inOrder(counters) {
		errs = append(errs, labelName(k, at)...)
	}
	return errs
}

// sliceNodes checks which nodes have the devices: all, one, those that a selector finds, or each device its own.
func sliceNodes(s *resourcev1.ResourceSliceSpec, at *field.Path) (errs field.ErrorList) {
	var set []string
	if n := s.NodeName; n != nil {
		if *n == "" {
			errs = append(errs, field.Invalid(at.Child("nodeName"), "", "must be either unset or set to a non-empty string"))
		} else {
			set = append(set, "`nodeName`")
			errs = append(errs, texts(at.Child("nodeName"), *n, isName(*n))...)
		}
	}
	if n := s.NodeSelector; n != nil {
		set = append(set, "`nodeSelector`")
		errs = append(errs, podspec.NodeSelector(n, at.Child("nodeSelector"))...)
		if len(n.NodeSelectorTerms) != 1 {
			errs = append(errs, field.Invalid(at.Child("nodeSelector", "nodeSelectorTerms"), n.NodeSelectorTerms, "must have exactly one node selector term"))
		}
	}
	flag := func(b *bool, name string) {
		switch {
		case b == nil:
		case *b:
			set = append(set, "`"+name+"`")
		default:
			errs = append(errs, field.Invalid(at.Child(name), false, "must be either unset or set to true"))
		}
	}
	flag(s.AllNodes, "allNodes")
	flag(s.PerDeviceNodeSelection, "perDeviceNodeSelection")
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch len(set) {
	case 0:
		errs = append(errs, field.Required(at, one))
	case 1:
	default:
		errs = append(errs, field.Invalid(at, "{"+strings.Join(set, ", ")+"}", one+", but multiple fields are set"))
	}
	return errs
}

func device(d, old *resourcev1.Device, own bool, at *field.Path) field.ErrorList {
	errs := labelName(d.Name, at.Child("name"))
	if n := len(d.Attributes) + len(d.Capacity); n > maxDeviceAttributes {
		errs = append(errs, field.Invalid(at, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", maxDeviceAttributes)))
	}
	if n := len(d.Attributes); n > maxAttributeValues {
		errs = append(errs, field.Invalid(at, n, fmt.Sprintf("the total number of attribute values must not exceed %d", maxAttributeValues)))
	}
	attributes, capacity := at.Child("attributes"), at.Child("capacity")
	for _, k := range inOrder(d.Attributes) {
		a := d.Attributes[k]
		errs = append(errs, qualified(k, attributes)...)
		errs = append(errs, deviceAttribute(&a, attributes.Key(shortened(string(k))))...)
	}
	if old == nil || !equality.Semantic.DeepEqual(old.Capacity, d.Capacity) {
		for _, k := range inOrder(d.Capacity) {
			c, at := d.Capacity[k], capacity.Key(shortened(string(k))).Child("requestPolicy")
			errs = append(errs, qualified(k, capacity)...)
			switch {
			case c.RequestPolicy == nil:
			case deref(d.AllowMultipleAllocations):
				errs = append(errs, requestPolicy(&c.Value, c.RequestPolicy, at)...)
			default:
				errs = append(errs, field.Forbidden(at, capacityNotPermitted))
			}
		}
	}
	if old == nil || !equality.Semantic.DeepEqual(old.Taints, d.Taints) {
		errs = append(errs, atMost(d.Taints, resourcev1.DeviceTaintsMaxLength, at.Child("taints"), deviceTaint)...)
	}
	errs = append(errs, deviceNodes(d, own, at)...)
	errs = append(errs, bindingConditions(d.BindingConditions, d.BindingFailureConditions, at)...)
	consumes := at.Child("consumesCounters")
	errs = append(errs, atMost(d.ConsumesCounters, maxConsumptions, consumes, func(c *resourcev1.DeviceCounterConsumption, at *field.Path) field.ErrorList {
		return counterSet(c.CounterSet, c.Counters, at.Child("counterSet"), at.Child("counters"))
	})...)
	if len(d.ConsumesCounters) <= maxConsumptions {
		errs = append(errs, distinct(d.ConsumesCounters, consumes, func(c resourcev1.DeviceCounterConsumption) string { return c.CounterSet })...)
	}
	return errs
}

// shortened is a key as paths of errors show it.
func shortened(key string) string {
	if len(key) <= maxQualified {
		return key
	}
	const dots = "..."
	left := maxQualified - len(dots)
	return key[:(left+1)/2] + dots + key[len(key)-left/2:]
}

// deviceNodes checks the nodes of one device, where each has its own.
func deviceNodes(d *resourcev1.Device, own bool, at *field.Path) (errs field.ErrorList) {
	if !own {
		if d.NodeName != nil || d.NodeSelector != nil || d.AllNodes != nil {
			errs = append(errs, field.Invalid(at, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"))
		}
		return errs
	}
	var set []string
	if n := d.NodeName; n != nil {
		if *n == "" {
			errs = append(errs, field.Invalid(at.Child("nodeName"), "", "must not be empty"))
		} else {
			set = append(set, "`nodeName`")
			errs = append(errs, texts(at.Child("nodeName"), *n, isName(*n))...)
		}
	}
	if d.NodeSelector != nil {
		set = append(set, "`nodeSelector`")
		errs = append(errs, podspec.NodeSelector(d.NodeSelector, at.Child("nodeSelector"))...)
	}
	if b := d.AllNodes; b != nil {
		if *b {
			set = append(set, "`allNodes`")
		} else {
			errs = append(errs, field.Invalid(at.Child("allNodes"), false, "must be either unset or set to true"))
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
	switch len(set) {
	case 0:
		errs = append(errs, field.Required(at, one))
	case 1:
	default:
		errs = append(errs, field.Invalid(at, "{"+strings.Join(set, ", ")+"}", one))
	}
	return errs
}

func deviceAttribute(a *resourcev1.DeviceAttribute, at *field.Path) (errs field.ErrorList) {
	if s := a.StringValue; s != nil && len(*s) > maxAttributeLength {
		errs = append(errs, field.TooLong(at.Child("string"), "", maxAttributeLength))
	}
	if v := a.VersionValue; v != nil {
		if !semantic(*v) {
			errs = append(errs, field.Invalid(at.Child("version"), *v, "must be a string compatible with semver.org spec 2.0.0"))
		}
		if len(*v) > maxAttributeLength {
			errs = append(errs, field.TooLong(at.Child("version"), "", maxAttributeLength))
		}
	}
	const all = "`int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"
	var set []string
	for _, v := range []struct {
		name string
		set  bool
	}{{"int", a.IntValue != nil}, {"bool", a.BoolValue != nil}, {"string", a.StringValue != nil}, {"version", a.VersionValue != nil}} {
		if v.set {
			set = append(set, v.name)
		}
	}
	switch len(set) {
	case 0:
		errs = append(errs, field.Invalid(at, "", "must specify one of: "+all))
	case 1:
	default:
		errs = append(errs, field.Invalid(at, "{"+strings.Join(set, ", ")+"}", "must specify exactly one of: "+all))
	}
	return errs
}

// semantic says whether v is a version by semver.org 2.0.0.
func semantic(v string) bool {
	const (
		number = `(0|[1-9]\d*)`
		before = `(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)`
		build  = `[0-9a-zA-Z-]+`
	)
	ok, err := regexp.MatchString(`^`+number+`\.`+number+`\.`+number+`(-`+before+`(\.`+before+`)*)?(\+`+build+`(\.`+build+`)*)?$`, v)
	return ok && err == nil
}

// requestPolicy checks how much of a shared capacity claims may ask for.
func requestPolicy(most *resource.Quantity, p *resourcev1.CapacityRequestPolicy, at *field.Path) field.ErrorList {
	standard := at.Child("default")
	switch {
	case len(p.ValidValues) > 0 && p.ValidRange != nil:
		return field.ErrorList{field.Forbidden(at, `exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time`)}
	case len(p.ValidValues) > 0 && p.Default == nil:
		return field.ErrorList{field.Required(standard, "required when validValues is defined")}
	case len(p.ValidValues) > 0:
		return validValues(p.Default, most, p.ValidValues, at.Child("validValues"))
	case p.ValidRange != nil && p.Default == nil:
		return field.ErrorList{field.Required(standard, "required when validRange is defined")}
	case p.ValidRange != nil:
		return validRange(p.Default, most, p.ValidRange, at.Child("validRange"))
	}
	return nil
}

func validValues(standard, most *resource.Quantity, values []resource.Quantity, at *field.Path) (errs field.ErrorList) {
	for i := 1; i < len(values); i++ {
		if values[i-1].Cmp(values[i]) > 0 {
			errs = append(errs, field.Invalid(at.Index(i), values[i].String(), "values must be sorted in ascending order"))
		}
	}
	found := false
	if n := len(values); n > maxPolicyValues {
		errs = append(errs, field.TooMany(at, n, maxPolicyValues))
	} else {
		seen := map[string]bool{}
		for i := range values {
			if values[i].Cmp(*most) > 0 {
				errs = append(errs, field.Invalid(at.Index(i), values[i].String(), "option is larger than capacity value: "+most.String()))
			}
			found = found || values[i].Cmp(*standard) == 0
		}
		for i := range values {
			key := strconv.FormatInt(values[i].Value(), 10)
			if seen[key] {
				errs = append(errs, field.Duplicate(at.Index(i), key))
			}
			seen[key] = true
		}
	}
	if !found {
		errs = append(errs, field.Invalid(at, standard.String(), "default value is not valid according to the requestPolicy"))
	}
	return errs
}

func validRange(standard, most *resource.Quantity, r *resourcev1.CapacityRequestPolicyRange, at *field.Path) (errs field.ErrorList) {
	wrong := func(name string, q *resource.Quantity, text string, than *resource.Quantity) {
		errs = append(errs, field.Invalid(at.Child(name), q.String(), text+than.String()))
	}
	if r.Min == nil {
		return field.ErrorList{field.Required(at.Child("min"), "required when validRange is defined")}
	}
	if r.Min.Cmp(*most) > 0 {
		wrong("min", r.Min, "min is larger than capacity value: ", most)
	}
	if standard.Cmp(*r.Min) < 0 {
		wrong("default", standard, "default is less than min: ", r.Min)
	}
	if r.Max != nil {
		if r.Min.Cmp(*r.Max) > 0 {
			wrong("max", r.Min, "min is larger than max: ", r.Max)
		}
		if r.Max.Cmp(*most) > 0 {
			wrong("max", r.Max, "max is larger than capacity value: ", most)
		}
		if standard.Cmp(*r.Max) > 0 {
			wrong("default", standard, "default is more than max: ", r.Max)
		}
	}
	return append(errs, rangeSteps(standard, most, r, at)...)
}

// rangeSteps checks that the bounds of a range can be counted with and lie on its steps.
func rangeSteps(standard, most *resource.Quantity, r *resourcev1.CapacityRequestPolicyRange, at *field.Path) (errs field.ErrorList) {
	if r.Step == nil {
		return nil
	}
	step := at.Child("step")
	if r.Step.Sign() <= 0 {
		return field.ErrorList{field.Invalid(step, r.Step.String(), "must be greater than zero")}
	}
	sum := r.Min.DeepCopy()
	if sum.Add(*r.Step); sum.Cmp(*most) > 0 {
		errs = append(errs, field.Invalid(step, r.Step.String(), fmt.Sprintf("one step %s is larger than capacity value: %s", sum.String(), most.String())))
	}
	countable := true
	parts := map[string]*resource.Quantity{"default": standard, "max": r.Max, "min": r.Min, "step": r.Step}
	for _, name := range inOrder(parts) {
		text := ""
		switch q := parts[name]; {
		case q == nil:
			continue
		case q.Sign() < 0:
			text = "must be greater than or equal to 0"
		case q.CmpInt64(math.MaxInt64) > 0:
			text = "must not be larger than 9223372036854775807"
		default:
			continue
		}
		errs = append(errs, field.Invalid(at.Child(name), parts[name].String(), text))
		countable = false
	}
	if !countable {
		return errs
	}
	errs = append(errs, onStep(standard, r, step)...)
	if r.Max != nil {
		errs = append(errs, onStep(r.Max, r, step)...)
	}
	return errs
}

// onStep checks that q is some steps above the least, in whole units, as which upstream counts by default.
func onStep(q *resource.Quantity, r *resourcev1.CapacityRequestPolicyRange, at *field.Path) field.ErrorList {
	if (q.Value()-r.Min.Value())%r.Step.Value() == 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(at, q.String(), fmt.Sprintf("value is not a multiple of a given step (%s) from (%s)", r.Step.String(), r.Min.String()))}
}
