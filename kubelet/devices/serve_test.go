package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/linux/socket"
)

// node is a Set that serves at real sockets.
type node struct {
	*Set
	changed chan struct{}
	pods    []*corev1.Pod
	stop    func()
}

func newNode(t *testing.T, root string) *node {
	n := &node{changed: make(chan struct{}, 100)}
	n.Set = New(Config{Root: root, Boot: "b", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Changed: func() { n.changed <- struct{}{} }, Came: func() {},
		Wake: func(types.UID) {}, Pods: func() []*corev1.Pod { return n.pods }})
	ctx, cancel := context.WithCancel(t.Context())
	if err := n.Open(ctx); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- n.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return n
}

func listenAt(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := socket.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRegister(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	dir := filepath.Join(root, "device-plugins")
	if err := os.MkdirAll(filepath.Join(dir, "folder"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{"kubelet.sock", "old.sock"} {
		listenAt(t, filepath.Join(dir, old)).Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, root)
	defer func() { n.stop() }()
	if _, err := os.Lstat(filepath.Join(dir, "old.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an old plugin's socket is still there:", err)
	}
	for _, name := range []string{"file", "folder", "kubelet.sock"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	kubelet := filepath.Join(dir, "kubelet.sock")
	for want, r := range map[string]*pluginapi.RegisterRequest{
		`version "v1" is not supported by kubelet`:                       {Version: "v1", Endpoint: "e", ResourceName: dev},
		`the ResourceName "cpu" is invalid`:                              {Version: "v1beta1", Endpoint: "e", ResourceName: "cpu"},
		`the ResourceName "kubernetes.io/x" is invalid`:                  {Version: "v1beta1", Endpoint: "e", ResourceName: "kubernetes.io/x"},
		`the ResourceName "requests.a.b/c" is invalid`:                   {Version: "v1beta1", Endpoint: "e", ResourceName: "requests.a.b/c"},
		`the ResourceName "A B/c" is invalid`:                            {Version: "v1beta1", Endpoint: "e", ResourceName: "A B/c"},
		`the ResourceName "` + strings.Repeat("x", 300) + `" is invalid`: {Version: "v1beta1", Endpoint: "e", ResourceName: strings.Repeat("x", 1<<20)},
		`endpoint "../e"`:         {Version: "v1beta1", Endpoint: "../e", ResourceName: dev},
		`endpoint ""`:             {Version: "v1beta1", ResourceName: dev},
		`endpoint "kubelet.sock"`: {Version: "v1beta1", Endpoint: "kubelet.sock", ResourceName: dev},
	} {
		err := devicetest.Register(t.Context(), kubelet, r)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%.500v, want %s", err, want)
		}
	}
	// It serves only after it was told that it is registered.
	p := devicetest.New(dev, "d0", "d1")
	if err := p.Register(t.Context(), kubelet, "p.sock"); err != nil {
		t.Fatal(err)
	}
	stop := p.Serve(listenAt(t, filepath.Join(dir, "p.sock")))
	<-n.changed
	if c := n.Counts()[dev]; c != (Count{Capacity: 2, Allocatable: 2}) {
		t.Error(c)
	}
	pod := newPod("p", "init:1", "app:1")
	if wait, err := n.Allocate(t.Context(), pod); wait != "" || err != nil {
		t.Error(wait, err)
	}
	if calls := fmt.Sprint(p.Calls()); calls != "[ListAndWatch Allocate d0 Allocate d0]" {
		t.Error(calls)
	}
	stop()
	<-n.changed
	if c := n.Counts()[dev]; c != (Count{Capacity: 2}) {
		t.Error(c)
	}
	// A kubelet after this one: the plugin sees the socket anew and registers once more.
	n.stop()
	n = newNode(t, root)
	defer p.Serve(listenAt(t, filepath.Join(dir, "p.sock")))()
	if err := p.Register(t.Context(), kubelet, "p.sock"); err != nil {
		t.Fatal(err)
	}
	<-n.changed
	if n.Missing(pod) || n.Counts()[dev].Allocatable != 2 {
		t.Error("it has forgotten:", n.Missing(pod), n.Counts())
	}
}

// A plugin may also offer itself in the folder of the registrar, which knows whether it was taken up.
func TestRegistrar(t *testing.T) {
	n := newNode(t, t.TempDir())
	defer func() { n.stop() }()
	for want, r := range map[string]registrar.Registration{
		`the ResourceName "memory" is invalid`: {Name: "memory", Versions: []string{"v1beta1"}},
		`versions ["v9"]`:                      {Name: dev, Versions: []string{"v9"}},
	} {
		if err := n.Serve(t.Context(), r, func() { t.Error("registered") }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	p := devicetest.New(dev, "d0")
	path := filepath.Join(t.TempDir(), "s")
	stop := p.Serve(listenAt(t, path))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- n.Serve(t.Context(), registrar.Registration{Name: dev, Socket: path, Versions: []string{"v1beta1"}}, func() { close(ready) })
	}()
	<-ready
	if calls := fmt.Sprint(p.Calls()); calls != "[GetDevicePluginOptions ListAndWatch]" {
		t.Error(calls)
	}
	stop()
	if err := <-done; err == nil {
		t.Error("that it has gone is an error, so that it is tried again")
	}
}

func TestPodResources(t *testing.T) {
	n := newNode(t, t.TempDir())
	defer func() { n.stop() }()
	p := devicetest.New(dev)
	numa := &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: 1}}}
	p.Set(&pluginapi.Device{ID: "d0", Health: pluginapi.Healthy, Topology: numa}, &pluginapi.Device{ID: "d1", Health: pluginapi.Healthy}, &pluginapi.Device{ID: "d2", Health: pluginapi.Unhealthy})
	defer p.Serve(listenAt(t, filepath.Join(n.Dir(), "p")))()
	if err := p.Register(t.Context(), filepath.Join(n.Dir(), "kubelet.sock"), "p"); err != nil {
		t.Fatal(err)
	}
	<-n.changed
	a, over := newPod("a", "init:1", "side:1", "app:1"), newPod("over", "app:1")
	over.Status.Phase = corev1.PodFailed
	n.pods = []*corev1.Pod{a, newPod("none", "app:0"), over}
	if wait, err := n.Allocate(t.Context(), a); wait != "" || err != nil {
		t.Fatal(wait, err)
	}
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(socket.To(filepath.Join(n.config.Root, "pod-resources", "kubelet.sock"))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := podresourcesapi.NewPodResourcesListerClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	list, err := c.List(ctx, &podresourcesapi.ListPodResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	show := func(p *podresourcesapi.PodResources) string {
		out := p.Namespace + "/" + p.Name
		for _, c := range p.Containers {
			out += " " + c.Name
			for _, d := range c.Devices {
				out += fmt.Sprint(" ", d.ResourceName, d.DeviceIds)
				for _, n := range d.GetTopology().GetNodes() {
					out += fmt.Sprint("@", n.ID)
				}
			}
		}
		return out
	}
	const want = "default/a side example.com/dev[d0]@1 app example.com/dev[d1]"
	if len(list.PodResources) != 2 || show(list.PodResources[0]) != want || show(list.PodResources[1]) != "default/none app" {
		t.Error(list)
	}
	one, err := c.Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: "a", PodNamespace: "default"})
	if err != nil || show(one.PodResources) != want {
		t.Error(one, err)
	}
	if _, err := c.Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: "b", PodNamespace: "default"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	all, err := c.GetAllocatableResources(ctx, &podresourcesapi.AllocatableResourcesRequest{})
	if err != nil || len(all.Devices) != 2 || all.Devices[0].DeviceIds[0] != "d0" || all.Devices[0].Topology.Nodes[0].ID != 1 {
		t.Error(all, err)
	}
}
