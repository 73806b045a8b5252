package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

type allow struct{}

func (allow) Authorize(context.Context, *authz.Attributes) (bool, string, error) {
	return true, "", nil
}

// bench is a control plane that consists of the API's pipeline over a memory store and a scheduler.
type bench struct {
	client.Client
	t testing.TB
}

// server makes the API over b. What it returns must run before the client is used.
func server(t testing.TB, b store.Backend, log *slog.Logger) (run.Component, client.Client) {
	t.Helper()
	st := store.New(b, api.Stored(), store.Options{Log: log, Indexes: rest.Indexes()})
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{
		Store: st, Authorizer: allow{}, Log: log,
		Resources: builtin.All(builtin.Deps{Store: st, Access: allow{}, Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return st, s.ClientAs(&authn.User{Name: "system:kube-scheduler", Groups: []string{authn.Masters}})
}

// bubble runs f against a running scheduler in a synctest bubble. The cluster has a namespace "default".
func bubble(t *testing.T, wrap func(client.Client) client.Client, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		st, c := server(t, memory.New(false), log)
		own := c
		if wrap != nil {
			own = wrap(c)
		}
		rec := events.New(c, "default-scheduler", "", log)
		sched := New(Config{Client: own, Events: rec, Log: log, Seed: 1})
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		all := run.InOrder("test", st, rec, sched)
		go func() { done <- all.Run(ctx, func() { close(ready) }) }()
		<-ready
		b := &bench{c, t}
		ns := &corev1.Namespace{}
		ns.Name = "default"
		b.create(ns)
		f(b)
		cancel()
		if err := <-done; err != nil {
			t.Error("stopped:", err)
		}
	})
}

func (b *bench) create(o api.Object) api.Object {
	b.t.Helper()
	got, err := b.Create(b.t.Context(), o)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// node creates a node and reports its capacity, as a kubelet does. When it returns the scheduler has heard of it: pods come by
// another watch, and one that came first would wait for its second try.
func (b *bench) node(n *corev1.Node) {
	b.t.Helper()
	status := n.Status
	got := b.create(n).(*corev1.Node)
	if _, err := client.Mutate(b.t.Context(), b.Client, got, "status", func(n *corev1.Node) { n.Status = status }); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// pod returns the pod when everything has come to rest.
func (b *bench) pod(name string) *corev1.Pod {
	b.t.Helper()
	synctest.Wait()
	p, err := client.Get[*corev1.Pod](b.t.Context(), b.Client, api.Key{Namespace: "default", Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bench) expect(name, node, message string) {
	b.t.Helper()
	p := b.pod(name)
	if p.Spec.NodeName != node {
		b.t.Errorf("pod %s is on %q, want %q", name, p.Spec.NodeName, node)
	}
	got := ""
	if c := api.PodCondition(p, corev1.PodScheduled); c != nil {
		got = c.Message
		if (c.Status == corev1.ConditionTrue) != (node != "") {
			b.t.Errorf("pod %s has condition %+v", name, c)
		}
	}
	if got != message {
		b.t.Errorf("pod %s: message %q, want %q", name, got, message)
	}
}

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func makeNode(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{corev1.LabelHostname: name}
	n.Status.Allocatable = list("4", "8Gi")
	n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("110")
	n.Status.Capacity = n.Status.Allocatable
	for _, f := range change {
		f(n)
	}
	return n
}

func makePod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name = "default", name
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "image"}}
	for _, f := range change {
		f(p)
	}
	return p
}

func requests(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list(cpu, memory) }
}

func TestPlaceAndWait(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.create(makePod("a", requests("3", "1Gi")))
		b.expect("a", "", "no nodes available to schedule pods")
		b.node(makeNode("n1", func(n *corev1.Node) { n.Spec.Unschedulable = true }))
		time.Sleep(time.Second)
		b.expect("a", "", "0/1 nodes are available: 1 node(s) were unschedulable.")
		b.node(makeNode("n2"))
		time.Sleep(time.Second)
		b.expect("a", "n2", "")
		b.create(makePod("b", requests("2", "1Gi")))
		time.Sleep(time.Second)
		b.expect("b", "", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.")

		// Its room becomes free.
		grace := int64(0)
		if err := b.Delete(b.t.Context(), b.pod("a"), client.DeleteOptions{Grace: &grace}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.expect("b", "n2", "")
		synctest.Wait()
		time.Sleep(time.Minute)
		evs, err := client.List[*corev1.Event](b.t.Context(), b.Client, client.Query{Namespace: "default"})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for _, e := range evs {
			seen[e.InvolvedObject.Name+" "+e.Reason] = e.Message
		}
		if seen["a Scheduled"] != "Successfully assigned default/a to n2" || seen["b FailedScheduling"] == "" {
			t.Errorf("events are %v", seen)
		}
	})
}

// TestResized: the room that a pod gives back by a resize is free when its status says so, which changes nothing else.
func TestResized(t *testing.T) {
	t.Parallel()
	whole := func(cpu string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Resources = &corev1.ResourceRequirements{Requests: list(cpu, "1Gi")} }
	}
	for name, tc := range map[string]struct {
		asks   func(cpu string) func(*corev1.Pod)
		status func(p *corev1.Pod, cpu string)
	}{
		"a container": {func(cpu string) func(*corev1.Pod) { return requests(cpu, "1Gi") }, func(p *corev1.Pod, cpu string) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", AllocatedResources: list(cpu, "1Gi"), Resources: &corev1.ResourceRequirements{Requests: list(cpu, "1Gi")}}}
		}},
		"the whole": {whole, func(p *corev1.Pod, cpu string) {
			p.Status.AllocatedResources, p.Status.Resources = list(cpu, "1Gi"), &corev1.ResourceRequirements{Requests: list(cpu, "1Gi")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(b *bench) {
				tell := func(cpu string) {
					b.t.Helper()
					if _, err := client.Mutate(b.t.Context(), b.Client, b.pod("a"), "status", func(p *corev1.Pod) { tc.status(p, cpu) }); err != nil {
						b.t.Fatal(err)
					}
				}
				b.node(makeNode("n", func(n *corev1.Node) { n.Status.DeclaredFeatures = []string{api.ResizesWholePods} }))
				b.create(makePod("a", tc.asks("3")))
				b.expect("a", "n", "")
				tell("3")
				b.create(makePod("b", requests("2", "1Gi")))
				b.expect("b", "", "0/1 nodes are available: 1 Insufficient cpu.")
				if _, err := client.Mutate(b.t.Context(), b.Client, b.pod("a"), "resize", tc.asks("1")); err != nil {
					b.t.Fatal(err)
				}
				time.Sleep(time.Minute)
				b.expect("b", "", "0/1 nodes are available: 1 Insufficient cpu.")
				tell("1")
				time.Sleep(time.Minute)
				b.expect("b", "n", "")
			})
		})
	}
}

func TestGatesAndProfiles(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.node(makeNode("n1"))
		b.create(makePod("gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}} }))
		b.create(makePod("other", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }))
		time.Sleep(time.Hour)
		if b.pod("gated").Spec.NodeName != "" || b.pod("other").Spec.NodeName != "" {
			t.Error("placed what is not to be placed")
		}
		gated := b.pod("gated")
		if _, err := client.Mutate(b.t.Context(), b.Client, gated, "", func(p *corev1.Pod) { p.Spec.SchedulingGates = nil }); err != nil {
			t.Fatal(err)
		}
		if got := b.pod("gated").Spec.NodeName; got != "n1" {
			t.Errorf("freed pod is on %q", got)
		}
	})
}

// failing refuses some bindings.
type failing struct {
	client.Client
	left int
}

func (f *failing) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	if f.left > 0 {
		f.left--
		return nil, apierrors.NewInternalError(fmt.Errorf("not now"))
	}
	return f.Client.Post(ctx, k, key, sub, body)
}

// What was assumed for a binding that failed is given back, and the pod is tried again.
func TestBindingFails(t *testing.T) {
	t.Parallel()
	bubble(t, func(c client.Client) client.Client { return &failing{Client: c, left: 3} }, func(b *bench) {
		b.node(makeNode("n1"))
		b.create(makePod("a", requests("3", "1Gi")))
		time.Sleep(time.Second)
		b.expect("a", "n1", "")
		b.create(makePod("b", requests("1", "1Gi")))
		time.Sleep(time.Second)
		b.expect("b", "n1", "")
	})
}

// Hundreds of pods at once fill the nodes exactly, evenly, and no further.
func TestMany(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		owner := []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "r", Controller: new(true)}}
		for i := range 10 {
			b.node(makeNode(fmt.Sprint("n", i)))
		}
		for i := range 450 {
			b.create(makePod(fmt.Sprint("p", i), requests("100m", "1Mi"), func(p *corev1.Pod) { p.OwnerReferences = owner }))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		pods, err := client.List[*corev1.Pod](b.t.Context(), b.Client, client.Query{})
		if err != nil {
			t.Fatal(err)
		}
		on := map[string]int{}
		for _, p := range pods {
			on[p.Spec.NodeName]++
		}
		for i := range 10 {
			if n := on[fmt.Sprint("n", i)]; n != 40 {
				t.Errorf("node %d has %d pods", i, n)
			}
		}
		if on[""] != 50 {
			t.Errorf("%d pods wait", on[""])
		}
	})
}

func newCount(n int) *resource.Quantity { return resource.NewQuantity(int64(n), resource.DecimalSI) }
