package api_test

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

var (
	fine  = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	whole = fine.Truncate(time.Second)
)

// What is kept in memory is what would be read.
func TestTruncateTimes(t *testing.T) {
	shared := &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(fine)}
	conditions := []corev1.PodCondition{{LastTransitionTime: metav1.NewTime(whole)}, {LastTransitionTime: metav1.NewTime(fine)}}
	started := metav1.NewTime(fine)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.Now(), ManagedFields: []metav1.ManagedFieldsEntry{{Time: &started}, {}}},
		Status: corev1.PodStatus{StartTime: &started, Conditions: conditions,
			ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: shared}}}}}
	api.TruncateTimes(p)
	if p.CreationTimestamp.Nanosecond() != 0 || !p.Status.StartTime.Time.Equal(whole) || !p.ManagedFields[0].Time.Time.Equal(whole) ||
		!p.Status.Conditions[1].LastTransitionTime.Time.Equal(whole) || !p.Status.ContainerStatuses[0].State.Running.StartedAt.Time.Equal(whole) {
		t.Errorf("not truncated: %v", p)
	}
	if !shared.StartedAt.Time.Equal(fine) || !conditions[1].LastTransitionTime.Time.Equal(fine) || !started.Time.Equal(fine) {
		t.Error("what others may have too was changed")
	}
	before := *p
	api.TruncateTimes(p)
	if p.Status.StartTime != before.Status.StartTime || &p.Status.Conditions[0] != &before.Status.Conditions[0] {
		t.Error("replaced for nothing")
	}

	b := &policyv1.PodDisruptionBudget{Status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: map[string]metav1.Time{"a": metav1.NewTime(fine)}}}
	api.TruncateTimes(b)
	if !b.Status.DisruptedPods["a"].Time.Equal(whole) {
		t.Error(b)
	}
	e := &corev1.Event{EventTime: metav1.NewMicroTime(fine)}
	api.TruncateTimes(e)
	if !e.EventTime.Time.Equal(fine.Truncate(time.Microsecond)) {
		t.Error(e.EventTime)
	}
	api.TruncateTimes((*corev1.Pod)(nil))
}

// Types that contain themselves have no times inside that nobody would truncate.
func TestTimesOfTypesInTypes(t *testing.T) {
	var look func(at reflect.Type, within []reflect.Type)
	look = func(at reflect.Type, within []reflect.Type) {
		for _, w := range within {
			if w != at {
				continue
			}
			v := reflect.New(at).Interface()
			if _, is := v.(api.Object); is {
				t.Errorf("%v contains itself", at)
			}
			if timed(at, map[reflect.Type]bool{}) {
				t.Errorf("%v contains itself and times", at)
			}
			return
		}
		within = append(within, at)
		switch at.Kind() {
		case reflect.Struct:
			for i := range at.NumField() {
				look(at.Field(i).Type, within)
			}
		case reflect.Pointer, reflect.Slice, reflect.Map:
			look(at.Elem(), within)
		}
	}
	for _, k := range api.Stored() {
		look(reflect.TypeOf(k.New()).Elem(), nil)
	}
}

func timed(t reflect.Type, seen map[reflect.Type]bool) bool {
	if t == reflect.TypeFor[metav1.Time]() || t == reflect.TypeFor[metav1.MicroTime]() {
		return true
	}
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			if timed(t.Field(i).Type, seen) {
				return true
			}
		}
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return timed(t.Elem(), seen)
	}
	return false
}

func BenchmarkTruncateTimes(b *testing.B) {
	at := metav1.NewTime(whole)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{Time: &at}, {Time: &at}}}, Status: corev1.PodStatus{StartTime: &at,
		Conditions:        make([]corev1.PodCondition, 5),
		ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}}}}}
	b.ReportAllocs()
	for b.Loop() {
		api.TruncateTimes(p)
	}
}
