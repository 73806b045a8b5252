package api

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTolerates(t *testing.T) {
	taint := corev1.Taint{Key: "k", Value: "5", Effect: corev1.TaintEffectNoExecute}
	tests := []struct {
		name string
		t    corev1.Toleration
		want bool
	}{
		{"equal", corev1.Toleration{Key: "k", Value: "5"}, true},
		{"other value", corev1.Toleration{Key: "k", Value: "6"}, false},
		{"other key", corev1.Toleration{Key: "l", Operator: "Exists"}, false},
		{"exists", corev1.Toleration{Key: "k", Operator: "Exists"}, true},
		{"everything", corev1.Toleration{Operator: "Exists"}, true},
		{"its effect", corev1.Toleration{Key: "k", Operator: "Exists", Effect: "NoExecute"}, true},
		{"other effect", corev1.Toleration{Key: "k", Operator: "Exists", Effect: "NoSchedule"}, false},
		{"taint below bound", corev1.Toleration{Key: "k", Operator: "Lt", Value: "6"}, true},
		{"taint not below bound", corev1.Toleration{Key: "k", Operator: "Lt", Value: "5"}, false},
		{"taint above bound", corev1.Toleration{Key: "k", Operator: "Gt", Value: "4"}, true},
		{"no number", corev1.Toleration{Key: "k", Operator: "Gt", Value: "x"}, false},
		{"unknown operator", corev1.Toleration{Key: "k", Operator: "Near", Value: "5"}, false},
	}
	for _, tt := range tests {
		if got := Tolerates([]corev1.Toleration{tt.t}, &taint); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestPodAvailable(t *testing.T) {
	now := time.Unix(1000, 0)
	ready := func(s corev1.ConditionStatus, ago time.Duration) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: s, LastTransitionTime: metav1.NewTime(now.Add(-ago))}}}}
	}
	tests := []struct {
		name string
		pod  *corev1.Pod
		min  time.Duration
		want bool
		left time.Duration
	}{
		{"no condition", &corev1.Pod{}, 0, false, 0},
		{"not ready", ready("False", time.Hour), 0, false, 0},
		{"at once", ready("True", 0), 0, true, 0},
		{"too young", ready("True", 4*time.Second), 10 * time.Second, false, 6 * time.Second},
		{"old enough", ready("True", 10*time.Second), 10 * time.Second, true, 0},
	}
	for _, tt := range tests {
		if got, left := PodAvailable(tt.pod, tt.min, now); got != tt.want || left != tt.left {
			t.Errorf("%s: %v, %v", tt.name, got, left)
		}
	}
}

func TestSetPodCondition(t *testing.T) {
	t.Parallel()
	first, later := metav1.Unix(1, 0), metav1.Unix(2, 0)
	var s corev1.PodStatus
	SetPodCondition(&s, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, LastTransitionTime: first})
	SetPodCondition(&s, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Again", LastTransitionTime: later})
	if c := s.Conditions[0]; c.Reason != "Again" || c.LastTransitionTime != first {
		t.Errorf("the same status again: %+v", c)
	}
	SetPodCondition(&s, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: later})
	if c := s.Conditions[0]; len(s.Conditions) != 1 || c.Status != corev1.ConditionTrue || c.LastTransitionTime != later {
		t.Errorf("another status: %+v", s.Conditions)
	}
}
