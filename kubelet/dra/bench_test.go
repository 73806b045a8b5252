package dra

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/dra/dratest"
	"github.com/yare-dev/yare/kubelet/kubelettest"
)

// node is one with an API, and drivers behind sockets in memory.
type node struct {
	*testing.T
	api     *kubelettest.API
	root    string
	boot    string
	sockets devicetest.Sockets
	set     *Set
	stop    func()
	drivers []*dratest.Driver

	mu    sync.Mutex
	woken []types.UID
}

func newNode(t *testing.T) *node {
	n := &node{T: t, api: kubelettest.NewAPI(), root: t.TempDir(), boot: "b1"}
	n.start()
	t.Cleanup(func() {
		n.stop()
		for _, d := range n.drivers {
			if m := d.Mistakes(); len(m) > 0 {
				t.Error(d.Name, m)
			}
		}
	})
	return n
}

// start begins anew with what is on disk.
func (n *node) start() {
	ctx, cancel := context.WithCancel(n.Context())
	n.set = New(Config{Root: n.root, Boot: n.boot, Node: "n1", Client: n.api, Dial: n.sockets.Dial, Came: func() {}, Wake: func(uid types.UID) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.woken = append(n.woken, uid)
	}, Log: slog.New(slog.NewTextHandler(n.Output(), nil))})
	if err := n.set.Open(); err != nil {
		n.Fatal(err)
	}
	var wg sync.WaitGroup
	set := n.set
	wg.Go(func() { set.Run(ctx) })
	n.stop = func() { cancel(); wg.Wait() }
	synctest.Wait()
}

// wakes returns which pods were woken, and forgets it.
func (n *node) wakes() []types.UID {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.woken
	n.woken = nil
	return w
}

// come has a driver serve at a path of its own, and be registered with this kubelet. gone ends both.
func (n *node) come(d *dratest.Driver, path string) (gone func()) {
	if !slices.Contains(n.drivers, d) {
		n.drivers = append(n.drivers, d)
	}
	stop := d.Serve(n.sockets.Listen(path))
	withdraw := n.register(d, path)
	return func() { withdraw(); stop() }
}

// register registers a driver that may serve or not.
func (n *node) register(d *dratest.Driver, path string) (withdraw func()) {
	ctx, cancel := context.WithCancel(n.Context())
	done := make(chan error, 1)
	ready := make(chan struct{})
	set := n.set
	go func() { done <- set.Serve(ctx, d.Registration(path), func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		n.Fatal(err)
	}
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			n.Error(err)
		}
	}
}

// claim is allocated, with a device of each driver, and reserved for the pods.
func (n *node) claim(name string, drivers []string, pods ...*corev1.Pod) *resourcev1.ResourceClaim {
	c := &resourcev1.ResourceClaim{TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	c.Status.Allocation = &resourcev1.AllocationResult{}
	for _, d := range drivers {
		c.Status.Allocation.Devices.Results = append(c.Status.Allocation.Devices.Results,
			resourcev1.DeviceRequestAllocationResult{Request: "one", Driver: d, Pool: "pool", Device: "d-" + name})
	}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
	}
	n.api.Put(c)
	return c
}

// claimer is a pod whose container uses all of the claims.
func claimer(name string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("pod-" + name)}}
	p.Spec.Containers = []corev1.Container{{Name: "app"}}
	for _, c := range claims {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: "e-" + c, ResourceClaimName: &c})
		p.Spec.Containers[0].Resources.Claims = append(p.Spec.Containers[0].Resources.Claims, corev1.ResourceClaim{Name: "e-" + c})
	}
	return p
}

func (n *node) prepare(p *corev1.Pod) {
	n.Helper()
	if err := n.set.Prepare(n.Context(), p); err != nil {
		n.Fatal(err)
	}
	if !n.set.Ready(p) {
		n.Fatal("prepared, and not ready")
	}
}

func (n *node) release(p *corev1.Pod) {
	n.Helper()
	if err := n.set.Release(n.Context(), p.UID); err != nil {
		n.Fatal(err)
	}
}

// fails wants an error that says so.
func (n *node) fails(err error, want string) {
	n.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		n.Errorf("%v, want %q", err, want)
	}
}

func (n *node) calls(d *dratest.Driver, want ...string) {
	n.Helper()
	if got := d.Calls(); !slices.Equal(got, want) {
		n.Errorf("%s was called %q, want %q", d.Name, got, want)
	}
}

// empty wants that nothing is held, here or by the drivers.
func (n *node) empty() {
	n.Helper()
	if h := n.set.Holders(); len(h) > 0 {
		n.Error("claims are held by", h)
	}
	entries, _ := os.ReadDir(n.set.dir())
	for _, e := range entries {
		n.Error("record stays:", e.Name())
	}
	for _, d := range n.drivers {
		if p := d.Prepared(); len(p) > 0 {
			n.Errorf("%s still has prepared %v", d.Name, p)
		}
	}
}

func (n *node) cdi(p *corev1.Pod) string {
	n.Helper()
	devices, err := n.set.Devices(p, &p.Spec.Containers[0])
	if err != nil {
		n.Error(err)
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.Name)
	}
	return strings.Join(names, " ")
}
