package tainteviction

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func seconds(n int64) *int64 { return &n }

func TestTolerated(t *testing.T) {
	taint := func(k string) corev1.Taint { return corev1.Taint{Key: k, Effect: corev1.TaintEffectNoExecute} }
	bears := func(k string, s *int64) corev1.Toleration {
		return corev1.Toleration{Key: k, Operator: "Exists", TolerationSeconds: s}
	}
	tests := []struct {
		name    string
		ts      []corev1.Toleration
		taints  []corev1.Taint
		bound   time.Duration
		forever bool
	}{
		{"no taint", nil, nil, 0, true},
		{"no toleration", nil, []corev1.Taint{taint("a")}, 0, false},
		{"for good", []corev1.Toleration{bears("a", nil)}, []corev1.Taint{taint("a")}, 0, true},
		{"for a time", []corev1.Toleration{bears("a", seconds(9))}, []corev1.Taint{taint("a")}, 9 * time.Second, false},
		{"the shortest counts", []corev1.Toleration{bears("a", seconds(9)), bears("b", seconds(5)), bears("c", nil)},
			[]corev1.Taint{taint("a"), taint("b"), taint("c")}, 5 * time.Second, false},
		{"one is not tolerated", []corev1.Toleration{bears("a", nil)}, []corev1.Taint{taint("a"), taint("b")}, 0, false},
		{"a negative time is none", []corev1.Toleration{bears("a", seconds(-1))}, []corev1.Taint{taint("a")}, 0, false},
	}
	for _, tt := range tests {
		if bound, forever := tolerated(tt.ts, tt.taints); bound != tt.bound || forever != tt.forever {
			t.Errorf("%s: %v, %v", tt.name, bound, forever)
		}
	}
}

func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		n := rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		for name, ts := range map[string][]corev1.Toleration{
			"none": nil, "minute": {{Operator: "Exists", TolerationSeconds: seconds(60)}}, "ever": {{Operator: "Exists"}}} {
			rt.Create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: "n", Tolerations: ts}})
		}
		rt.Start(t, d, New(d))
		deleting := func(name string) bool { return rt.Get[*corev1.Pod](t, c, "ns", name).DeletionTimestamp != nil }
		expect := func(none, minute bool) {
			t.Helper()
			synctest.Wait()
			if deleting("none") != none || deleting("minute") != minute || deleting("ever") {
				t.Errorf("none %v, minute %v, ever %v", deleting("none"), deleting("minute"), deleting("ever"))
			}
		}
		expect(false, false)
		set := func(ts ...corev1.Taint) {
			rt.Mutate(t, c, n, "", func(n *corev1.Node) { n.Spec.Taints = ts })
		}
		set(corev1.Taint{Key: "x", Effect: "NoSchedule"})
		expect(false, false)
		set(corev1.Taint{Key: "x", Effect: "NoExecute"})
		expect(true, false)
		time.Sleep(50 * time.Second)
		set() // in time: the clock starts anew
		synctest.Wait()
		set(corev1.Taint{Key: "x", Effect: "NoExecute"})
		time.Sleep(50 * time.Second)
		expect(true, false)
		time.Sleep(11 * time.Second)
		expect(true, true)
	})
}
