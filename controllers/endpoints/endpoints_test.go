package endpoints

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(i int, mods ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), UID: types.UID(fmt.Sprint("u", i))},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(8000 + i%2), Protocol: "TCP"}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", i)}, {IP: fmt.Sprint("fd00::", i)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	for _, m := range mods {
		m(p)
	}
	return p
}

func notReady(p *corev1.Pod) { p.Status.Conditions = nil }
func deleting(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }

func TestDesired(t *testing.T) {
	many := make([]*corev1.Pod, capacity+1)
	for i := range many {
		many[i] = pod(i)
	}
	numbered := corev1.ServiceSpec{ClusterIP: "10.1.1.1", Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: "TCP"}}}
	named := numbered
	named.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), Protocol: "TCP"}}
	published := numbered
	published.PublishNotReadyAddresses = true
	six := numbered
	six.IPFamilies = []corev1.IPFamily{"IPv6", "IPv4"}
	tests := []struct {
		name string
		spec corev1.ServiceSpec
		pods []*corev1.Pod
		want string
	}{
		{"nobody", numbered, nil, ""},
		{"ready or not", numbered, []*corev1.Pod{pod(2), pod(1), pod(3, notReady), pod(4, deleting)},
			"10.0.0.1 10.0.0.2 !10.0.0.3 :8080"},
		{"published", published, []*corev1.Pod{pod(3, notReady), pod(4, deleting)}, "10.0.0.3 10.0.0.4 :8080"},
		{"named ports", named, []*corev1.Pod{pod(1), pod(2), pod(3), pod(4, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil })},
			"10.0.0.2 http:8000, 10.0.0.1 10.0.0.3 http:8001"},
		{"first family", six, []*corev1.Pod{pod(1)}, "fd00::1 :8080"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := desired(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: tt.spec}, tt.pods)
			var subsets []string
			for _, s := range e.Subsets {
				line := ""
				for _, a := range s.Addresses {
					line += a.IP + " "
				}
				for _, a := range s.NotReadyAddresses {
					line += "!" + a.IP + " "
				}
				subsets = append(subsets, line+fmt.Sprintf("%s:%d", s.Ports[0].Name, s.Ports[0].Port))
			}
			if d := cmp.Diff(tt.want, strings.Join(subsets, ", ")); d != "" {
				t.Error(d)
			}
		})
	}
	e := desired(&corev1.Service{Spec: numbered}, many)
	if n := len(e.Subsets[0].Addresses); n != capacity || e.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("%d addresses, %v", n, e.Annotations)
	}
	// Those that are not ready come first, and go first.
	mixed := []*corev1.Pod{pod(5000, notReady), pod(5001, notReady)}
	e = desired(&corev1.Service{Spec: numbered}, append(mixed, many[:capacity-1]...))
	if s := e.Subsets[0]; len(s.Addresses) != capacity-1 || len(s.NotReadyAddresses) != 1 || e.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("%d addresses, %d that are not ready, %v", len(s.Addresses), len(s.NotReadyAddresses), e.Annotations)
	}
}
