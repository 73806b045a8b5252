package devicetainteviction

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func ptr[T any](v T) *T { return &v }

func taint(key string, effect resourcev1.DeviceTaintEffect, at time.Time) resourcev1.DeviceTaint {
	return resourcev1.DeviceTaint{Key: key, Effect: effect, TimeAdded: ptr(metav1.NewTime(at))}
}

func TestUntil(t *testing.T) {
	begin := time.Unix(1e9, 0)
	bears := func(key string, seconds *int64) resourcev1.DeviceToleration {
		return resourcev1.DeviceToleration{Key: key, Operator: resourcev1.DeviceTolerationOpExists, TolerationSeconds: seconds}
	}
	for _, x := range []struct {
		what string
		ts   []resourcev1.DeviceToleration
		want string
	}{
		{"not tolerated", []resourcev1.DeviceToleration{bears("other", nil)}, "0s"},
		{"for good", []resourcev1.DeviceToleration{bears("a", ptr(int64(5))), bears("a", nil)}, "never"},
		{"for a time", []resourcev1.DeviceToleration{bears("a", ptr(int64(9))), bears("", ptr(int64(5)))}, "5s"},
		{"for no time", []resourcev1.DeviceToleration{bears("a", ptr(int64(-5)))}, "0s"},
		{"for an age", []resourcev1.DeviceToleration{bears("a", ptr(int64(math.MaxInt64)))}, longest.String()},
		{"another effect", []resourcev1.DeviceToleration{{Operator: resourcev1.DeviceTolerationOpExists, Effect: resourcev1.DeviceTaintEffectNoSchedule}}, "0s"},
		{"another value", []resourcev1.DeviceToleration{{Key: "a", Operator: resourcev1.DeviceTolerationOpEqual, Value: "x"}}, "0s"},
	} {
		got := "never"
		a := taint("a", resourcev1.DeviceTaintEffectNoExecute, begin)
		if at := until(&a, x.ts); at != nil {
			got = at.Sub(begin).String()
		}
		if got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
}

func TestTaints(t *testing.T) {
	of := device{pool{"d", "p"}, "gpu"}
	for _, x := range []struct {
		s    *resourcev1.DeviceTaintSelector
		want bool
	}{
		{nil, false}, {&resourcev1.DeviceTaintSelector{}, true}, {&resourcev1.DeviceTaintSelector{Driver: ptr("d"), Pool: ptr("p"), Device: ptr("gpu")}, true},
		{&resourcev1.DeviceTaintSelector{Driver: ptr("e")}, false}, {&resourcev1.DeviceTaintSelector{Pool: ptr("q")}, false}, {&resourcev1.DeviceTaintSelector{Device: ptr("g")}, false},
	} {
		if got := taints(&resourcev1.DeviceTaintRule{Spec: resourcev1.DeviceTaintRuleSpec{DeviceSelector: x.s}}, of); got != x.want {
			t.Errorf("%+v: %v", x.s, got)
		}
	}
}

func TestConditions(t *testing.T) {
	for _, x := range []struct {
		f       findings
		effect  resourcev1.DeviceTaintEffect
		evicted int
		want    string
	}{
		{findings{1, 3, 1, 1}, resourcev1.DeviceTaintEffectNone, 0, "False NoEffect: 1 published device selected. 3 allocated devices selected. " +
			"1 pod would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."},
		{findings{3, 3, 1, 1}, resourcev1.DeviceTaintEffectNoSchedule, 0, "False OtherEffect: Eviction only happens for the NoExecute effect."},
		{findings{3, 3, 1, 1}, resourcev1.DeviceTaintEffectNoExecute, 2, "True PodsPendingEviction: 1 pod needs to be evicted in 1 namespace. 2 pods evicted since starting the controller."},
		{findings{3, 3, 4, 2}, resourcev1.DeviceTaintEffectNoExecute, 0, "True PodsPendingEviction: 4 pods need to be evicted in 2 different namespaces."},
		{findings{}, resourcev1.DeviceTaintEffectNoExecute, 1, "False Completed: 1 pod evicted since starting the controller."},
		{findings{}, resourcev1.DeviceTaintEffectNoExecute, 0, "False NotStarted: "},
	} {
		c := x.f.condition(x.effect, x.evicted)
		if got := fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message); got != x.want {
			t.Errorf("%s, want %s", got, x.want)
		}
	}
}

// world is a cluster with a pod on a node for each claim, each with the device of its name.
type world struct {
	*rt.Cluster
	t *testing.T
}

func newWorld(t *testing.T) *world {
	w := &world{rt.New(t), t}
	d := rt.Deps(t, w.Cluster)
	rt.Start(t, d, New(d))
	return w
}

func (w *world) use(name, node string, tolerations ...resourcev1.DeviceToleration) {
	w.t.Helper()
	p := rt.Create(w.t, w.Cluster, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node,
		ResourceClaims: []corev1.PodResourceClaim{{Name: "x", ResourceClaimName: &name}}}})
	c := rt.Create(w.t, w.Cluster, &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}})
	rt.Mutate(w.t, w.Cluster, c, "status", func(c *resourcev1.ResourceClaim) {
		c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
			{Driver: "d", Pool: "p", Device: name, Tolerations: tolerations}}}}
		c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: p.Name, UID: p.UID}, {APIGroup: "g", Resource: "others", Name: "o", UID: "u"}}
	})
}

// publish makes a slice of the pool with devices of these names and their taints.
func (w *world) publish(slice string, generation int64, devices map[string]resourcev1.DeviceTaintEffect) {
	w.t.Helper()
	s := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: slice}, Spec: resourcev1.ResourceSliceSpec{Driver: "d", Pool: resourcev1.ResourcePool{Name: "p", Generation: generation}}}
	for name, effect := range devices {
		d := resourcev1.Device{Name: name}
		if effect != "" {
			d.Taints = []resourcev1.DeviceTaint{taint("broken", effect, time.Now())}
		}
		s.Spec.Devices = append(s.Spec.Devices, d)
	}
	rt.Create(w.t, w.Cluster, s)
}

// expect says which pods are left.
func (w *world) expect(when, want string) {
	w.t.Helper()
	synctest.Wait()
	var left []string
	for _, p := range rt.List[*corev1.Pod](w.t, w.Cluster) {
		if p.DeletionTimestamp == nil {
			left = append(left, p.Name)
		} else if c := p.Status.Conditions; len(c) != 1 || c[0].Type != corev1.DisruptionTarget || c[0].Reason != "DeletionByDeviceTaintManager" {
			w.t.Errorf("conditions %+v", c)
		}
	}
	if got := fmt.Sprint(left); got != want {
		w.t.Errorf("%s: %s are left, want %s", when, got, want)
	}
}

func bearing(seconds *int64) resourcev1.DeviceToleration {
	return resourcev1.DeviceToleration{Operator: resourcev1.DeviceTolerationOpExists, TolerationSeconds: seconds}
}

// Taints of drivers evict pods at once, in time or never, by the newest generation of the pool.
func TestPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.use("a", "n1")
		w.use("b", "n1", bearing(nil))
		w.use("c", "n1", bearing(ptr(int64(60))))
		w.use("d", "n1")
		w.use("e", "")
		all := func(effect resourcev1.DeviceTaintEffect) map[string]resourcev1.DeviceTaintEffect {
			return map[string]resourcev1.DeviceTaintEffect{"a": effect, "b": effect, "c": effect, "d": "", "e": effect}
		}
		w.publish("s1", 1, all(resourcev1.DeviceTaintEffectNoSchedule))
		w.expect("with NoSchedule", "[a b c d e]")
		w.publish("s2", 2, all(resourcev1.DeviceTaintEffectNoExecute))
		w.expect("with NoExecute", "[b c d e]")
		time.Sleep(59 * time.Second)
		w.publish("s3", 3, all(""))
		time.Sleep(time.Hour)
		w.expect("after the taint has gone in time", "[b c d e]")
		w.publish("s4", 4, all(resourcev1.DeviceTaintEffectNoExecute))
		time.Sleep(59 * time.Second)
		w.expect("in its time", "[b c d e]")
		time.Sleep(time.Second)
		w.expect("after its time", "[b d e]")
		rt.Mutate(t, w.Cluster, rt.Get[*corev1.Pod](t, w.Cluster, "ns", "e"), "", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
		w.expect("when it has a node", "[b d]")
		w.use("a2", "n1")
		rt.Mutate(t, w.Cluster, rt.Get[*resourcev1.ResourceClaim](t, w.Cluster, "ns", "a2"), "status", func(c *resourcev1.ResourceClaim) { c.Status.Allocation.Devices.Results[0].Device = "a" })
		w.expect("when a claim comes after the taint", "[b d]")
	})
}

// A rule evicts, and tells how far it has come.
func TestRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.use("a", "n1")
		w.use("b", "n1", bearing(nil))
		w.use("c", "n1", bearing(ptr(int64(60))))
		told := func(when, want string) {
			t.Helper()
			synctest.Wait()
			r := rt.Get[*resourcev1.DeviceTaintRule](t, w.Cluster, "", "r")
			c := meta.FindStatusCondition(r.Status.Conditions, resourcev1.DeviceTaintConditionEvictionInProgress)
			if c == nil || c.ObservedGeneration != r.Generation || string(c.Status)+" "+c.Reason != want {
				t.Errorf("%s: generation %d, %+v, want %s", when, r.Generation, c, want)
			}
		}
		r := rt.Create(t, w.Cluster, &resourcev1.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: resourcev1.DeviceTaintRuleSpec{
			DeviceSelector: &resourcev1.DeviceTaintSelector{Driver: ptr("d")}, Taint: taint("broken", resourcev1.DeviceTaintEffectNone, time.Now())}})
		w.expect("without effect", "[a b c]")
		told("without effect", "False NoEffect")
		w.use("d", "n1")
		time.Sleep(time.Hour)
		if n := w.Writes("update/status devicetaintrules.resource.k8s.io"); n != 1 {
			t.Errorf("the status of a rule without effect was written %d times", n)
		}
		rt.Mutate(t, w.Cluster, r, "", func(r *resourcev1.DeviceTaintRule) {
			r.Spec.Taint = taint("broken", resourcev1.DeviceTaintEffectNoExecute, time.Now())
		})
		w.expect("with the effect", "[b c]")
		time.Sleep(period)
		told("while one waits", "True PodsPendingEviction")
		time.Sleep(time.Minute)
		w.expect("after its time", "[b]")
		time.Sleep(period)
		told("after all", "False Completed")
		rt.Delete(t, w.Cluster, rt.Get[*resourcev1.DeviceTaintRule](t, w.Cluster, "", "r"), client.DeleteOptions{})
		w.use("f", "n1")
		w.expect("without the rule", "[b f]")
		writes := w.Writes("update/status devicetaintrules.resource.k8s.io")
		time.Sleep(time.Hour)
		if n := w.Writes("update/status devicetaintrules.resource.k8s.io"); n != writes || n > 5 {
			t.Errorf("the rule's status was written %d times", n)
		}
	})
}
