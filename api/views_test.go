package api

import (
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/randfill"
)

// TestForms takes objects of every kind that has other forms through them and back.
func TestForms(t *testing.T) {
	t.Parallel()
	fill := randfill.NewWithSeed(1).NilChance(.3).NumElements(1, 3).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewQuantity(c.Int63n(1000)+1, resource.DecimalSI)
		},
		func(m *metav1.Time, c randfill.Continue) { *m = metav1.Unix(c.Int63n(1<<31), 0).Rfc3339Copy() },
		func(m *metav1.MicroTime, c randfill.Continue) {
			*m = metav1.NewMicroTime(metav1.Unix(c.Int63n(1<<31), 0).Time)
		},
		func(m *metav1.FieldsV1, _ randfill.Continue) { *m = metav1.FieldsV1{} },
		func(m *metav1.TypeMeta, _ randfill.Continue) {},
		// What the old form can say of a metric: one of the sources, with the target's type as it follows from the values.
		func(m *autoscalingv2.MetricSpec, c randfill.Continue) { randomMetric(m, c) },
		func(m *autoscalingv2.MetricStatus, c randfill.Continue) {
			m.Type = autoscalingv2.PodsMetricSourceType
			m.Pods = &autoscalingv2.PodsMetricStatus{Metric: autoscalingv2.MetricIdentifier{Name: c.String(5)}}
			c.Fill(&m.Pods.Current.AverageValue)
			if m.Pods.Current.AverageValue == nil {
				m.Pods.Current.AverageValue = resource.NewQuantity(3, resource.DecimalSI)
			}
		},
		func(b *autoscalingv2.HorizontalPodAutoscalerBehavior, c randfill.Continue) {
			c.FillNoCustom(b)
			if b.ScaleUp == nil && b.ScaleDown == nil {
				b.ScaleUp = &autoscalingv2.HPAScalingRules{} // an empty behavior is none
			}
		},
	)
	for _, k := range Stored() {
		for _, form := range k.Forms()[1:] {
			for range 200 {
				o := k.New()
				fill.Fill(o)
				o.GetObjectKind().SetGroupVersionKind(k.GVK())
				if a, ok := o.(*autoscalingv2.HorizontalPodAutoscaler); ok && a.Spec.Metrics == nil { // defaults leave none without
					a.Spec.Metrics = []autoscalingv2.MetricSpec{CPUMetric(DefaultCPUUtilization)}
				}
				before := o.DeepCopyObject()
				shown := form.Show(o)
				if !equality.Semantic.DeepEqual(before, o) {
					t.Fatalf("%v: showing changed the object", form)
				}
				if got := form.Store(shown.DeepCopyObject().(Object)); !equality.Semantic.DeepEqual(o, got) {
					t.Fatalf("%v %s:\n%s\nbecame\n%s\nthrough\n%s", k, form.Version, text(t, o), text(t, got), text(t, shown))
				}
			}
		}
	}
}

func text(t *testing.T, o Object) []byte {
	b, err := EncodeJSON(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func randomMetric(m *autoscalingv2.MetricSpec, c randfill.Continue) {
	value := func() *resource.Quantity { return resource.NewQuantity(c.Int63n(100)+1, resource.DecimalSI) }
	average := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: value()}
	percent := int32(c.Intn(100) + 1)
	use := autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}
	id := autoscalingv2.MetricIdentifier{Name: "m", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}
	switch c.Intn(5) {
	case 0:
		m.Type = autoscalingv2.ObjectMetricSourceType
		m.Object = &autoscalingv2.ObjectMetricSource{DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "s"}, Metric: id,
			Target: []autoscalingv2.MetricTarget{average, {Type: autoscalingv2.ValueMetricType, Value: value()},
				{Type: autoscalingv2.AverageValueMetricType, Value: value(), AverageValue: value()}}[c.Intn(3)]}
	case 1:
		m.Type = autoscalingv2.PodsMetricSourceType
		m.Pods = &autoscalingv2.PodsMetricSource{Metric: id, Target: average}
	case 2:
		m.Type = autoscalingv2.ResourceMetricSourceType
		m.Resource = &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceMemory, Target: []autoscalingv2.MetricTarget{average, use}[c.Intn(2)]}
	case 3:
		m.Type = autoscalingv2.ContainerResourceMetricSourceType
		m.ContainerResource = &autoscalingv2.ContainerResourceMetricSource{Name: corev1.ResourceCPU, Container: "a", Target: []autoscalingv2.MetricTarget{average, use}[c.Intn(2)]}
	default:
		m.Type = autoscalingv2.ExternalMetricSourceType
		m.External = &autoscalingv2.ExternalMetricSource{Metric: id, Target: []autoscalingv2.MetricTarget{average, {Type: autoscalingv2.ValueMetricType, Value: value()}}[c.Intn(2)]}
	}
}
