package daemonset

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
	"github.com/yare-dev/yare/run"
)

func daemonSet(mods ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	l := map[string]string{"app": "d"}
	limit := int32(1)
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "d"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: l}, RevisionHistoryLimit: &limit,
		Template:       corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}},
		UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: rolling("0", "1")}}}
	for _, m := range mods {
		m(ds)
	}
	return ds
}

func rolling(surge, unavailable string) *appsv1.RollingUpdateDaemonSet {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return &appsv1.RollingUpdateDaemonSet{MaxSurge: &s, MaxUnavailable: &u}
}

func image(v string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = v }
}

func node(name string, mods ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "a"}}}
	for _, m := range mods {
		m(n)
	}
	return n
}

func taint(key string, e corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: e}) }
}

// scheduler binds pods to the Node that their affinity names.
func scheduler(c *rt.Cluster) run.Component {
	return run.Func("scheduler", func(ctx context.Context, ready func()) error {
		ready()
		for e, err := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
			if err != nil {
				return err
			}
			if p, ok := e.Object.(*corev1.Pod); ok && e.Op == client.Added && p.Spec.NodeName == "" {
				_, _ = client.Mutate(ctx, c, p, "", func(p *corev1.Pod) { p.Spec.NodeName = target(p) })
			}
		}
		return nil
	})
}

// start runs the controller; pods of images that begin with "bad" never start.
func start(t *testing.T, ds *appsv1.DaemonSet, nodes ...*corev1.Node) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	for _, n := range nodes {
		rt.Create(t, c, n)
	}
	rt.Start(t, d, New(d), scheduler(c), rt.KubeletWhere(c, func(p *corev1.Pod) bool {
		return p.Spec.NodeName != "" && (p.DeletionTimestamp != nil || !strings.HasPrefix(p.Spec.Containers[0].Image, "bad"))
	}))
	rt.Create(t, c, ds)
	synctest.Wait()
	return c
}

// pods prints "node image" for each pod.
func pods(t *testing.T, c *rt.Cluster) string {
	var out []string
	for _, p := range rt.List[*corev1.Pod](t, c) {
		out = append(out, p.Spec.NodeName+" "+p.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func expect(t *testing.T, c *rt.Cluster, want string) {
	t.Helper()
	synctest.Wait()
	if got := pods(t, c); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPlacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.NodeSelector = map[string]string{"zone": "a"}
			ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "mine", Operator: "Exists"}}
		}), node("plain"), node("mine", taint("mine", "NoSchedule")), node("other", taint("other", "NoSchedule")),
			node("soft", taint("other", "PreferNoSchedule")), node("sick", taint(corev1.TaintNodeUnreachable, "NoExecute"),
				taint(corev1.TaintNodeUnschedulable, "NoSchedule")), node("far", func(n *corev1.Node) { n.Labels["zone"] = "b" }))
		expect(t, c, "mine v1, plain v1, sick v1, soft v1")
		// A pod that runs bears a NoSchedule taint and leaves at a NoExecute one, or when the selector matches no more.
		rt.Mutate(t, c, node("plain"), "", taint("other", "NoSchedule"))
		rt.Mutate(t, c, node("soft"), "", taint("other", "NoExecute"))
		rt.Mutate(t, c, node("mine"), "", func(n *corev1.Node) { n.Labels["zone"] = "b" })
		rt.Mutate(t, c, node("far"), "", func(n *corev1.Node) { n.Labels["zone"] = "a" })
		expect(t, c, "far v1, plain v1, sick v1")
		s := rt.Get[*appsv1.DaemonSet](t, c, "ns", "d").Status
		got := fmt.Sprint(s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.NumberAvailable,
			s.UpdatedNumberScheduled, s.NumberUnavailable)
		if got != "2 2 1 2 2 2 0" {
			t.Errorf("status %s", got)
		}
	})
}

func TestRollingUpdate(t *testing.T) {
	for _, tt := range []struct {
		surge, unavailable string
		least, most        int // ready, and pods, at any time
	}{{"0", "1", 4, 5}, {"0", "40%", 3, 5}, {"1", "0", 5, 6}, {"100%", "0", 5, 10}} {
		t.Run(tt.surge+"-"+tt.unavailable, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(t, daemonSet(func(ds *appsv1.DaemonSet) { ds.Spec.UpdateStrategy.RollingUpdate = rolling(tt.surge, tt.unavailable) }),
					node("a"), node("b"), node("c"), node("d"), node("e"))
				expect(t, c, "a v1, b v1, c v1, d v1, e v1")
				least, most, ctx := 99, 0, t.Context()
				go func() {
					for range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
						ps, _ := client.List[*corev1.Pod](ctx, c, client.Query{})
						n, ready := 0, 0
						for _, p := range ps {
							if p.DeletionTimestamp == nil {
								n++
								if api.PodReady(p) {
									ready++
								}
							}
						}
						least, most = min(least, ready), max(most, n)
					}
				}()
				synctest.Wait()
				rt.Mutate(t, c, daemonSet(), "", image("v2"))
				expect(t, c, "a v2, b v2, c v2, d v2, e v2")
				if least < tt.least || most > tt.most {
					t.Errorf("%d ready and %d pods at the extremes", least, most)
				}
			})
		})
	}
}

func TestBadUpdateStopsAndIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(), node("a"), node("b"), node("c"))
		rt.Mutate(t, c, daemonSet(), "", image("bad"))
		expect(t, c, "a bad, b v1, c v1")
		rt.Mutate(t, c, daemonSet(), "", image("v1"))
		expect(t, c, "a v1, b v1, c v1")
		// The old template is the newest revision again.
		last := map[int64]string{}
		for _, r := range rt.List[*appsv1.ControllerRevision](t, c) {
			last[r.Revision] = string(r.Data.Raw)
		}
		if len(last) != 2 || !strings.Contains(last[3], `"image":"v1"`) || !strings.Contains(last[2], `"image":"bad"`) {
			t.Errorf("revisions %v", last)
		}
	})
}

func TestHistoryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(), node("a"))
		for i := range 5 {
			rt.Mutate(t, c, daemonSet(), "", image(fmt.Sprint("w", i)))
			synctest.Wait()
		}
		expect(t, c, "a w4")
		if n := len(rt.List[*appsv1.ControllerRevision](t, c)); n != 2 {
			t.Errorf("%d revisions", n)
		}
	})
}

func TestOnDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(func(ds *appsv1.DaemonSet) {
			ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
		}), node("a"), node("b"))
		rt.Mutate(t, c, daemonSet(), "", image("v2"))
		expect(t, c, "a v1, b v1")
		for _, p := range rt.List[*corev1.Pod](t, c) {
			if p.Spec.NodeName == "a" {
				rt.Delete(t, c, p, client.DeleteOptions{})
			}
		}
		expect(t, c, "a v2, b v1")
	})
}

// Pods that fail again and again are replaced ever more slowly.
func TestFailedPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Create(t, c, node("a"))
		rt.Create(t, c, daemonSet())
		rt.Start(t, d, New(d), run.Func("failing", func(ctx context.Context, ready func()) error {
			ready()
			for e := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
				if p, ok := e.Object.(*corev1.Pod); ok && e.Op == client.Added {
					_ = rt.Finish(ctx, c, p, corev1.PodFailed, 1)
				}
			}
			return nil
		}))
		time.Sleep(time.Minute + time.Second)
		minute := c.Writes("create pods")
		time.Sleep(24 * time.Hour)
		day := c.Writes("create pods") - minute
		if minute < 5 || minute > 8 || day < 90 || day > 110 {
			t.Errorf("%d pods in the first minute, %d on the first day", minute, day)
		}
	})
}

func TestLostNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(), node("a"), node("b"))
		rt.Create(t, c, node("c"))
		expect(t, c, "a v1, b v1, c v1")
		rt.Delete(t, c, node("c"), client.DeleteOptions{})
		synctest.Wait()
		if s := rt.Get[*appsv1.DaemonSet](t, c, "ns", "d").Status; s.DesiredNumberScheduled != 2 {
			t.Errorf("%d desired", s.DesiredNumberScheduled)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, daemonSet(func(ds *appsv1.DaemonSet) { ds.Spec.MinReadySeconds = 10 }), node("a"), node("b"))
		time.Sleep(time.Minute)
		rt.Mutate(t, c, daemonSet(), "", image("v2"))
		expect(t, c, "a v2, b v1")
		time.Sleep(time.Minute)
		expect(t, c, "a v2, b v2")
		if s := rt.Get[*appsv1.DaemonSet](t, c, "ns", "d").Status; s.NumberAvailable != 2 || s.UpdatedNumberScheduled != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNewPod(t *testing.T) {
	ds := daemonSet(func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.HostNetwork = true
		ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: "Exists", Effect: "NoExecute"}}
		ds.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "3"}
	})
	p := newPod(ds, "n", "h")
	if target(p) != "n" || len(p.Spec.Tolerations) != 7 || p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] != "h" || p.Labels[generationLabel] != "3" {
		t.Errorf("%+v", p)
	}
	if ds.Spec.Template.Spec.Affinity != nil || len(ds.Spec.Template.Labels) != 1 {
		t.Error("the template was changed")
	}
}
