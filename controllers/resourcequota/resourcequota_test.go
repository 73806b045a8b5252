package resourcequota

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/quota"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func hard(names ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for _, n := range names {
		l[corev1.ResourceName(n)] = resource.MustParse("10")
	}
	return l
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}}}}}}
}

func expect(t *testing.T, c *rt.Cluster, name, want string) {
	t.Helper()
	synctest.Wait()
	s := rt.Get[*corev1.ResourceQuota](t, c, "ns", name).Status
	var parts []string
	for _, n := range quota.Names(s.Used) {
		q := s.Used[n]
		parts = append(parts, fmt.Sprintf("%s=%s", n, q.String()))
	}
	if got := strings.Join(parts, " "); got != want || len(s.Hard) == 0 {
		t.Errorf("%s: used %s, want %s", name, got, want)
	}
}

func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, api.Stored()))
		for _, name := range []string{"a", "b"} {
			rt.Create(t, c, pod(name))
		}
		deadline := int64(100)
		short := pod("short")
		short.Spec.ActiveDeadlineSeconds = &deadline
		rt.Create(t, c, short)
		rt.Create(t, c, &corev1.Service{ObjectMeta: meta("s"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1}, {Port: 2}}}})
		rt.Create(t, c, &appsv1.ReplicaSet{ObjectMeta: meta("rs")})
		rt.Create(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "cm"}})
		all := &corev1.ResourceQuota{ObjectMeta: meta("all"), Spec: corev1.ResourceQuotaSpec{
			Hard: hard("pods", "requests.cpu", "memory", "services.nodeports", "count/replicasets.apps", "configmaps", "resourcequotas", "unknown")}}
		rt.Create(t, c, all)
		expect(t, c, "all", "configmaps=0 count/replicasets.apps=1 memory=192Mi pods=3 requests.cpu=1500m resourcequotas=1 services.nodeports=2")
		rt.Create(t, c, &corev1.ResourceQuota{ObjectMeta: meta("terminating"), Spec: corev1.ResourceQuotaSpec{Hard: hard("pods"),
			Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}}})
		expect(t, c, "terminating", "pods=1")
		// What goes, ends or becomes less is given back at once.
		rt.Delete(t, c, pod("a"), client.DeleteOptions{})
		if err := rt.Finish(t.Context(), c, rt.Get[*corev1.Pod](t, c, "ns", "b"), corev1.PodSucceeded, 0); err != nil {
			t.Fatal(err)
		}
		rt.Mutate(t, c, &corev1.Service{ObjectMeta: meta("s")}, "", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
		expect(t, c, "all", "configmaps=0 count/replicasets.apps=1 memory=64Mi pods=1 requests.cpu=500m resourcequotas=2 services.nodeports=0")
		// What the API server reserved for an object that is not there (yet) stays for a while.
		rt.Mutate(t, c, all, "status", func(q *corev1.ResourceQuota) { q.Status.Used["configmaps"] = resource.MustParse("1") })
		rt.Create(t, c, &corev1.ConfigMap{ObjectMeta: meta("cm")})
		expect(t, c, "all", "configmaps=1 count/replicasets.apps=1 memory=64Mi pods=1 requests.cpu=500m resourcequotas=2 services.nodeports=0")
		rt.Mutate(t, c, all, "status", func(q *corev1.ResourceQuota) { q.Status.Used["configmaps"] = resource.MustParse("5") })
		expect(t, c, "all", "configmaps=5 count/replicasets.apps=1 memory=64Mi pods=1 requests.cpu=500m resourcequotas=2 services.nodeports=0")
		time.Sleep(again + time.Second)
		expect(t, c, "all", "configmaps=1 count/replicasets.apps=1 memory=64Mi pods=1 requests.cpu=500m resourcequotas=2 services.nodeports=0")
		// Other limits are counted at once.
		rt.Mutate(t, c, all, "", func(q *corev1.ResourceQuota) { q.Spec.Hard = hard("pods", "secrets") })
		expect(t, c, "all", "pods=1 secrets=0")
	})
}

// A count may come between a reservation and what it was made for.
func TestCountDuringCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, api.Stored()))
		rt.Create(t, c, pod("old"))
		q := &corev1.ResourceQuota{ObjectMeta: meta("q"), Spec: corev1.ResourceQuotaSpec{Hard: hard("pods")}}
		rt.Create(t, c, q)
		expect(t, c, "q", "pods=1")
		time.Sleep(2 * soon)
		rt.Mutate(t, c, q, "status", func(q *corev1.ResourceQuota) { q.Status.Used["pods"] = resource.MustParse("2") })
		rt.Delete(t, c, pod("old"), client.DeleteOptions{})
		expect(t, c, "q", "pods=0")
		rt.Create(t, c, pod("new"))
		expect(t, c, "q", "pods=0")
		time.Sleep(soon + time.Second)
		expect(t, c, "q", "pods=1")
	})
}
