package podgc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func pod(name, node string, mods ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
	for _, m := range mods {
		m(p)
	}
	return p
}

func TestVanishedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, Threshold))
		for _, n := range []string{"n1", "n2"} {
			rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
			rt.Create(t, c, pod("on-"+n, n))
		}
		rt.Create(t, c, pod("pending", ""))
		names := func() string {
			var out []string
			for _, p := range rt.List[*corev1.Pod](t, c) {
				out = append(out, p.Name)
			}
			return strings.Join(out, " ")
		}
		time.Sleep(time.Hour)
		rt.Delete(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, client.DeleteOptions{})
		time.Sleep(39 * time.Second)
		if got := names(); got != "on-n1 on-n2 pending" {
			t.Errorf("in quarantine: %s", got)
		}
		time.Sleep(time.Minute)
		if got := names(); got != "on-n2 pending" {
			t.Errorf("afterwards: %s", got)
		}
	})
}

func TestDoomed(t *testing.T) {
	phase := func(p corev1.PodPhase, reason string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) { pod.Status.Phase, pod.Status.Reason = p, reason }
	}
	deleting := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
	age := func(n int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(1000-n, 0) }
	}
	nodes := map[string]*corev1.Node{"n": {}, "out": {Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService}}}}}
	pods := []*corev1.Pod{
		pod("running", "n"), pod("deleting", "n", deleting), pod("unplaced", "", deleting), pod("waiting", ""),
		pod("stranded", "out", deleting), pod("stays", "out"), pod("lost", "gone"), pod("lost-done", "gone", phase("Succeeded", "")),
		pod("old", "n", phase("Failed", ""), age(9)), pod("young", "n", phase("Succeeded", ""), age(1)),
		pod("evicted", "n", phase("Failed", "Evicted"), age(0)),
	}
	var got []string
	for _, v := range doomed(pods, nodes, map[string]bool{"gone": true}, 1) {
		got = append(got, fmt.Sprint(v.pod.Name, " ", v.disrupted))
	}
	want := []string{"unplaced false", "stranded true", "lost true", "lost-done false", "evicted false", "old false"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
