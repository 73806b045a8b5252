package deployment

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/replicaset"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func deployment(n int32, mods ...func(*appsv1.Deployment)) *appsv1.Deployment {
	app := map[string]string{"app": "web"}
	surge, unavailable := intstr.FromString("25%"), intstr.FromString("25%")
	limit, deadline := int32(2), int32(600)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: app},
			RevisionHistoryLimit: &limit, ProgressDeadlineSeconds: &deadline,
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}}}
	for _, m := range mods {
		m(d)
	}
	return d
}

func image(v string) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = v }
}

type world struct {
	*testing.T
	c *rt.Cluster
}

// start runs the controllers on d. Pods of images that begin with "bad" never start.
func start(t *testing.T, d *appsv1.Deployment) world {
	c := rt.New(t)
	deps := rt.Deps(t, c)
	good := func(p *corev1.Pod) bool {
		return p.DeletionTimestamp != nil || !strings.HasPrefix(p.Spec.Containers[0].Image, "bad")
	}
	rt.Start(t, deps, New(deps), replicaset.New(deps), rt.KubeletWhere(c, good))
	rt.Create(t, c, d)
	synctest.Wait()
	return world{t, c}
}

func (w world) change(f func(*appsv1.Deployment)) {
	w.Helper()
	rt.Mutate(w.T, w.c, deployment(0), "", f)
	synctest.Wait()
}

func (w world) deployment() *appsv1.Deployment {
	w.Helper()
	return rt.Get[*appsv1.Deployment](w.T, w.c, "ns", "web")
}

// sets prints the sets by revision: "v1 r1 3".
func (w world) sets() string {
	var out []string
	for _, rs := range rt.List[*appsv1.ReplicaSet](w.T, w.c) {
		out = append(out, fmt.Sprintf("%s r%d %d/%d", rs.Spec.Template.Spec.Containers[0].Image, revision(rs),
			*rs.Spec.Replicas, rs.Status.AvailableReplicas))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (w world) expect(want string) {
	w.Helper()
	if got := w.sets(); got != want {
		w.Errorf("got  %s\nwant %s", got, want)
	}
}

func (w world) condition(t appsv1.DeploymentConditionType, want string) {
	w.Helper()
	c := condition(&w.deployment().Status, t)
	got := "none"
	if c != nil {
		got = string(c.Status) + " " + c.Reason
	}
	if got != want {
		w.Errorf("%s is %s, want %s", t, got, want)
	}
}

func TestRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(3))
		w.expect("v1 r1 3/3")
		w.condition(appsv1.DeploymentAvailable, "True MinimumReplicasAvailable")
		w.condition(appsv1.DeploymentProgressing, "True NewReplicaSetAvailable")
		if d := w.deployment(); d.Generation != 1 || d.Annotations[revisionAnnotation] != "1" {
			t.Errorf("generation %d, revision %s; only users change what is wanted", d.Generation, d.Annotations[revisionAnnotation])
		}
		w.change(image("v2"))
		w.expect("v1 r1 0/0, v2 r2 3/3")
		if d := w.deployment(); d.Generation != 2 || d.Annotations[revisionAnnotation] != "2" {
			t.Errorf("generation %d, revision %s after one change", d.Generation, d.Annotations[revisionAnnotation])
		}
		// kubectl rollout undo
		w.change(image("v1"))
		w.expect("v1 r3 3/3, v2 r2 0/0")
		if h := w.deployment().Annotations[revisionAnnotation]; h != "3" {
			t.Errorf("revision %s", h)
		}
		w.change(image("v3"))
		w.change(image("v4"))
		w.expect("v1 r3 0/0, v3 r4 0/0, v4 r5 3/3") // history limit 2
		d := w.deployment()
		if s := d.Status; s.Replicas != 3 || s.UpdatedReplicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 ||
			s.UnavailableReplicas != 0 || s.ObservedGeneration != d.Generation {
			t.Errorf("status %+v", s)
		}
	})
}

// During a rollout the sets stay within the limits. (There may be more pods for a moment: those of a set that was scaled
// down and whose controller has not deleted them yet.)
func TestLimitsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(10))
		most, least := 0, 99
		ctx := t.Context()
		go func() {
			for range w.c.Watch(ctx, api.PodKind, client.Query{}, 0) {
				n, ready := 0, 0
				ps, _ := client.List[*corev1.Pod](ctx, w.c, client.Query{})
				for _, p := range ps {
					if api.PodActive(p) && api.PodReady(p) {
						ready++
					}
				}
				sets, _ := client.List[*appsv1.ReplicaSet](ctx, w.c, client.Query{})
				for _, rs := range sets {
					n += int(*rs.Spec.Replicas)
				}
				most, least = max(most, n), min(least, ready)
			}
		}()
		synctest.Wait()
		w.change(image("v2"))
		w.expect("v1 r1 0/0, v2 r2 10/10")
		if most > 13 || least < 8 {
			t.Errorf("at the extremes %d ready and %d asked for", least, most)
		}
	})
}

func TestStuckRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(10))
		w.change(image("bad"))
		w.expect("bad r2 5/0, v1 r1 8/8")
		w.condition(appsv1.DeploymentProgressing, "True ReplicaSetUpdated")
		time.Sleep(11 * time.Minute)
		w.condition(appsv1.DeploymentProgressing, "False ProgressDeadlineExceeded")
		w.condition(appsv1.DeploymentAvailable, "True MinimumReplicasAvailable")
		// A change of the size is shared by the sets.
		w.change(func(d *appsv1.Deployment) { n := int32(20); d.Spec.Replicas = &n })
		w.expect("bad r2 10/0, v1 r1 15/15")
		w.change(image("v1"))
		w.expect("bad r2 0/0, v1 r3 20/20")
		w.condition(appsv1.DeploymentProgressing, "True NewReplicaSetAvailable")
	})
}

func TestRecreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(3, func(d *appsv1.Deployment) {
			d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		}))
		w.expect("v1 r1 3/3")
		ctx, mixed := t.Context(), false
		go func() {
			for range w.c.Watch(ctx, api.PodKind, client.Query{}, 0) {
				images := map[string]bool{}
				ps, _ := client.List[*corev1.Pod](ctx, w.c, client.Query{})
				for _, p := range ps {
					images[p.Spec.Containers[0].Image] = true
				}
				mixed = mixed || len(images) > 1
			}
		}()
		w.change(image("v2"))
		w.expect("v1 r1 0/0, v2 r2 3/3")
		if mixed {
			t.Error("pods of both templates at the same time")
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(3))
		w.change(func(d *appsv1.Deployment) { d.Spec.Paused = true; image("v2")(d) })
		w.expect("v1 r1 3/3")
		w.condition(appsv1.DeploymentProgressing, "Unknown DeploymentPaused")
		w.change(func(d *appsv1.Deployment) { n := int32(5); d.Spec.Replicas = &n })
		w.expect("v1 r1 5/5")
		w.change(func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.expect("v1 r1 0/0, v2 r2 5/5")
	})
}

func TestCollision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		deps := rt.Deps(t, c)
		d := rt.Create(t, c, deployment(1))
		alien := makeSet(d, nil)
		alien.OwnerReferences = nil
		alien.Labels = nil
		rt.Create(t, c, alien)
		rt.Start(t, deps, New(deps), rt.Kubelet(c))
		time.Sleep(time.Minute)
		if n := rt.Get[*appsv1.Deployment](t, c, "ns", "web").Status.CollisionCount; n == nil || *n != 1 {
			t.Errorf("collision count %v", n)
		}
		if n := len(rt.List[*appsv1.ReplicaSet](t, c)); n != 2 {
			t.Errorf("%d sets", n)
		}
	})
}

func TestMinReadySecondsSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, deployment(4, func(d *appsv1.Deployment) { d.Spec.MinReadySeconds = 10 }))
		time.Sleep(time.Minute)
		w.change(image("v2"))
		if s := w.sets(); s != "v1 r1 3/3, v2 r2 2/0" {
			t.Error(s)
		}
		time.Sleep(time.Minute)
		w.expect("v1 r1 0/0, v2 r2 4/4")
	})
}

func TestLimits(t *testing.T) {
	tests := []struct {
		n                  int32
		surge, unavailable string
		wantSurge, wantUn  int32
	}{
		{10, "25%", "25%", 3, 2}, {1, "25%", "25%", 1, 0}, {4, "0", "0", 0, 1}, {1, "0%", "1%", 0, 1},
		{3, "2", "5", 2, 3}, {0, "25%", "25%", 0, 0},
	}
	for _, tt := range tests {
		d := deployment(tt.n)
		s, u := intstr.Parse(tt.surge), intstr.Parse(tt.unavailable)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}
		if surge, un := limits(d); surge != tt.wantSurge || un != tt.wantUn {
			t.Errorf("%+v: %d, %d", tt, surge, un)
		}
	}
}

func TestShare(t *testing.T) {
	set := func(name string, n, before int32) *appsv1.ReplicaSet {
		rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: name}}
		rs.Spec.Replicas = &n
		rs.Annotations = map[string]string{maxAnnotation: fmt.Sprint(before)}
		return rs
	}
	tests := []struct {
		name string
		n    int32
		sets []*appsv1.ReplicaSet
		want string
	}{
		{"doubled", 20, []*appsv1.ReplicaSet{set("a", 5, 10), set("b", 5, 10)}, "a=13 b=12"},
		{"leftover goes to the largest", 11, []*appsv1.ReplicaSet{set("a", 9, 13), set("b", 4, 13)}, "a=10 b=4"},
		{"halved", 5, []*appsv1.ReplicaSet{set("a", 8, 13), set("b", 5, 13)}, "a=4 b=3"},
		{"nothing is left", 0, []*appsv1.ReplicaSet{set("a", 8, 13), set("b", 5, 13)}, "a=0 b=0"},
		{"unchanged", 10, []*appsv1.ReplicaSet{set("a", 8, 13), set("b", 5, 13)}, "a=8 b=5"},
	}
	for _, tt := range tests {
		var got []string
		for _, s := range share(deployment(tt.n), tt.sets) {
			got = append(got, fmt.Sprintf("%s=%d", s.set.Name, s.to))
		}
		if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}
