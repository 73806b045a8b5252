package pod

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/dra"
	"github.com/yare-dev/yare/kubelet/dra/dratest"
)

// lot is a node with a DRA driver.
type lot struct {
	*bed
	claims  *dra.Set
	driver  *dratest.Driver
	root    string
	sockets devicetest.Sockets
	gone    func() // has the driver go
	kill    func()
}

func newLot(t *testing.T) *lot {
	l := &lot{bed: newBed(t), driver: dratest.New("x.example.com"), root: t.TempDir(), gone: func() {}}
	l.bed.stop()
	l.boot()
	t.Cleanup(func() {
		l.kill()
		if m := l.driver.Mistakes(); len(m) > 0 {
			t.Error(m)
		}
	})
	return l
}

// boot runs a kubelet with what the one before it has left; the driver is not there yet.
func (l *lot) boot() {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.claims = dra.New(dra.Config{Root: l.root, Boot: "b", Node: "n1", Client: l.api, Dial: l.sockets.Dial, Log: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
		Came: func() { l.pods.RefreshAll() }, Wake: func(uid types.UID) { l.pods.Wake(uid) }})
	if err := l.claims.Open(); err != nil {
		l.t.Fatal(err)
	}
	l.bed.claims = l.claims
	var wg sync.WaitGroup
	set := l.claims
	wg.Go(func() { set.Run(ctx) })
	l.bed.start()
	stop := l.bed.stop
	l.bed.stop = func() { cancel(); wg.Wait(); stop() }
	l.kill = func() { l.bed.stop(); l.gone(); l.gone = func() {} }
}

// come has the driver come.
func (l *lot) come() {
	stop := l.driver.Serve(l.sockets.Listen("/x"))
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	set := l.claims
	go func() { defer close(done); _ = set.Serve(ctx, l.driver.Registration("/x"), func() {}) }()
	l.gone = func() { cancel(); <-done; stop() }
	l.settle()
}

// claim is allocated and reserved for the pods of the names.
func (l *lot) claim(name string, pods ...string) {
	c := &resourcev1.ResourceClaim{TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name)}}
	c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
		{Request: "one", Driver: "x.example.com", Pool: "pool", Device: "d-" + name}}}}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p, UID: types.UID("uid-of-" + p)})
	}
	l.api.Put(c)
}

func claims(pod, claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.UID = types.UID("uid-of-" + pod)
		p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "c", ResourceClaimName: &claim}}
		p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "c"}}
	}
}

func (l *lot) cdi(container string) (names []string) {
	for _, d := range l.runtime.Running()[container].GetCDIDevices() {
		names = append(names, d.Name)
	}
	return names
}

func (l *lot) health(pod string) string {
	return fmt.Sprint(l.pod(pod).Status.ContainerStatuses[0].AllocatedResourcesStatus)
}

func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		l.api.Put(newPod("p", claims("p", "c"), initContainer("init", false)))
		l.settle()
		time.Sleep(time.Second)
		l.wantRunning() // the claim is not there
		l.claim("c", "p", "q")
		time.Sleep(time.Minute)
		l.wantRunning()
		if e := l.api.Events(); !slices.ContainsFunc(e, func(e string) bool {
			return strings.Contains(e, "FailedPrepareDynamicResources: Failed to prepare dynamic resources: ") && strings.Contains(e, "x.example.com is not registered")
		}) {
			t.Error(e)
		}
		sandboxes := 0
		l.runtime.RunSandbox = func(*runtimeapi.PodSandboxConfig) error { sandboxes++; return nil }
		l.come() // at once
		l.wantRunning("init")
		if cdi := l.cdi("init"); len(cdi) > 0 {
			t.Error("a container that names no claim has", cdi)
		}
		l.runtime.Exit("init", 0)
		l.wantStatus("p", "Running ready init=Completed app=running")
		if cdi := l.cdi("app"); !slices.Equal(cdi, []string{"example.com/x-example-com=c"}) {
			t.Error(cdi)
		}
		if h := l.health("p"); h != "[{claim:c [{x.example.com/pool/d-c Unknown <nil>}]}]" {
			t.Error(h)
		}
		l.driver.Say(&healthv1.DeviceHealth{Device: &healthv1.DeviceIdentifier{PoolName: "pool", DeviceName: "d-c"}, Health: healthv1.HealthStatus_UNHEALTHY, HealthCheckTimeoutSeconds: 3600})
		time.Sleep(time.Second)
		l.settle()
		if h := l.health("p"); h != "[{claim:c [{x.example.com/pool/d-c Unhealthy <nil>}]}]" {
			t.Error(h)
		}
		// Starts after the first find it prepared.
		l.runtime.Exit("app", 1)
		time.Sleep(time.Minute)
		l.wantStatus("p", "Running ready init=Completed app=running#1")
		if cdi := l.cdi("app"); len(cdi) != 1 || sandboxes != 1 {
			t.Error(cdi, sandboxes)
		}
		if calls := l.driver.Calls(); !slices.Equal(calls, []string{"prepare c"}) {
			t.Error(calls)
		}
		// A pod that has ended still shows what it had, and its claim goes when the last container has ended.
		l.api.Put(newPod("q", claims("q", "c"), policy(corev1.RestartPolicyNever), func(p *corev1.Pod) { p.Spec.Containers[0].Name = "side" }))
		l.wantRunning("app", "side")
		l.runtime.Exit("side", 0)
		l.wantStatus("q", "Succeeded side=Completed")
		if h := l.health("q"); h != "[{claim:c [{x.example.com/pool/d-c Unhealthy <nil>}]}]" {
			t.Error(h)
		}
		if calls := l.driver.Calls(); len(calls) > 0 {
			t.Error(calls)
		}
		l.gone()
		l.gone = func() {}
		l.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 30)
		time.Sleep(time.Hour)
		if p := l.pod("p"); p.DeletionTimestamp == nil {
			t.Error("the pod is there, and not being deleted")
		}
		if e := l.api.Events(); !slices.ContainsFunc(e, func(e string) bool {
			return strings.Contains(e, "Failed to unprepare dynamic resources: DRA driver x.example.com")
		}) {
			t.Error(e)
		}
		l.come()
		time.Sleep(time.Minute)
		if calls := l.driver.Calls(); !slices.Equal(calls, []string{"unprepare c"}) || len(l.claims.Holders()) > 0 {
			t.Error(calls, l.claims.Holders())
		}
		l.api.DeletePod(api.Key{Namespace: "default", Name: "q"}, 0)
		time.Sleep(time.Minute)
		l.wantGone("p")
	})
}

// A pod that is deleted while a driver is called for it ends when that has ended, and gives back what was prepared.
func TestClaimsDeletedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		l.driver.Before = func(ctx context.Context, call string) error {
			if call == "prepare" {
				time.Sleep(10 * time.Second)
			}
			return nil
		}
		l.come()
		l.claim("c", "p")
		l.api.Put(newPod("p", claims("p", "c")))
		l.settle()
		l.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 30)
		time.Sleep(time.Minute)
		l.wantGone("p")
		if calls := l.driver.Calls(); !slices.Equal(calls, []string{"prepare c", "unprepare c"}) || len(l.driver.Prepared()) > 0 {
			t.Error(calls, l.driver.Prepared())
		}
	})
}

// A driver that hangs is told of long before its call is given up, while a pod begins and while it ends.
func TestClaimsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		l.driver.Before = func(ctx context.Context, call string) error {
			if call == "prepare" || call == "unprepare" {
				time.Sleep(20 * time.Second)
			}
			return nil
		}
		told := func(what string) bool {
			return slices.ContainsFunc(l.api.Events(), func(e string) bool {
				return strings.Contains(e, what+" of the DRA driver x.example.com has not answered for 5s: it is given up after 45s, and called again")
			})
		}
		l.come()
		l.claim("c", "p")
		l.api.Put(newPod("p", claims("p", "c")))
		time.Sleep(4 * time.Second)
		if told("NodePrepareResources") {
			t.Error("told too early")
		}
		time.Sleep(3 * time.Second)
		if !told("FailedPrepareDynamicResources: Pod waits: NodePrepareResources") {
			t.Error(l.api.Events())
		}
		time.Sleep(20 * time.Second)
		l.wantRunning("app")
		l.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 1)
		time.Sleep(10 * time.Second)
		if !told("FailedUnprepareDynamicResources: Pod waits: NodeUnprepareResources") {
			t.Error(l.api.Events())
		}
		time.Sleep(time.Minute)
		l.wantGone("p")
	})
}

// A kubelet that is killed at any point of a pod's start or end leaves one that goes on.
func TestClaimsKilled(t *testing.T) {
	for at := range 10 {
		for _, deleted := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				l := newLot(t)
				slow := func() { time.Sleep(time.Second) }
				l.driver.Before = func(context.Context, string) error { slow(); return nil }
				l.runtime.RunSandbox = func(*runtimeapi.PodSandboxConfig) error { slow(); return nil }
				l.come()
				l.claim("c", "p")
				l.api.Put(newPod("p", claims("p", "c")))
				if deleted {
					time.Sleep(5 * time.Second)
					l.wantRunning("app")
					l.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 1)
				}
				time.Sleep(time.Duration(at) * 400 * time.Millisecond)
				l.kill()
				l.boot()
				time.Sleep(5 * time.Second)
				l.come()
				time.Sleep(time.Minute)
				if !deleted {
					l.wantRunning("app")
					if cdi := l.cdi("app"); len(cdi) != 1 || l.pod("p").Status.ContainerStatuses[0].RestartCount != 0 {
						t.Error(at, cdi)
					}
					l.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 1)
					time.Sleep(time.Minute)
				}
				l.wantGone("p")
				if p := l.driver.Prepared(); len(p) > 0 || len(l.claims.Holders()) > 0 {
					t.Error(at, deleted, p, l.claims.Holders())
				}
			})
		}
	}
}
