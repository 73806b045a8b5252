package nodelifecycle_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/nodelifecycle"
	"github.com/yare-dev/yare/controllers/tainteviction"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
	"github.com/yare-dev/yare/run"
)

// fleet is Nodes whose kubelets renew their leases while they are alive.
type fleet struct {
	*testing.T
	c *rt.Cluster

	mu   sync.Mutex
	dead map[string]bool
}

func start(t *testing.T, nodes ...string) *fleet {
	f := &fleet{T: t, c: rt.New(t), dead: map[string]bool{}}
	d := rt.Deps(t, f.c)
	for _, name := range nodes {
		host, zone, _ := strings.Cut(name, "@")
		n := rt.Create(t, f.c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: host, Labels: map[string]string{corev1.LabelTopologyZone: zone}}})
		setReady(t, f.c, n, corev1.ConditionTrue)
		rt.Create(t, f.c, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: host}})
		p := rt.Create(t, f.c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "on-" + host}, Spec: corev1.PodSpec{NodeName: host,
			Tolerations: []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: "Exists", Effect: "NoExecute", TolerationSeconds: seconds(300)},
				{Key: corev1.TaintNodeNotReady, Operator: "Exists", Effect: "NoExecute", TolerationSeconds: seconds(300)}}}})
		rt.SetReady(t.Context(), f.c, p, true)
	}
	rt.Start(t, d, nodelifecycle.New(d), tainteviction.New(d), run.Func("kubelets", f.beat))
	synctest.Wait()
	return f
}

func seconds(n int64) *int64 { return &n }

func setReady(t testing.TB, c *rt.Cluster, n *corev1.Node, s corev1.ConditionStatus) {
	rt.Mutate(t, c, n, "status", func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: s, LastHeartbeatTime: metav1.Now()}}
	})
}

// beat renews the leases of the living and lets nodes that were silent report again.
func (f *fleet) beat(ctx context.Context, ready func()) error {
	ready()
	for tick := time.NewTicker(10 * time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
		}
		nodes, err := client.List[*corev1.Node](ctx, f.c, client.Query{})
		if err != nil {
			return err
		}
		for _, n := range nodes {
			f.mu.Lock()
			dead := f.dead[n.Name]
			f.mu.Unlock()
			if dead {
				continue
			}
			l, err := client.Get[*coordinationv1.Lease](ctx, f.c, api.Key{Namespace: corev1.NamespaceNodeLease, Name: n.Name})
			if err != nil {
				return err
			}
			if _, err := client.Mutate(ctx, f.c, l, "", func(l *coordinationv1.Lease) { l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()} }); err != nil {
				return err
			}
			if n.Status.Conditions[0].Status == corev1.ConditionUnknown {
				setReady(f, f.c, n, corev1.ConditionTrue)
			}
		}
	}
}

func (f *fleet) kill(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		f.dead[n] = true
	}
}

func (f *fleet) revive(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		delete(f.dead, n)
	}
}

func (f *fleet) taints(node string) string {
	var out []string
	for _, t := range rt.Get[*corev1.Node](f, f.c, "", node).Spec.Taints {
		out = append(out, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (f *fleet) expect(node, want string) {
	f.Helper()
	if got := f.taints(node); got != want {
		f.Errorf("taints of %s are %q, want %q", node, got, want)
	}
}

func (f *fleet) evicted() string {
	var out []string
	for _, p := range rt.List[*corev1.Pod](f, f.c) {
		if p.DeletionTimestamp != nil {
			out = append(out, p.Spec.NodeName)
		}
	}
	return strings.Join(out, " ")
}

const unreachable = "unreachable:NoExecute unreachable:NoSchedule"

func TestLostNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, "a", "b", "c")
		time.Sleep(time.Hour)
		f.expect("a", "")
		f.kill("a")
		time.Sleep(29 * time.Second)
		f.expect("a", "")
		time.Sleep(15 * time.Second)
		f.expect("a", unreachable)
		if c := rt.Get[*corev1.Node](t, f.c, "", "a").Status.Conditions[0]; c.Status != corev1.ConditionUnknown || c.Reason != "NodeStatusUnknown" {
			t.Error(c)
		}
		if api.PodReady(rt.Get[*corev1.Pod](t, f.c, "ns", "on-a")) || !api.PodReady(rt.Get[*corev1.Pod](t, f.c, "ns", "on-b")) {
			t.Error("readiness of pods")
		}
		time.Sleep(280 * time.Second)
		if got := f.evicted(); got != "" {
			t.Errorf("evicted before the toleration ended: %s", got)
		}
		time.Sleep(25 * time.Second)
		if got := f.evicted(); got != "a" {
			t.Errorf("evicted: %q", got)
		}
		if c := api.PodCondition(rt.Get[*corev1.Pod](t, f.c, "ns", "on-a"), corev1.DisruptionTarget); c == nil || c.Reason != "DeletionByTaintManager" {
			t.Error(c)
		}
		f.revive("a")
		time.Sleep(20 * time.Second)
		f.expect("a", "")
	})
}

func TestShortAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, "a", "b")
		f.kill("a")
		time.Sleep(3 * time.Minute)
		f.expect("a", unreachable)
		f.revive("a")
		time.Sleep(time.Hour)
		f.expect("a", "")
		if got := f.evicted(); got != "" {
			t.Errorf("evicted: %s", got)
		}
	})
}

// When everything is lost at once, nothing is evicted.
func TestAllLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, "a@1", "b@1", "c@2")
		f.kill("a", "b", "c")
		time.Sleep(time.Hour)
		for _, n := range []string{"a", "b", "c"} {
			f.expect(n, "unreachable:NoSchedule")
		}
		if got := f.evicted(); got != "" {
			t.Errorf("evicted: %s", got)
		}
		f.revive("c")
		time.Sleep(time.Minute)
		f.expect("a", unreachable)
		f.expect("c", "")
	})
}

// A zone that is lost as a whole is evicted from, Node by Node; one that is mostly lost is not, when it is small.
func TestZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var nodes []string
		for i := range 4 {
			nodes = append(nodes, fmt.Sprintf("whole%d@1", i), fmt.Sprintf("most%d@2", i))
		}
		f := start(t, nodes...)
		time.Sleep(time.Minute)
		f.kill("whole0", "whole1", "whole2", "whole3", "most0", "most1", "most2")
		time.Sleep(55 * time.Second)
		tainted := 0
		for i := range 4 {
			if f.taints(fmt.Sprint("whole", i)) == unreachable {
				tainted++
			}
		}
		if tainted == 0 || tainted == 4 {
			t.Errorf("%d nodes tainted within seconds", tainted)
		}
		time.Sleep(time.Minute)
		for i := range 4 {
			f.expect(fmt.Sprint("whole", i), unreachable)
		}
		n := 0
		for i := range 3 {
			if f.taints(fmt.Sprint("most", i)) == unreachable {
				n++
			}
		}
		if n > 2 { // the first of them may be noticed before most are
			t.Errorf("%d nodes of a partially disrupted zone tainted", n)
		}
	})
}

func TestConditionTaints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, "a", "b")
		n := rt.Get[*corev1.Node](t, f.c, "", "a")
		rt.Mutate(t, f.c, n, "", func(n *corev1.Node) {
			n.Spec.Unschedulable = true
			n.Spec.Taints = []corev1.Taint{{Key: "mine", Effect: "NoSchedule"}, {Key: corev1.TaintNodeMemoryPressure, Effect: "NoSchedule"}}
		})
		rt.Mutate(t, f.c, n, "status", func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: "True"})
			n.Status.Conditions[0].Status = "False"
		})
		synctest.Wait()
		f.expect("a", "disk-pressure:NoSchedule mine:NoSchedule not-ready:NoExecute not-ready:NoSchedule unschedulable:NoSchedule")
		rt.Mutate(t, f.c, n, "", func(n *corev1.Node) { n.Spec.Unschedulable = false })
		setReady(t, f.c, n, corev1.ConditionTrue)
		synctest.Wait()
		f.expect("a", "mine:NoSchedule")
	})
}
