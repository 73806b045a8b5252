package replicaset

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func replicaSet(n int32) *appsv1.ReplicaSet {
	app := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: appsv1.ReplicaSetSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}}}}
}

func start(t *testing.T, n int32) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	rt.Start(t, d, New(d), rt.Kubelet(c))
	rt.Create(t, c, replicaSet(n))
	synctest.Wait()
	return c
}

func status(t *testing.T, c *rt.Cluster) string {
	s := rt.Get[*appsv1.ReplicaSet](t, c, "ns", "web").Status
	return fmt.Sprintf("%d replicas, %d ready, %d available, %d terminating, %d conditions",
		s.Replicas, s.ReadyReplicas, s.AvailableReplicas, *s.TerminatingReplicas, len(s.Conditions))
}

func expect(t *testing.T, c *rt.Cluster, want string) {
	t.Helper()
	synctest.Wait()
	if got := status(t, c); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestConverges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 100)
		expect(t, c, "100 replicas, 100 ready, 100 available, 0 terminating, 0 conditions")
		if n := c.Writes("create pods"); n != 100 {
			t.Errorf("%d creations", n)
		}
		rt.Mutate(t, c, replicaSet(0), "", func(rs *appsv1.ReplicaSet) { rs.Spec.Replicas = new(int32) })
		expect(t, c, "0 replicas, 0 ready, 0 available, 0 terminating, 0 conditions")
		if n := c.Writes("delete pods"); n != 200 { // the controller's and the kubelet's
			t.Errorf("%d deletions", n)
		}
	})
}

func TestLostPodIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3)
		p := rt.List[*corev1.Pod](t, c)[0]
		if err := rt.Finish(t.Context(), c, p, corev1.PodFailed, 1); err != nil {
			t.Fatal(err)
		}
		expect(t, c, "3 replicas, 3 ready, 3 available, 0 terminating, 0 conditions")
		if n := len(rt.List[*corev1.Pod](t, c)); n != 4 {
			t.Errorf("%d pods", n)
		}
	})
}

func TestAdoptionAndRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2)
		p := rt.List[*corev1.Pod](t, c)[0]
		rt.Mutate(t, c, p, "", func(p *corev1.Pod) { p.Labels["app"] = "debug" })
		synctest.Wait()
		if now := rt.Get[*corev1.Pod](t, c, "ns", p.Name); len(now.OwnerReferences) != 0 {
			t.Error("not released")
		}
		expect(t, c, "2 replicas, 2 ready, 2 available, 0 terminating, 0 conditions")
		rt.Mutate(t, c, p, "", func(p *corev1.Pod) { p.Labels["app"] = "web" })
		expect(t, c, "2 replicas, 2 ready, 2 available, 0 terminating, 0 conditions")
		if n := len(rt.List[*corev1.Pod](t, c)); n != 2 {
			t.Errorf("%d pods: the returned one was not adopted", n)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 1)
		rt.Mutate(t, c, replicaSet(0), "", func(rs *appsv1.ReplicaSet) { rs.Spec.MinReadySeconds = 10 })
		expect(t, c, "1 replicas, 1 ready, 0 available, 0 terminating, 0 conditions")
		time.Sleep(11 * time.Second)
		expect(t, c, "1 replicas, 1 ready, 1 available, 0 terminating, 0 conditions")
	})
}

func TestRefusedCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		var full atomic.Bool
		full.Store(true)
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if full.Load() && verb == "create" && k == api.PodKind {
				return errors.New("quota")
			}
			return nil
		}
		rt.Create(t, c, replicaSet(100))
		rt.Start(t, d, New(d), rt.Kubelet(c))
		expect(t, c, "0 replicas, 0 ready, 0 available, 0 terminating, 1 conditions")
		if n := c.Writes("create pods"); n != 2 { // the written condition wakes it once
			t.Errorf("%d creations before the first delay", n)
		}
		full.Store(false)
		time.Sleep(time.Minute)
		expect(t, c, "100 replicas, 100 ready, 100 available, 0 terminating, 0 conditions")
	})
}

func TestDeletedSetIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2)
		rt.Delete(t, c, replicaSet(2), client.DeleteOptions{Propagation: metav1.DeletePropagationForeground})
		for _, p := range rt.List[*corev1.Pod](t, c) {
			rt.Delete(t, c, p, client.DeleteOptions{})
		}
		expect(t, c, "0 replicas, 0 ready, 0 available, 0 terminating, 0 conditions")
	})
}

func TestVictims(t *testing.T) {
	now := time.Unix(1e9, 0)
	pod := func(name string, f func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u"}, Spec: corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady,
				Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}}}
		p.CreationTimestamp = metav1.NewTime(now.Add(-2 * time.Hour))
		if f != nil {
			f(p)
		}
		return p
	}
	ready := func(ago time.Duration) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-ago)) }
	}
	// Every pod goes before the next.
	order := []*corev1.Pod{
		pod("unassigned", func(p *corev1.Pod) { p.Spec.NodeName = "" }),
		pod("pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("unknown", func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown }),
		pod("not ready", func(p *corev1.Pod) { p.Status.Conditions = nil }),
		pod("cheap", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "-5"} }),
		pod("crowded", func(p *corev1.Pod) { p.Spec.NodeName = "m" }),
		pod("ready for a second", ready(time.Second)),
		pod("ready for a minute", ready(time.Minute)),
		pod("restarted", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
		}),
		pod("sidecar restarted", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
		}),
		pod("young", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute)) }),
		pod("old", nil),
		pod("dear", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "5"} }),
	}
	var siblings []*corev1.Pod
	for range 50 {
		siblings = append(siblings, pod("x", func(p *corev1.Pod) { p.Spec.NodeName = "m" }))
	}
	shuffled := []*corev1.Pod{}
	for i := range order {
		shuffled = append(shuffled, order[(i*5+3)%len(order)])
	}
	var want, got []string
	for i, p := range victims(shuffled, siblings, len(order)-1, now) {
		got = append(got, p.Name)
		want = append(want, order[i].Name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
