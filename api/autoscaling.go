package api

import (
	"encoding/json"
	"maps"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// autoscaling/v1 knows one metric, the use of CPU. Whatever else autoscaling/v2 has stands in annotations, so that nothing is lost
// when a client reads and writes the old form.

// The annotations of autoscaling/v1. The last two were in use while tolerances were new.
const (
	hpaMetrics       = "autoscaling.alpha.kubernetes.io/metrics"
	hpaMetricsStatus = "autoscaling.alpha.kubernetes.io/current-metrics"
	hpaConditions    = "autoscaling.alpha.kubernetes.io/conditions"
	hpaBehavior      = "autoscaling.alpha.kubernetes.io/behavior"
	hpaToleranceDown = "autoscaling.alpha.kubernetes.io/scale-down-tolerance"
	hpaToleranceUp   = "autoscaling.alpha.kubernetes.io/scale-up-tolerance"
)

// DefaultCPUUtilization is the target, in percent, of an autoscaler that names none.
const DefaultCPUUtilization int32 = 80

// DropHPAForm returns annotations without those in which autoscaling/v1 keeps what it has no fields for.
func DropHPAForm(annotations map[string]string) map[string]string {
	keys := []string{hpaMetrics, hpaMetricsStatus, hpaConditions, hpaBehavior, hpaToleranceDown, hpaToleranceUp}
	copied := false
	for _, k := range keys {
		if _, ok := annotations[k]; ok && !copied {
			annotations, copied = maps.Clone(annotations), true
		}
		if copied {
			delete(annotations, k)
		}
	}
	return annotations
}

// CPUMetric is the metric of the use of CPU.
func CPUMetric(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
}

// isCPU says whether m is what autoscaling/v1 has a field for.
func isCPU(m *autoscalingv2.MetricSpec) bool {
	return m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil && m.Resource.Name == corev1.ResourceCPU && m.Resource.Target.AverageUtilization != nil
}

func showHPA(a *autoscalingv2.HorizontalPodAutoscaler) *autoscalingv1.HorizontalPodAutoscaler {
	out := &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: a.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(a.Spec.ScaleTargetRef), MinReplicas: a.Spec.MinReplicas, MaxReplicas: a.Spec.MaxReplicas},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{ObservedGeneration: a.Status.ObservedGeneration, LastScaleTime: a.Status.LastScaleTime,
			CurrentReplicas: a.Status.CurrentReplicas, DesiredReplicas: a.Status.DesiredReplicas},
	}
	extra := map[string]string{}
	var others []autoscalingv1.MetricSpec
	for i := range a.Spec.Metrics {
		m := &a.Spec.Metrics[i]
		if !isCPU(m) {
			others = append(others, showMetric(m))
		} else if out.Spec.TargetCPUUtilizationPercentage == nil {
			out.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
		}
	}
	annotate(extra, hpaMetrics, others)
	var current []autoscalingv1.MetricStatus
	for i := range a.Status.CurrentMetrics {
		m := &a.Status.CurrentMetrics[i]
		if r := m.Resource; m.Type == autoscalingv2.ResourceMetricSourceType && r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
		}
		current = append(current, showMetricStatus(m))
	}
	annotate(extra, hpaMetricsStatus, current)
	annotate(extra, hpaConditions, a.Status.Conditions) // the same in both forms
	if b := a.Spec.Behavior; b != nil {
		annotate(extra, hpaBehavior, []*behavior{showBehavior(b)})
	}
	out.Annotations = DropHPAForm(out.Annotations)
	if len(extra) > 0 {
		out.Annotations = maps.Clone(out.Annotations)
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		maps.Copy(out.Annotations, extra)
	}
	return out
}

// annotate adds values as JSON, where there are any; behavior stands alone, not in a list.
func annotate[T any](to map[string]string, key string, values []T) {
	if len(values) == 0 {
		return
	}
	var v any = values
	if key == hpaBehavior {
		v = values[0]
	}
	if text, err := json.Marshal(v); err == nil { // plain structs: there is no error
		to[key] = string(text)
	}
}

// annotated reads what annotate wrote; what cannot be read is ignored.
func annotated[T any](from map[string]string, key string) (v T, ok bool) {
	text, ok := from[key]
	return v, ok && json.Unmarshal([]byte(text), &v) == nil
}

func storeHPA(a *autoscalingv1.HorizontalPodAutoscaler) *autoscalingv2.HorizontalPodAutoscaler {
	out := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: a.ObjectMeta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(a.Spec.ScaleTargetRef), MinReplicas: a.Spec.MinReplicas, MaxReplicas: a.Spec.MaxReplicas},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{ObservedGeneration: a.Status.ObservedGeneration, LastScaleTime: a.Status.LastScaleTime,
			CurrentReplicas: a.Status.CurrentReplicas, DesiredReplicas: a.Status.DesiredReplicas},
	}
	others, _ := annotated[[]autoscalingv1.MetricSpec](a.Annotations, hpaMetrics)
	for i := range others {
		out.Spec.Metrics = append(out.Spec.Metrics, storeMetric(&others[i]))
	}
	if p := a.Spec.TargetCPUUtilizationPercentage; p != nil {
		out.Spec.Metrics = append(out.Spec.Metrics, CPUMetric(*p))
	}
	if len(out.Spec.Metrics) == 0 {
		out.Spec.Metrics = []autoscalingv2.MetricSpec{CPUMetric(DefaultCPUUtilization)}
	}
	if b, ok := annotated[behavior](a.Annotations, hpaBehavior); ok && b != (behavior{}) {
		out.Spec.Behavior = storeBehavior(&b)
	}
	if current, ok := annotated[[]autoscalingv1.MetricStatus](a.Annotations, hpaMetricsStatus); ok {
		for i := range current {
			out.Status.CurrentMetrics = append(out.Status.CurrentMetrics, storeMetricStatus(&current[i]))
		}
	} else if p := a.Status.CurrentCPUUtilizationPercentage; p != nil {
		out.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
			Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: p}}}}
	}
	if c, ok := annotated[[]autoscalingv2.HorizontalPodAutoscalerCondition](a.Annotations, hpaConditions); ok {
		out.Status.Conditions = c
	}
	out.Annotations = DropHPAForm(out.Annotations)
	return out
}

// behavior is the form of a v2 behavior in an annotation: upstream's own structs, whose fields have no names for JSON.
type behavior struct{ ScaleUp, ScaleDown *scalingRules }

type scalingRules struct {
	StabilizationWindowSeconds *int32
	SelectPolicy               *autoscalingv2.ScalingPolicySelect
	Policies                   []scalingPolicy
	Tolerance                  *resource.Quantity
}

type scalingPolicy struct {
	Type          autoscalingv2.HPAScalingPolicyType
	Value         int32
	PeriodSeconds int32
}

func showBehavior(b *autoscalingv2.HorizontalPodAutoscalerBehavior) *behavior {
	rules := func(r *autoscalingv2.HPAScalingRules) *scalingRules {
		if r == nil {
			return nil
		}
		out := &scalingRules{StabilizationWindowSeconds: r.StabilizationWindowSeconds, SelectPolicy: r.SelectPolicy, Tolerance: r.Tolerance}
		for _, p := range r.Policies {
			out.Policies = append(out.Policies, scalingPolicy(p))
		}
		return out
	}
	return &behavior{rules(b.ScaleUp), rules(b.ScaleDown)}
}

func storeBehavior(b *behavior) *autoscalingv2.HorizontalPodAutoscalerBehavior {
	rules := func(r *scalingRules) *autoscalingv2.HPAScalingRules {
		if r == nil {
			return nil
		}
		out := &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: r.StabilizationWindowSeconds, SelectPolicy: r.SelectPolicy, Tolerance: r.Tolerance}
		for _, p := range r.Policies {
			out.Policies = append(out.Policies, autoscalingv2.HPAScalingPolicy(p))
		}
		return out
	}
	return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules(b.ScaleUp), ScaleDown: rules(b.ScaleDown)}
}
