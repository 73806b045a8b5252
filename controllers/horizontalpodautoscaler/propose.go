package horizontalpodautoscaler

import (
	"context"
	"errors"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/client"
)

// target is what an autoscaler scales, at the moment.
type target struct {
	namespace    string
	spec, status int32
	selector     labels.Selector
	pods         []*corev1.Pod
	tolerance    tolerance
}

// byMetrics asks all metrics: the one that wants most has it. Some of them may fail, as long as no fewer pods would follow.
func (r *round) byMetrics(ctx context.Context, scale *autoscalingv1.Scale) (proposal, error) {
	t, err := r.target(ctx, scale)
	if err != nil {
		return proposal{}, err
	}
	specs := r.hpa.Spec.Metrics
	p := proposal{statuses: make([]autoscalingv2.MetricStatus, len(specs))}
	var first *metricError
	failed := 0
	for i := range specs {
		n, name, status, err := r.metric(ctx, &specs[i], t)
		if err != nil {
			r.warn(err.reason, err.cause)
			if failed++; first == nil {
				first = err
			}
			continue
		}
		p.statuses[i] = status
		if p.replicas == 0 || n > p.replicas {
			p.replicas, p.reason = n, name
		}
	}
	if first != nil {
		err = fmt.Errorf("invalid metrics (%v invalid out of %v), first error is: %w", failed, len(specs), first)
	}
	if failed >= len(specs) || failed > 0 && p.replicas < t.spec {
		if first != nil {
			r.set(autoscalingv2.ScalingActive, false, first.reason, fmt.Sprintf("the HPA was unable to compute the replica count: %v", first.cause))
		}
		return p, err
	}
	r.set(autoscalingv2.ScalingActive, true, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from "+p.reason)
	p.some = true
	return p, err
}

// target finds the pods, which have to be this autoscaler's alone.
func (r *round) target(ctx context.Context, scale *autoscalingv1.Scale) (*target, error) {
	refuse := func(event, reason, message string) error {
		r.set(autoscalingv2.ScalingActive, false, reason, message)
		if event == "SelectorRequired" {
			message = "selector is required"
		}
		err := errors.New(message)
		r.warn(event, err)
		return err
	}
	text := scale.Status.Selector
	if text == "" {
		return nil, refuse("SelectorRequired", "InvalidSelector", "the HPA target's scale is missing a selector")
	}
	selector, err := labels.Parse(text)
	if err != nil {
		return nil, refuse("InvalidSelector", "InvalidSelector", fmt.Sprintf("couldn't convert selector into a corresponding internal selector object: %v", err))
	}
	pods, err := client.List[*corev1.Pod](ctx, r.Client, client.Query{Namespace: r.hpa.Namespace, Labels: selector})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	if both := r.ambiguous(selector, pods); both != nil {
		return nil, refuse("AmbiguousSelector", "AmbiguousSelector", fmt.Sprintf("pods by selector %v are controlled by more than one HPA (e.g. %v)", text, both))
	}
	return &target{r.hpa.Namespace, scale.Spec.Replicas, scale.Status.Replicas, selector, pods, toleranceOf(r.hpa.Spec.Behavior)}, nil
}

// metricError is why a metric proposes nothing: what went wrong, and in which words the whole is told.
type metricError struct {
	reason string
	cause  error
	text   string
}

func (e *metricError) Error() string { return fmt.Sprintf("failed to get %s: %v", e.text, e.cause) }
func (e *metricError) Unwrap() error { return e.cause }

// metric returns how many pods a metric wants, what it is called, and what it is.
func (r *round) metric(ctx context.Context, m *autoscalingv2.MetricSpec, t *target) (n int32, name string, s autoscalingv2.MetricStatus, failed *metricError) {
	s.Type = m.Type
	var err error
	var reason, text string
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		reason, text = "FailedGetResourceMetric", fmt.Sprintf("%s resource metric value", m.Resource.Name)
		s.Resource = &autoscalingv2.ResourceMetricStatus{Name: m.Resource.Name}
		n, name, s.Resource.Current, err = r.resource(ctx, m.Resource.Name, "", m.Resource.Target, t)
	case autoscalingv2.ContainerResourceMetricSourceType:
		c := m.ContainerResource
		reason, text = "FailedGetContainerResourceMetric", fmt.Sprintf("%s container metric value", c.Container)
		s.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container}
		n, name, s.ContainerResource.Current, err = r.resource(ctx, c.Name, c.Container, c.Target, t)
	case autoscalingv2.PodsMetricSourceType:
		reason, text = "FailedGetPodsMetric", "pods metric value"
		s.Pods = &autoscalingv2.PodsMetricStatus{Metric: m.Pods.Metric}
		name = "pods metric " + m.Pods.Metric.Name
		n, s.Pods.Current, err = r.ofPods(ctx, m.Pods, t)
	case autoscalingv2.ObjectMetricSourceType:
		reason, text = "FailedGetObjectMetric", "object metric value"
		s.Object = &autoscalingv2.ObjectMetricStatus{DescribedObject: m.Object.DescribedObject, Metric: m.Object.Metric}
		n, name, s.Object.Current, err = r.ofObject(ctx, m.Object, t)
	case autoscalingv2.ExternalMetricSourceType:
		reason, text = "FailedGetExternalMetric", fmt.Sprintf("%s external metric value", m.External.Metric.Name)
		s.External = &autoscalingv2.ExternalMetricStatus{Metric: m.External.Metric}
		name = fmt.Sprintf("external metric %s(%+v)", m.External.Metric.Name, m.External.Metric.Selector)
		n, s.External.Current, err = r.external(ctx, m.External, t)
	default:
		reason, err = "InvalidMetricSourceType", fmt.Errorf("unknown metric source type %q", m.Type)
	}
	if err != nil {
		return 0, "", autoscalingv2.MetricStatus{}, &metricError{reason, err, text}
	}
	return n, name, s, nil
}

func milli(v int64, f resource.Format) *resource.Quantity { return resource.NewMilliQuantity(v, f) }

// resource compares what pods, or a container of each, use of a resource.
func (r *round) resource(ctx context.Context, name corev1.ResourceName, container string, want autoscalingv2.MetricTarget, t *target) (n int32, what string, v autoscalingv2.MetricValueStatus, err error) {
	format, kind := resource.DecimalSI, "utilization"
	if name == corev1.ResourceMemory {
		format = resource.BinarySI
	}
	switch {
	case want.AverageValue != nil:
		kind = "usage"
	case want.AverageUtilization == nil:
		return 0, "", v, errors.New("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
	}
	got, err := r.metrics.Resource(ctx, name, t.namespace, t.selector, container)
	if err != nil {
		return 0, "", v, fmt.Errorf("failed to get %s %s: unable to get metrics for resource %s: %w", name, kind, name, err)
	}
	var g goal
	if kind == "usage" {
		g, what = averageGoal(want.AverageValue.MilliValue()), fmt.Sprintf("%s resource", name)
	} else {
		asked, err := requests(t.pods, container, name)
		if err != nil {
			return 0, "", v, fmt.Errorf("failed to get %s %s: %w", name, kind, err)
		}
		g, what = utilizationGoal(*want.AverageUtilization, asked), fmt.Sprintf("%s resource utilization (percentage of request)", name)
		if container != "" {
			what = fmt.Sprintf("%s container resource utilization (percentage of request)", name)
		}
	}
	n, is, err := byPods(t.spec, t.pods, got, name, g, t.tolerance, r.now)
	if err != nil {
		return 0, "", v, fmt.Errorf("failed to get %s %s: %w", name, kind, err)
	}
	v.AverageValue = milli(is.average, format)
	if kind == "utilization" {
		v.AverageUtilization = &is.percent
	}
	return n, what, v, nil
}

// ofPods compares a figure that each pod has.
func (r *round) ofPods(ctx context.Context, m *autoscalingv2.PodsMetricSource, t *target) (n int32, v autoscalingv2.MetricValueStatus, err error) {
	selector, err := metav1.LabelSelectorAsSelector(m.Metric.Selector)
	if err != nil {
		return 0, v, err
	}
	got, err := r.metrics.Pods(ctx, m.Metric.Name, t.namespace, t.selector, selector)
	if err != nil {
		return 0, v, fmt.Errorf("unable to get metric %s: %w", m.Metric.Name, err)
	}
	n, is, err := byPods(t.spec, t.pods, got, "", averageGoal(m.Target.AverageValue.MilliValue()), t.tolerance, r.now)
	v.AverageValue = milli(is.average, resource.DecimalSI)
	return n, v, err
}

// ofObject compares a figure of one object.
func (r *round) ofObject(ctx context.Context, m *autoscalingv2.ObjectMetricSource, t *target) (n int32, name string, v autoscalingv2.MetricValueStatus, err error) {
	selector, err := metav1.LabelSelectorAsSelector(m.Metric.Selector)
	if err != nil {
		return 0, "", v, err
	}
	byAll := m.Target.Type == autoscalingv2.ValueMetricType && m.Target.Value != nil
	if !byAll && (m.Target.Type != autoscalingv2.AverageValueMetricType || m.Target.AverageValue == nil) {
		return 0, "", v, errors.New("invalid object metric source: neither a value target nor an average value target was set")
	}
	value, err := r.metrics.Object(ctx, m.Metric.Name, t.namespace, &m.DescribedObject, selector)
	if err != nil {
		err = fmt.Errorf("unable to get metric %s on %s %s/%s: %w", m.Metric.Name, m.DescribedObject.Kind, t.namespace, m.DescribedObject.Name, err)
		if !byAll {
			err = fmt.Errorf("failed to get %s object metric: %w", m.Metric.Name, err)
		}
		return 0, "", v, err
	}
	if byAll {
		n, err = byValue(t.spec, t.pods, value, m.Target.Value.MilliValue(), t.tolerance)
		v.Value = milli(value, resource.DecimalSI)
		return n, fmt.Sprintf("%s metric %s", m.DescribedObject.Kind, m.Metric.Name), v, err
	}
	n, share := byShare(t.status, value, m.Target.AverageValue.MilliValue(), t.tolerance)
	v.AverageValue = milli(share, resource.DecimalSI)
	return n, fmt.Sprintf("external metric %s(%+v)", m.Metric.Name, m.Metric.Selector), v, nil
}

// external compares a figure of something outside of the cluster.
func (r *round) external(ctx context.Context, m *autoscalingv2.ExternalMetricSource, t *target) (n int32, v autoscalingv2.MetricValueStatus, err error) {
	if m.Target.AverageValue == nil && m.Target.Value == nil {
		return 0, v, errors.New("invalid external metric source: neither a value target nor an average value target was set")
	}
	selector, err := metav1.LabelSelectorAsSelector(m.Metric.Selector)
	var values []int64
	if err == nil {
		if values, err = r.metrics.External(ctx, m.Metric.Name, t.namespace, selector); err != nil {
			err = fmt.Errorf("unable to get external metric %s/%s/%+v: %w", t.namespace, m.Metric.Name, m.Metric.Selector, err)
		}
	}
	value := sum(values)
	if m.Target.AverageValue != nil {
		if err != nil {
			return 0, v, fmt.Errorf("failed to get %s external metric: %w", m.Metric.Name, err)
		}
		n, share := byShare(t.status, value, m.Target.AverageValue.MilliValue(), t.tolerance)
		v.AverageValue = milli(share, resource.DecimalSI)
		return n, v, nil
	}
	if err == nil {
		n, err = byValue(t.spec, t.pods, value, m.Target.Value.MilliValue(), t.tolerance)
	}
	if err != nil {
		return 0, v, fmt.Errorf("failed to get external metric %s: %w", m.Metric.Name, err)
	}
	v.Value = milli(value, resource.DecimalSI)
	return n, v, nil
}
