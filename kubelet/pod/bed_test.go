package pod

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/kubelet/probe"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/volume"
)

// groups notes the cgroups that exist.
type groups struct {
	mu   sync.Mutex
	have map[string]resources.Limits
	seen func(resources.Limits) // is called with what is set; nil: nobody asks
}

func (g *groups) Ensure(path string, l resources.Limits) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.have[path] = l
	if g.seen != nil {
		g.seen(l)
	}
	return nil
}

func (g *groups) Remove(path string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.have, path)
	return nil
}

// bed is a node with an API and a runtime.
type bed struct {
	t       *testing.T
	api     *kubelettest.API
	runtime *kubelettest.Runtime
	groups  *groups
	dir     string
	node    *corev1.Node                // set before there are pods
	later   atomic.Pointer[corev1.Node] // what has become of it since
	disks   volume.Disks
	devices Devices // nil: none
	claims  Claims  // the same
	probes  *probe.Metrics
	pods    *Pods
	stop    func()
}

func newBed(t *testing.T, objects ...api.Object) *bed {
	b := &bed{t: t, api: kubelettest.NewAPI(objects...), runtime: kubelettest.NewRuntime("app", "side", "init"),
		groups: &groups{have: map[string]resources.Limits{}}, dir: t.TempDir()}
	b.runtime.Linger = map[string]time.Duration{}
	b.start()
	t.Cleanup(func() {
		b.stop()
		entries, _ := os.ReadDir(filepath.Join(b.dir, "pods"))
		for _, e := range entries {
			if err := volume.New(filepath.Join(b.dir, "pods"), b.disks).Down(context.Background(), types.UID(e.Name())); err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

// start runs a kubelet's pods until stop, fed as the kubelet feeds them.
func (b *bed) start() {
	ctx, cancel := context.WithCancel(b.t.Context())
	b.pods = New(Config{
		Node:        spec.Node{Name: "n1", LogRoot: filepath.Join(b.dir, "log"), ClusterDomain: "cluster.local", Host: resources.Host{Memory: 8 << 30}},
		RuntimeName: "books", MaxRestartDelay: 5 * time.Minute, MaxParallelPulls: 5, HostsFile: filepath.Join(b.dir, "hosts"),
	}, Deps{
		Client: b.api, CRI: cri.InProcess(b.runtime), Events: b.api, Groups: b.groups, Devices: b.devices, Claims: b.claims, ProbeMetrics: b.probes,
		Volumes: volume.New(filepath.Join(b.dir, "pods"), b.disks), Log: slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Node: func() *corev1.Node { return cmp.Or(b.later.Load(), b.node) }, HostIPs: func() []string { return []string{"192.168.0.1"} },
		DNS: func() spec.DNS { return spec.DNS{Servers: []string{"10.96.0.10"}, Domain: "cluster.local"} },
	})
	b.pods.Open(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for e, err := range b.api.Watch(ctx, api.PodKind, client.Query{}, 0) {
			switch {
			case err != nil:
				return
			case e.Op == client.Synced:
				b.pods.Synced()
			case e.Op == client.Deleted:
				b.pods.Set(e.Object.(*corev1.Pod))
				b.pods.Gone(e.Object.GetUID())
			case e.Object != nil:
				b.pods.Set(e.Object.(*corev1.Pod))
			}
		}
	})
	wg.Go(func() {
		events, err := b.pods.cri.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		for err == nil {
			var e *runtimeapi.ContainerEventResponse
			if e, err = events.Recv(); err == nil {
				b.pods.Wake(types.UID(e.PodSandboxStatus.GetLabels()[spec.PodUIDLabel]))
			}
		}
	})
	b.stop = func() {
		cancel()
		wg.Wait() // nobody brings pods to what is being closed
		b.pods.Close()
	}
}

// settle waits until nothing happens any more without time passing.
func (b *bed) settle() { synctest.Wait() }

func (b *bed) pod(name string) *corev1.Pod {
	b.t.Helper()
	p, err := client.Get[*corev1.Pod](b.t.Context(), b.api, api.Key{Namespace: "default", Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bed) running() []string {
	var names []string
	for n := range b.runtime.Running() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (b *bed) wantRunning(names ...string) {
	b.t.Helper()
	b.settle()
	if got := b.running(); !slices.Equal(got, names) {
		b.t.Fatalf("running %v, want %v", got, names)
	}
}

func (b *bed) wantGone(name string) {
	b.t.Helper()
	b.settle()
	if _, err := b.api.Get(b.t.Context(), api.PodKind, api.Key{Namespace: "default", Name: name}); err == nil {
		b.t.Fatal("the pod is still there:", short(b.pod(name)))
	}
	if left := b.runtime.Left(); len(left) > 0 {
		b.t.Error("left in the runtime:", left)
	}
	if len(b.groups.have) > 0 {
		b.t.Error("left cgroups:", b.groups.have)
	}
	for _, dir := range []string{"pods", "log"} {
		entries, _ := os.ReadDir(filepath.Join(b.dir, dir))
		if len(entries) > 0 {
			b.t.Errorf("left in %s: %v", dir, entries)
		}
	}
}

// short is a short form of a pod's status: phase, ready, containers.
func short(p *corev1.Pod) string {
	out := []string{string(p.Status.Phase)}
	if p.Status.Reason != "" {
		out = append(out, "("+p.Status.Reason+")")
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			out = append(out, "ready")
		}
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range list {
			s := c.Name + "="
			switch {
			case c.State.Running != nil:
				s += "running"
			case c.State.Waiting != nil:
				s += c.State.Waiting.Reason
			case c.State.Terminated != nil:
				s += c.State.Terminated.Reason
			}
			if c.RestartCount > 0 {
				s += "#" + string(rune('0'+c.RestartCount))
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, " ")
}

func (b *bed) wantStatus(name, want string) {
	b.t.Helper()
	b.settle()
	if got := short(b.pod(name)); got != want {
		b.t.Fatalf("status %q, want %q", got, want)
	}
}

func newPod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Generation: 1}, TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	grace := int64(30)
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	p.Spec.NodeName = "n1"
	p.Spec.Containers = []corev1.Container{{Name: "app", Image: "app", ImagePullPolicy: corev1.PullIfNotPresent}}
	for _, f := range change {
		f(p)
	}
	return p
}

func policy(r corev1.RestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.RestartPolicy = r }
}

func initContainer(name string, sidecar bool) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.Container{Name: name, Image: "init", ImagePullPolicy: corev1.PullIfNotPresent}
		if sidecar {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
}
