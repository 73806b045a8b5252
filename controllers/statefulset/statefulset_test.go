package statefulset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func begin(t *testing.T, set *appsv1.StatefulSet) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	set.Spec.RevisionHistoryLimit = new(int32)
	rt.Create(t, c, set)
	rt.Start(t, d, New(d), rt.Kubelet(c))
	synctest.Wait()
	return c
}

func names[T client.Reader](t *testing.T, c T) string {
	var out []string
	pods, err := client.List[*corev1.Pod](t.Context(), c, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func status(t *testing.T, c *rt.Cluster) string {
	s := rt.Get[*appsv1.StatefulSet](t, c, "ns", "web").Status
	return fmt.Sprintf("%d replicas, %d ready, %d available, %d current, %d updated, rolled out: %v", s.Replicas, s.ReadyReplicas, s.AvailableReplicas,
		s.CurrentReplicas, s.UpdatedReplicas, s.CurrentRevision == s.UpdateRevision)
}

// A set comes up, is rolled to another template, grows and shrinks.
func TestConverges(t *testing.T) {
	for _, ordered := range []bool{true, false} {
		t.Run(fmt.Sprint(ordered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := statefulSet(3, claims)
				if !ordered {
					parallel(&set.Spec)
				}
				c := begin(t, set)
				if got := names(t, c); got != "web-0 web-1 web-2" {
					t.Errorf("pods %s", got)
				}
				const done = "3 replicas, 3 ready, 3 available, 3 current, 3 updated, rolled out: true"
				if got := status(t, c); got != done {
					t.Errorf("got %s", got)
				}
				p := rt.Get[*corev1.Pod](t, c, "ns", "web-1")
				if p.Spec.Hostname != "web-1" || p.Spec.Subdomain != "svc" || p.Labels[appsv1.PodIndexLabel] != "1" ||
					p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-web-1" {
					t.Errorf("pod %+v %+v", p.ObjectMeta, p.Spec)
				}
				if got := rt.List[*corev1.PersistentVolumeClaim](t, c); len(got) != 3 || got[0].Labels["app"] != "web" {
					t.Errorf("claims %+v", got)
				}
				rt.Mutate(t, c, set, "", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.NodeName = "n1" })
				time.Sleep(time.Minute)
				if got := status(t, c); got != done {
					t.Errorf("after the update: %s", got)
				}
				if got := rt.List[*appsv1.ControllerRevision](t, c); len(got) != 1 || got[0].Revision != 2 {
					t.Errorf("revisions %+v", got)
				}
				rt.Mutate(t, c, set, "", func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
				time.Sleep(time.Minute)
				if got := names(t, c); got != "web-0" {
					t.Errorf("pods %s", got)
				}
				if n := len(rt.List[*corev1.PersistentVolumeClaim](t, c)); n != 3 {
					t.Errorf("%d claims are left", n)
				}
			})
		})
	}
}

// Of a rolled set, the pods below the partition come back as they were.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := statefulSet(3, rolling(2, "1"))
		c := begin(t, set)
		rt.Mutate(t, c, set, "", func(s *appsv1.StatefulSet) { s.Spec.Template.Labels["v"] = "2" })
		time.Sleep(time.Minute)
		for _, n := range []string{"web-0", "web-2"} {
			rt.Delete(t, c, rt.Get[*corev1.Pod](t, c, "ns", n), client.DeleteOptions{})
		}
		time.Sleep(time.Minute)
		for n, want := range map[string]string{"web-0": "", "web-1": "", "web-2": "2"} {
			if got := rt.Get[*corev1.Pod](t, c, "ns", n).Labels["v"]; got != want {
				t.Errorf("%s is of template %q", n, got)
			}
		}
		if got := status(t, c); got != "3 replicas, 3 ready, 3 available, 2 current, 1 updated, rolled out: false" {
			t.Errorf("got %s", got)
		}
	})
}

// A pod that is not available for long enough keeps the next one from being made.
func TestMinReadySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begin(t, statefulSet(2, seconds(10)))
		time.Sleep(5 * time.Second)
		if got := names(t, c); got != "web-0" {
			t.Errorf("pods %s", got)
		}
		time.Sleep(6 * time.Second)
		if got := names(t, c); got != "web-0 web-1" {
			t.Errorf("pods %s", got)
		}
	})
}

// A failed pod is made again under its name.
func TestFailedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begin(t, statefulSet(1))
		old := rt.Get[*corev1.Pod](t, c, "ns", "web-0")
		if err := rt.Finish(t.Context(), c, old, corev1.PodFailed, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if p := rt.Get[*corev1.Pod](t, c, "ns", "web-0"); p.UID == old.UID || p.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %+v", p)
		}
	})
}
