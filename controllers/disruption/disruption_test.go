package disruption

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func ptr[T any](v T) *T { return &v }

var app = map[string]string{"app": "web"}

func budget(least, most string) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}}}
	if least != "" {
		b.Spec.MinAvailable = ptr(intstr.Parse(least))
	}
	if most != "" {
		b.Spec.MaxUnavailable = ptr(intstr.Parse(most))
	}
	return b
}

func TestCount(t *testing.T) {
	for _, tt := range []struct {
		least, most string
		pods        int
		scale       int32
		want        counts
	}{
		{"2", "", 5, -1, counts{5, 2}},
		{"7", "", 5, -1, counts{5, 7}},
		{"50%", "", 3, 5, counts{5, 3}},
		{"", "1", 3, 5, counts{5, 4}},
		{"", "30%", 3, 10, counts{10, 7}},
		{"", "9", 3, 5, counts{5, 0}},
		{"", "", 3, -1, counts{0, 0}},
	} {
		got, err := count(budget(tt.least, tt.most), tt.pods, func() (int32, error) {
			if tt.scale < 0 {
				return 0, errors.New("must not be asked")
			}
			return tt.scale, nil
		})
		if err != nil || got != tt.want {
			t.Errorf("%+v: %+v, %v", tt, got, err)
		}
	}
}

// start returns a cluster with a Deployment's pods: of wanted, as many as there are owned ones, all ready.
func start(t *testing.T, wanted int32, pods int) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	dep := rt.Create(t, c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &wanted}})
	for i := range 2 { // in the middle of a rollout
		rs := rt.Create(t, c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("web-", i),
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(dep)}}, Spec: appsv1.ReplicaSetSpec{Replicas: &wanted}})
		for n := range pods / 2 {
			rt.Create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("web-%d-%d", i, n), Labels: app,
				OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(rs)}}})
		}
	}
	rt.Start(t, d, New(d), rt.Kubelet(c))
	synctest.Wait()
	return c
}

func expect(t *testing.T, c *rt.Cluster, want string) {
	t.Helper()
	synctest.Wait()
	s := rt.Get[*policyv1.PodDisruptionBudget](t, c, "ns", "b").Status
	got := fmt.Sprintf("%d healthy of %d, %d needed, %d may go, %d leaving", s.CurrentHealthy, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed, len(s.DisruptedPods))
	for _, cond := range s.Conditions {
		got += ", " + cond.Reason
	}
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 6, 6)
		rt.Create(t, c, budget("", "50%"))
		expect(t, c, "6 healthy of 6, 3 needed, 3 may go, 0 leaving, SufficientPods")
		rt.SetReady(t.Context(), c, rt.Get[*corev1.Pod](t, c, "ns", "web-0-0"), false)
		expect(t, c, "5 healthy of 6, 3 needed, 2 may go, 0 leaving, SufficientPods")
		// An eviction was allowed, and the pod is not deleted.
		rt.Mutate(t, c, budget("", ""), "status", func(b *policyv1.PodDisruptionBudget) {
			b.Status.DisruptedPods = map[string]metav1.Time{"web-1-0": metav1.Now(), "gone": metav1.Now()}
			b.Status.DisruptionsAllowed--
		})
		expect(t, c, "4 healthy of 6, 3 needed, 1 may go, 1 leaving, SufficientPods")
		time.Sleep(3 * time.Minute)
		expect(t, c, "5 healthy of 6, 3 needed, 2 may go, 0 leaving, SufficientPods")
		rt.Delete(t, c, rt.Get[*corev1.Pod](t, c, "ns", "web-1-0"), client.DeleteOptions{})
		rt.Delete(t, c, rt.Get[*corev1.Pod](t, c, "ns", "web-1-1"), client.DeleteOptions{})
		expect(t, c, "3 healthy of 6, 3 needed, 0 may go, 0 leaving, InsufficientPods")
	})
}

// Shares of what nobody knows the number of allow nothing, a plain number of pods does.
func TestUnknownController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 0, 0)
		yes := true
		for n := range 2 {
			rt.Create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("job-", n), Labels: app,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "job", UID: "j", Controller: &yes}}}})
		}
		rt.Create(t, c, budget("50%", ""))
		expect(t, c, "0 healthy of 0, 0 needed, 0 may go, 0 leaving, SyncFailed")
		rt.Mutate(t, c, budget("", ""), "", func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = ptr(intstr.FromInt32(1)) })
		expect(t, c, "2 healthy of 2, 1 needed, 1 may go, 0 leaving, SufficientPods")
	})
}

func TestStaleTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2)
		p := rt.Get[*corev1.Pod](t, c, "ns", "web-0-0")
		rt.Mutate(t, c, p, "status", func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		})
		for _, want := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse} {
			time.Sleep(90 * time.Second)
			if got := api.PodCondition(rt.Get[*corev1.Pod](t, c, "ns", "web-0-0"), corev1.DisruptionTarget); got.Status != want {
				t.Errorf("%+v, want %s", got, want)
			}
		}
	})
}
