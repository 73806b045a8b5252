package builtin

import (
	"errors"
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of scaling rules, in seconds.
const (
	maxScalingPeriod = 1800
	maxStabilization = 3600
)

func horizontalPodAutoscalers() *rest.Resource[*autoscalingv2.HorizontalPodAutoscaler] {
	type hpa = *autoscalingv2.HorizontalPodAutoscaler
	doc := autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()
	spec := field.NewPath("spec")
	return &rest.Resource[hpa]{
		Default:  defaultHPA,
		Validate: validateHPA,
		ValidateCreate: func(a hpa) field.ErrorList {
			return append(scaleTarget(a), objectVersions(a, spec.Child("metrics"))...)
		},
		ValidateUpdate: func(now, old hpa) (errs field.ErrorList) {
			if is, was := now.Spec.ScaleTargetRef, old.Spec.ScaleTargetRef; is.APIVersion != was.APIVersion || is.Kind != was.Kind {
				errs = scaleTarget(now)
			}
			if len(objectVersions(old, spec)) == 0 {
				errs = append(errs, objectVersions(now, spec.Child("metrics"))...)
			}
			return errs
		},
		ValidateStatus: func(now, _ hpa) (errs field.ErrorList) {
			s, at := &now.Status, field.NewPath("status")
			for i, c := range s.Conditions {
				errs = append(errs, notNegativePtr(c.ObservedGeneration, at.Child("conditions").Index(i).Child("observedGeneration"))...)
			}
			errs = append(errs, notNegative(s.CurrentReplicas, at.Child("currentReplicas"))...)
			return append(errs, notNegative(s.DesiredReplicas, at.Child("desiredReplicas"))...)
		},
		Columns: []rest.Column[hpa]{
			{Name: "Reference", Description: doc["scaleTargetRef"], Cell: func(a hpa) any { return a.Spec.ScaleTargetRef.Kind + "/" + a.Spec.ScaleTargetRef.Name }},
			{Name: "Targets", Description: doc["metrics"], Cell: func(a hpa) any { return metricsText(a) }},
			{Name: "MinPods", Description: doc["minReplicas"], Cell: func(a hpa) any {
				if a.Spec.MinReplicas == nil {
					return unset
				}
				return fmt.Sprint(*a.Spec.MinReplicas)
			}},
			{Name: "MaxPods", Description: doc["maxReplicas"], Cell: func(a hpa) any { return int64(a.Spec.MaxReplicas) }},
			{Name: "Replicas", Description: autoscalingv2.HorizontalPodAutoscalerStatus{}.SwaggerDoc()["currentReplicas"], Cell: func(a hpa) any { return int64(a.Status.CurrentReplicas) }},
			{Name: "Age"},
		},
	}
}

func defaultHPA(a *autoscalingv2.HorizontalPodAutoscaler) {
	a.Annotations = api.DropHPAForm(a.Annotations)
	setPtr(&a.Spec.MinReplicas, int32(1))
	if len(a.Spec.Metrics) == 0 {
		a.Spec.Metrics = []autoscalingv2.MetricSpec{api.CPUMetric(api.DefaultCPUUtilization)}
	}
	b := a.Spec.Behavior
	if b == nil {
		return
	}
	const period = 15
	pods := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: period}
	percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: period}
	defaultRules(&b.ScaleUp, pods, percent)
	setPtr(&b.ScaleUp.StabilizationWindowSeconds, int32(0))
	defaultRules(&b.ScaleDown, percent) // for how long it waits is the controller's configuration
}

func defaultRules(r **autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
	setPtr(r, autoscalingv2.HPAScalingRules{})
	setPtr(&(*r).SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if (*r).Policies == nil {
		(*r).Policies = policies
	}
}

func validateHPA(a *autoscalingv2.HorizontalPodAutoscaler) (errs field.ErrorList) {
	s, at := &a.Spec, field.NewPath("spec")
	errs = append(errs, notNegativePtr(s.MinReplicas, at.Child("minReplicas"))...)
	switch most := at.Child("maxReplicas"); {
	case s.MaxReplicas == 0:
		errs = append(errs, field.Required(most, ""))
	case s.MaxReplicas < 0:
		errs = append(errs, field.Invalid(most, s.MaxReplicas, "must be greater than or equal to 1"))
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, reference(&s.ScaleTargetRef, at.Child("scaleTargetRef"))...)
	elsewhere := false
	for i := range s.Metrics {
		m := &s.Metrics[i]
		errs = append(errs, metric(m, at.Child("metrics").Index(i))...)
		elsewhere = elsewhere || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !elsewhere {
		errs = append(errs, field.Forbidden(at.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas"))
	}
	if b := s.Behavior; b != nil {
		errs = append(errs, scalingRules(b.ScaleUp, at.Child("behavior", "scaleUp"))...)
		errs = append(errs, scalingRules(b.ScaleDown, at.Child("behavior", "scaleDown"))...)
	}
	return errs
}

// reference checks a reference to an object, but for its apiVersion.
func reference(r *autoscalingv2.CrossVersionObjectReference, at *field.Path) field.ErrorList {
	return append(pathSegment(at.Child("kind"), r.Kind), pathSegment(at.Child("name"), r.Name)...)
}

func version(r *autoscalingv2.CrossVersionObjectReference, coreToo bool, at *field.Path) field.ErrorList {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err == nil && gv.Group == "" && !coreToo {
		err = errors.New("apiVersion must specify API group")
	}
	if err != nil {
		return field.ErrorList{field.Invalid(at.Child("apiVersion"), r.APIVersion, err.Error())}
	}
	return nil
}

// scaleTarget checks the apiVersion of what is scaled: of the core group only ReplicationControllers can be.
func scaleTarget(a *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	r := &a.Spec.ScaleTargetRef
	return version(r, r.Kind == "ReplicationController", field.NewPath("spec", "scaleTargetRef"))
}

func objectVersions(a *autoscalingv2.HorizontalPodAutoscaler, at *field.Path) (errs field.ErrorList) {
	for i := range a.Spec.Metrics {
		if m := &a.Spec.Metrics[i]; m.Object != nil {
			errs = append(errs, version(&m.Object.DescribedObject, true, at.Index(i).Child("object", "describedObject"))...)
		}
	}
	return errs
}

// metricSource is one of the alternatives of a metric.
type metricSource struct {
	name  string
	of    autoscalingv2.MetricSourceType
	set   bool
	check func(at *field.Path) field.ErrorList
}

func metricSources(m *autoscalingv2.MetricSpec) []metricSource {
	return []metricSource{
		{"object", autoscalingv2.ObjectMetricSourceType, m.Object != nil, func(at *field.Path) field.ErrorList {
			s := m.Object
			errs := append(reference(&s.DescribedObject, at.Child("describedObject")), metricName(&s.Metric, at)...)
			errs = append(errs, target(&s.Target, at.Child("target"))...)
			return append(errs, needTarget(s.Target.Value == nil && s.Target.AverageValue == nil, at, "averageValue", "must set either a target value or averageValue")...)
		}},
		{"external", autoscalingv2.ExternalMetricSourceType, m.External != nil, func(at *field.Path) field.ErrorList {
			t := &m.External.Target
			errs := append(metricName(&m.External.Metric, at), target(t, at.Child("target"))...)
			errs = append(errs, needTarget(t.Value == nil && t.AverageValue == nil, at, "averageValue", "must set either a target value for metric or a per-pod target")...)
			if t.Value != nil && t.AverageValue != nil {
				errs = append(errs, field.Forbidden(at.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
			}
			return errs
		}},
		{"pods", autoscalingv2.PodsMetricSourceType, m.Pods != nil, func(at *field.Path) field.ErrorList {
			errs := append(metricName(&m.Pods.Metric, at), target(&m.Pods.Target, at.Child("target"))...)
			return append(errs, needTarget(m.Pods.Target.AverageValue == nil, at, "averageValue", "must specify a positive target averageValue")...)
		}},
		{"resource", autoscalingv2.ResourceMetricSourceType, m.Resource != nil, func(at *field.Path) field.ErrorList {
			var errs field.ErrorList
			if m.Resource.Name == "" {
				errs = append(errs, field.Required(at.Child("name"), "must specify a resource name"))
			}
			return append(errs, useTarget(&m.Resource.Target, at)...)
		}},
		{"containerResource", autoscalingv2.ContainerResourceMetricSourceType, m.ContainerResource != nil, func(at *field.Path) (errs field.ErrorList) {
			s := m.ContainerResource
			if s.Name == "" {
				errs = append(errs, field.Required(at.Child("name"), "must specify a resource name"))
			} else {
				errs = append(errs, podspec.ContainerResource(s.Name, at.Child("name"))...)
			}
			if s.Container == "" {
				errs = append(errs, field.Required(at.Child("container"), "must specify a container"))
			} else {
				errs = append(errs, texts(at.Child("container"), s.Container, validation.IsDNS1123Label(s.Container))...)
			}
			return append(errs, useTarget(&s.Target, at)...)
		}},
	}
}

func metric(m *autoscalingv2.MetricSpec, at *field.Path) (errs field.ErrorList) {
	types := []autoscalingv2.MetricSourceType{autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
		autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType}
	if m.Type == "" {
		errs = append(errs, field.Required(at.Child("type"), "must specify a metric source type"))
	}
	sources := metricSources(m)
	n, meant := 0, false
	for _, s := range sources {
		if s.set {
			if n++; n == 1 {
				errs = append(errs, s.check(at.Child(s.name))...)
			}
		}
		if s.of == m.Type {
			meant = true
			if !s.set {
				errs = append(errs, field.Required(at.Child(s.name), "must populate information for the given metric source"))
			}
		}
	}
	if !meant {
		errs = append(errs, field.NotSupported(at.Child("type"), m.Type, types))
	}
	for _, s := range sources {
		if s.set && n > 1 && s.of != m.Type {
			errs = append(errs, field.Forbidden(at.Child(s.name), "must populate the given metric source only"))
		}
	}
	return errs
}

func metricName(id *autoscalingv2.MetricIdentifier, at *field.Path) field.ErrorList {
	at = at.Child("metric", "name")
	if id.Name == "" {
		return field.ErrorList{field.Required(at, "must specify a metric name")}
	}
	return texts(at, id.Name, pathvalidation.IsValidPathSegmentName(id.Name))
}

func needTarget(missing bool, at *field.Path, name, text string) field.ErrorList {
	if !missing {
		return nil
	}
	return field.ErrorList{field.Required(at.Child("target", name), text)}
}

// useTarget checks the target of a metric of resources, a percentage or an amount.
func useTarget(t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	errs := target(t, at.Child("target"))
	errs = append(errs, needTarget(t.AverageUtilization == nil && t.AverageValue == nil, at, "averageUtilization", "must set either a target raw value or a target utilization")...)
	if t.AverageUtilization != nil && t.AverageValue != nil {
		errs = append(errs, field.Forbidden(at.Child("target", "averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func target(t *autoscalingv2.MetricTarget, at *field.Path) (errs field.ErrorList) {
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	case "":
		errs = append(errs, field.Required(at.Child("type"), "must specify a metric target type"))
		fallthrough
	default:
		errs = append(errs, field.Invalid(at.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	}
	positive := func(name string, q *resource.Quantity) {
		if q != nil && q.Sign() != 1 {
			errs = append(errs, field.Invalid(at.Child(name), q, "must be positive"))
		}
	}
	positive("value", t.Value)
	positive("averageValue", t.AverageValue)
	if p := t.AverageUtilization; p != nil && *p < 1 {
		errs = append(errs, field.Invalid(at.Child("averageUtilization"), p, "must be greater than 0"))
	}
	return errs
}

func scalingRules(r *autoscalingv2.HPAScalingRules, at *field.Path) (errs field.ErrorList) {
	if r == nil {
		return nil
	}
	if w := r.StabilizationWindowSeconds; w != nil && *w < 0 {
		errs = append(errs, field.Invalid(at.Child("stabilizationWindowSeconds"), w, "must be greater than or equal to zero"))
	} else if w != nil && *w > maxStabilization {
		errs = append(errs, field.Invalid(at.Child("stabilizationWindowSeconds"), w, fmt.Sprintf("must be less than or equal to %v", maxStabilization)))
	}
	if p := r.SelectPolicy; p != nil {
		errs = append(errs, known(at.Child("selectPolicy"), *p, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect)...)
	}
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(at.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		at := at.Child("policies").Index(i)
		errs = append(errs, known(at.Child("type"), p.Type, autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy)...)
		if p.Value <= 0 {
			errs = append(errs, field.Invalid(at.Child("value"), p.Value, "must be greater than zero"))
		}
		if p.PeriodSeconds <= 0 {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, "must be greater than zero"))
		}
		if p.PeriodSeconds > maxScalingPeriod {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxScalingPeriod)))
		}
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("tolerance"), t.String(), "must be greater than or equal to 0"))
	}
	return errs
}

// shownMetrics is how many metrics have room in a column.
const shownMetrics = 2

func metricsText(a *autoscalingv2.HorizontalPodAutoscaler) string {
	if len(a.Spec.Metrics) == 0 {
		return none
	}
	var list []string
	for i := range a.Spec.Metrics {
		var now *autoscalingv2.MetricStatus
		if i < len(a.Status.CurrentMetrics) {
			now = &a.Status.CurrentMetrics[i]
		}
		list = append(list, metricText(&a.Spec.Metrics[i], now))
	}
	if n := len(list); n > shownMetrics {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:shownMetrics], ", "), n-shownMetrics)
	}
	return strings.Join(list, ", ")
}

// metricText is a metric as its current and its wanted value. Now may be nil.
func metricText(m *autoscalingv2.MetricSpec, now *autoscalingv2.MetricStatus) string {
	if now == nil {
		now = &autoscalingv2.MetricStatus{}
	}
	var have *autoscalingv2.MetricValueStatus
	var want autoscalingv2.MetricTarget
	switch m.Type {
	case autoscalingv2.ExternalMetricSourceType:
		if want = m.External.Target; now.External != nil {
			have = &now.External.Current
		}
	case autoscalingv2.ObjectMetricSourceType:
		if want = m.Object.Target; now.Object != nil {
			have = &now.Object.Current
		}
	case autoscalingv2.PodsMetricSourceType:
		if now.Pods != nil {
			have = &now.Pods.Current
		}
		return average(have) + "/" + m.Pods.Target.AverageValue.String()
	case autoscalingv2.ResourceMetricSourceType:
		if now.Resource != nil {
			have = &now.Resource.Current
		}
		return m.Resource.Name.String() + ": " + useText(have, &m.Resource.Target)
	case autoscalingv2.ContainerResourceMetricSourceType:
		if now.ContainerResource != nil {
			have = &now.ContainerResource.Current
		}
		return m.ContainerResource.Name.String() + ": " + useText(have, &m.ContainerResource.Target)
	default:
		return "<unknown type>"
	}
	switch {
	case want.AverageValue != nil:
		return average(have) + "/" + want.AverageValue.String() + " (avg)"
	case have == nil || have.Value == nil:
		return unknown + "/" + want.Value.String()
	}
	return have.Value.String() + "/" + want.Value.String()
}

func average(v *autoscalingv2.MetricValueStatus) string {
	if v == nil || v.AverageValue == nil {
		return unknown
	}
	return v.AverageValue.String()
}

func useText(have *autoscalingv2.MetricValueStatus, want *autoscalingv2.MetricTarget) string {
	if want.AverageValue != nil {
		return average(have) + "/" + want.AverageValue.String()
	}
	percent := func(p *int32, otherwise string) string {
		if p == nil {
			return otherwise
		}
		return fmt.Sprintf("%d%%", *p)
	}
	is := unknown
	if have != nil {
		is = percent(have.AverageUtilization, unknown)
	}
	return is + "/" + percent(want.AverageUtilization, "<auto>")
}
