package horizontalpodautoscaler

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

var app = map[string]string{"app": "web"}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: app}
}

// world is a Deployment whose pods are as many as it wants, each with a use of the CPU.
type world struct {
	*rt.Cluster
	t   *testing.T
	use string // of each pod
}

func start(t *testing.T, replicas int32, a Aggregated) *world {
	c := rt.New(t)
	rt.Create(t, c, &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: app}}})
	d := rt.Deps(t, c)
	rt.Start(t, d, New(d, a))
	w := &world{Cluster: c, t: t, use: "500m"}
	return w
}

func (w *world) replicas() int32 {
	return *rt.Get[*appsv1.Deployment](w.t, w, "ns", "web").Spec.Replicas
}

// live has the Deployment's pods follow and be measured, for a time.
func (w *world) live(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		want := int(w.replicas())
		for i := range 100 {
			name := fmt.Sprint("web-", i)
			p, err := client.Get[*corev1.Pod](w.t.Context(), w, api.Key{Namespace: "ns", Name: name})
			switch {
			case i >= want && err == nil:
				zero := int64(0)
				rt.Delete(w.t, w, p, client.DeleteOptions{Grace: &zero})
				rt.Delete(w.t, w, &metricsv1beta1.PodMetrics{ObjectMeta: meta(name)}, client.DeleteOptions{})
				continue
			case i >= want:
				continue
			case err != nil:
				p = &corev1.Pod{ObjectMeta: meta(name)}
				p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}}}
				p.Status = corev1.PodStatus{Phase: corev1.PodRunning, StartTime: ptr(metav1.Now()), Conditions: []corev1.PodCondition{
					{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}}
				rt.Create(w.t, w, p)
				rt.Create(w.t, w, &metricsv1beta1.PodMetrics{ObjectMeta: meta(name)})
			}
			m := rt.Get[*metricsv1beta1.PodMetrics](w.t, w, "ns", name)
			rt.Mutate(w.t, w, m, "", func(m *metricsv1beta1.PodMetrics) {
				m.Timestamp, m.Window = metav1.Now(), metav1.Duration{Duration: 10 * time.Second}
				m.Containers = []metricsv1beta1.ContainerMetrics{{Name: "c", Usage: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(w.use)}}}
			})
		}
	}
	synctest.Wait()
}

func cpu(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
}

func external(least int32, value string) *autoscalingv2.HorizontalPodAutoscaler {
	a := autoscaler("a", autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue"},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse(value))}}})
	a.Spec.MinReplicas = &least
	return a
}

func autoscaler(name string, metrics ...autoscalingv2.MetricSpec) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: meta(name), Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
		MinReplicas:    ptr(int32(1)), MaxReplicas: 10, Metrics: metrics}}
}

// story is an autoscaler's status in a line.
func (w *world) story(name string) string {
	s := rt.Get[*autoscalingv2.HorizontalPodAutoscaler](w.t, w, "ns", name).Status
	text := fmt.Sprintf("%d->%d", s.CurrentReplicas, s.DesiredReplicas)
	for _, c := range s.Conditions {
		text += fmt.Sprintf(" %s=%s:%s", c.Type, c.Status, c.Reason)
	}
	return text
}

func (w *world) expect(name, want string) {
	w.t.Helper()
	if got := w.story(name); got != want {
		w.t.Errorf("\ngot  %s\nwant %s", got, want)
	}
}

// Load makes pods more at once; when it is gone they stay for five minutes.
func TestLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, 2, nil)
		w.live(10 * time.Minute)
		rt.Create(t, w, autoscaler("a", cpu(50)))
		w.live(time.Minute)
		w.expect("a", "2->2 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange")
		s := rt.Get[*autoscalingv2.HorizontalPodAutoscaler](t, w, "ns", "a").Status
		if m := s.CurrentMetrics[0].Resource.Current; *m.AverageUtilization != 50 || m.AverageValue.String() != "500m" || *s.ObservedGeneration != 1 || s.LastScaleTime != nil {
			t.Errorf("%+v", s)
		}
		writes := w.Writes("update/status horizontalpodautoscalers.autoscaling")
		w.live(5 * time.Minute)
		if n := w.Writes("update/status horizontalpodautoscalers.autoscaling"); n != writes {
			t.Errorf("%d writes of what has not changed", n-writes)
		}
		w.use = "1"
		w.live(20 * time.Second)
		if n := w.replicas(); n != 4 {
			t.Errorf("under load: %d", n)
		}
		if got := w.story("a"); !strings.HasPrefix(got, "2->4 AbleToScale=True:SucceededRescale") && !strings.HasPrefix(got, "4->") {
			t.Error(got)
		}
		w.live(5 * time.Minute)
		if n := w.replicas(); n != 10 { // one pod after another is of no help
			t.Errorf("under load that stays: %d", n)
		}
		w.use = "50m"
		w.live(4 * time.Minute)
		if n := w.replicas(); n != 10 {
			t.Errorf("within the window: %d", n)
		}
		w.live(2 * time.Minute)
		if n := w.replicas(); n != 1 {
			t.Errorf("after the window: %d", n)
		}
	})
}

// What cannot be is told.
func TestConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, 2, nil)
		lost := autoscaler("lost", cpu(50))
		lost.Spec.ScaleTargetRef.Name = "other"
		rt.Create(t, w, lost)
		strange := autoscaler("strange", cpu(50))
		strange.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: "x.io/v1", Kind: "Thing", Name: "t"}
		rt.Create(t, w, strange)
		rt.Create(t, w, external(1, "10"))
		synctest.Wait()
		w.expect("lost", "0->0 AbleToScale=False:FailedGetScale")
		w.expect("strange", "0->0 AbleToScale=False:FailedGetScale")
		w.expect("a", "2->0 AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetExternalMetric")
		rt.Create(t, w, autoscaler("b", cpu(50)))
		w.live(time.Minute)
		w.expect("a", "2->0 AbleToScale=True:SucceededGetScale ScalingActive=False:AmbiguousSelector")
		w.expect("b", "2->0 AbleToScale=True:SucceededGetScale ScalingActive=False:AmbiguousSelector")
		b := rt.Get[*autoscalingv2.HorizontalPodAutoscaler](t, w, "ns", "b")
		if want := "pods by selector app=web are controlled by more than one HPA (e.g. [{a ns} {b ns}])"; b.Status.Conditions[1].Message != want {
			t.Error(b.Status.Conditions[1].Message)
		}
		rt.Delete(t, w, rt.Get[*autoscalingv2.HorizontalPodAutoscaler](t, w, "ns", "a"), client.DeleteOptions{})
		w.live(time.Minute)
		w.expect("b", "2->2 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange")
		scale, err := w.GetScale(t.Context(), api.DeploymentKind, api.Key{Namespace: "ns", Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		for replicas, want := range map[int32]int32{0: 0, 30: 10} {
			scale.ResourceVersion, scale.Spec.Replicas = "", replicas
			if _, err := w.UpdateScale(t.Context(), api.DeploymentKind, scale.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(16 * time.Second)
			if n := w.replicas(); n != want {
				t.Errorf("of %d: %d", replicas, n)
			}
			if got := w.story("b"); replicas == 0 && !strings.Contains(got, "ScalingDisabled") {
				t.Error(got)
			}
		}
	})
}

// By a figure from outside a workload goes to no pod at all, and comes back.
func TestToZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, asked := "0", ""
		w := start(t, 2, func(_ context.Context, gv schema.GroupVersion, path string, query url.Values) ([]byte, bool, error) {
			asked = gv.String() + " " + path + query.Encode()
			return []byte(`{"items":[{"metricName":"queue","timestamp":"2026-01-01T00:00:00Z","value":"` + queue + `"}]}`), true, nil
		})
		rt.Create(t, w, external(0, "10"))
		w.live(time.Minute)
		if n := w.replicas(); n != 2 || asked != "external.metrics.k8s.io/v1beta1 namespaces/ns/queue" {
			t.Errorf("within the window: %d, asked %s", n, asked)
		}
		w.live(6 * time.Minute)
		w.expect("a", "0->0 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange ScaledToZero=True:ScaledToZero")
		queue = "25"
		w.live(time.Minute)
		if n := w.replicas(); n != 3 {
			t.Errorf("of a queue of 25: %d", n)
		}
		w.expect("a", "3->3 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange ScaledToZero=False:NotScaledToZero")
	})
}

// The custom metrics of each version are read.
func TestCustomMetrics(t *testing.T) {
	answers := map[string]string{
		"custom.metrics.k8s.io/v1beta1 namespaces/ns/pods/*/hits?labelSelector=app%3Dweb":             `{"items":[{"describedObject":{"kind":"Pod","name":"p1"},"metricName":"hits","window":30,"value":"1500m"}]}`,
		"custom.metrics.k8s.io/v1beta1 namespaces/ns/services/web/hits?metricLabelSelector=app%3Dweb": `{"items":[{"value":"7"}]}`,
		"custom.metrics.k8s.io/v1beta1 namespaces/ns/metrics/hits?":                                   `{"items":[{"value":"8"}]}`,
		"custom.metrics.k8s.io/v1beta1 namespaces/ns/services/none/hits?":                             `{"items":[]}`,
	}
	s := source{aggregated: func(_ context.Context, gv schema.GroupVersion, path string, query url.Values) ([]byte, bool, error) {
		if gv.Version != "v1beta1" || gv.Group != customGroup {
			return nil, false, nil
		}
		body, ok := answers[gv.String()+" "+path+"?"+query.Encode()]
		if !ok {
			return nil, true, apierrors.NewNotFound(schema.GroupResource{Resource: path}, query.Encode())
		}
		return []byte(body), true, nil
	}, kind: (&controller{}).kind}
	web := labels.SelectorFromSet(app)
	pods, err := s.Pods(t.Context(), "hits", "ns", web, nil)
	if x := pods["p1"]; err != nil || x.value != 1500 || x.window != 30*time.Second {
		t.Error(pods, err)
	}
	of := func(kind, name string) *autoscalingv2.CrossVersionObjectReference {
		return &autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: kind, Name: name}
	}
	if v, err := s.Object(t.Context(), "hits", "ns", of("Service", "web"), web); v != 7000 || err != nil {
		t.Error(v, err)
	}
	if v, err := s.Object(t.Context(), "hits", "ns", of("Namespace", "other"), nil); v != 8000 || err != nil {
		t.Error(v, err)
	}
	for _, tt := range []struct{ name, want string }{{"none", "no metrics returned from custom metrics API"}} {
		if _, err := s.Object(t.Context(), "hits", "ns", of("Service", tt.name), nil); err == nil || err.Error() != tt.want {
			t.Error(err)
		}
	}
	if _, err := s.External(t.Context(), "hits", "ns", nil); err == nil || err.Error() != "unable to fetch metrics from external metrics API: the server could not find the requested resource (get hits.external.metrics.k8s.io)" {
		t.Error(err)
	}
	if _, err := (source{}).Pods(t.Context(), "hits", "ns", web, nil); err == nil || err.Error() != "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered" {
		t.Error(err)
	}
}
