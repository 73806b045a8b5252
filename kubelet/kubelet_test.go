package kubelet

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
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
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/kubelet/resources"
)

// noGroups makes none.
type noGroups struct{}

func (noGroups) Ensure(string, resources.Limits) error { return nil }
func (noGroups) Remove(string) error                   { return nil }

type host struct {
	t       *testing.T
	api     *kubelettest.API
	runtime *kubelettest.Runtime
	config  Config
	gauges  *gauges
	kubelet *Kubelet       // the last that was started
	before  func(*Kubelet) // it is; nil: nothing
	stop    func()
}

// gauges are what the kubelet observes in place of this one, which may be short of something just now.
type gauges struct {
	mu   sync.Mutex
	have map[eviction.Signal]eviction.Observation
}

func (m *gauges) Observe(context.Context) (eviction.Observations, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return eviction.Observations{At: time.Now(), Of: maps.Clone(m.have)}, nil
}

// left sets what is left of the signal's resource, of 1000 units; of memory and disks Mi.
func (m *gauges) left(s eviction.Signal, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	unit := int64(1 << 20)
	if s == eviction.PIDAvailable || s == eviction.NodeFsInodesFree {
		unit = 1
	}
	m.have[s] = eviction.Observation{Available: n * unit, Capacity: 1000 * unit}
}

func newHost(t *testing.T, change ...func(*Config)) *host {
	c := Defaults()
	c.CSIDrivers, c.DevicePlugins, c.DynamicResources = false, false, false // a bubble cannot wait for changes of a folder
	c.NodeName, c.NodeIPs, c.Port, c.HealthzPort = "n1", []string{"192.168.0.1"}, 0, 0
	dir := t.TempDir()
	c.RootDir, c.LogDir = filepath.Join(dir, "root"), filepath.Join(dir, "log")
	for _, f := range change {
		f(&c)
	}
	return &host{t: t, api: kubelettest.NewAPI(), runtime: kubelettest.NewRuntime("app"), config: c,
		gauges: &gauges{have: map[eviction.Signal]eviction.Observation{}}}
}

// start runs a kubelet until h.stop; ready is closed when it is ready.
func (h *host) start() (ready chan struct{}) {
	k, err := New(h.config, Deps{Client: h.api, CRI: cri.InProcess(h.runtime), Events: h.api, Groups: noGroups{}, Observe: h.gauges.Observe,
		Log: slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.kubelet = k; h.before != nil {
		h.before(k)
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	ready = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Run(ctx, func() { close(ready) }); err != nil {
			h.t.Error(err)
		}
	})
	h.stop = func() { cancel(); wg.Wait() }
	h.t.Cleanup(h.stop)
	return ready
}

func (h *host) node() *corev1.Node {
	n, err := client.Get[*corev1.Node](h.t.Context(), h.api, api.Key{Name: "n1"})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{
		NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "app", Image: "app", ImagePullPolicy: corev1.PullIfNotPresent}}}}
}

func TestNodeAndLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		<-h.start()
		synctest.Wait()
		n := h.node()
		if !nodeReady(n) || n.Status.NodeInfo.ContainerRuntimeVersion != "books://1" || n.Status.Addresses[0].Address != "192.168.0.1" ||
			n.Labels[corev1.LabelHostname] != "n1" || n.Status.Allocatable.Pods().Value() != 110 {
			t.Error(n)
		}
		lease := func() time.Time {
			l, err := client.Get[*coordinationv1.Lease](t.Context(), h.api, api.Key{Namespace: "kube-node-lease", Name: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			return l.Spec.RenewTime.Time
		}
		first := lease()
		time.Sleep(21 * time.Second)
		if d := lease().Sub(first); d != 20*time.Second {
			t.Error("the lease was renewed after", d)
		}
		h.api.Writes()
		time.Sleep(4 * time.Minute)
		status := 0
		for _, w := range h.api.Writes() {
			if strings.Contains(w, "nodes n1 status") {
				status++
			}
		}
		if status > 1 { // the disk's fill may change while the test runs
			t.Error("status writes without a change:", status)
		}
		h.api.Delete(t.Context(), n, client.DeleteOptions{AnyRevision: true})
		time.Sleep(time.Second)
		if !nodeReady(h.node()) {
			t.Error("the deleted node did not come back")
		}
	})
}

func TestReadyWithTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.NotReady = true
		<-h.start()
		time.Sleep(5 * time.Second)
		n := h.node()
		if nodeReady(n) {
			t.Fatal("ready without a network")
		}
		next := n.DeepCopy()
		next.Spec.PodCIDR = "10.1.0.0/24"
		h.api.Put(next)
		synctest.Wait() // no time passes
		if !nodeReady(h.node()) {
			t.Error("not ready as soon as the network is")
		}
	})
}

func TestPodThroughTheKubelet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		<-h.start()
		h.api.Put(newPod("a"))
		synctest.Wait()
		p, err := client.Get[*corev1.Pod](t.Context(), h.api, api.Key{Namespace: "default", Name: "a"})
		if err != nil || p.Status.Phase != corev1.PodRunning {
			t.Fatal(p.Status.Phase, err)
		}
		h.api.DeletePod(api.KeyOf(p), 30)
		synctest.Wait()
		if left := h.runtime.Left(); len(left) > 0 {
			t.Error("left:", left)
		}
	})
}

func TestPodDeletedWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.Linger = map[string]time.Duration{"app": 3 * time.Second}
		<-h.start()
		h.api.Put(newPod("a"))
		h.api.Put(newPod("stays"))
		synctest.Wait()
		h.stop()
		h.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 0)
		// A kubelet that was killed while it removed a pod leaves its logs; what is not a pod's folder is not ours.
		for _, name := range []string{"default_gone_gone-uid", "foreign"} {
			if err := os.MkdirAll(filepath.Join(h.config.LogDir, name, "app"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		<-h.start()
		time.Sleep(4 * time.Second)
		if _, err := os.Stat(filepath.Join(h.config.LogDir, "default_gone_gone-uid")); !os.IsNotExist(err) {
			t.Error("logs of a pod that is gone stay:", err)
		}
		if _, err := os.Stat(filepath.Join(h.config.LogDir, "foreign", "app")); err != nil {
			t.Error(err)
		}
		if left := h.runtime.Left(); len(left) != 2 {
			t.Error("left:", left)
		}
		entries, _ := os.ReadDir(filepath.Join(h.config.RootDir, "pods"))
		if len(entries) != 1 {
			t.Error("folders:", entries)
		}
		h.api.DeletePod(api.Key{Namespace: "default", Name: "stays"}, 30)
		time.Sleep(4 * time.Second)
		if left := h.runtime.Left(); len(left) != 0 {
			t.Error("left:", left)
		}
	})
}

// await returns the pod of the first event that is ok, in real time.
func (h *host) await(what string, ok func(client.Event) bool) *corev1.Pod {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	for e := range h.api.Watch(ctx, api.PodKind, client.Query{}, 0) {
		if e.Object != nil && ok(e) {
			return e.Object.(*corev1.Pod)
		}
	}
	h.t.Fatal("waited in vain for", what)
	return nil
}

// Static pods come from a folder that the kernel watches, which a bubble cannot: this test runs in real time, woken by
// the API's own watch.
func TestStaticPods(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, func(c *Config) { c.StaticPodPath = dir })
	<-h.start()
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: app, image: app, imagePullPolicy: Never}]\n"
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, ".new"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, ".new"), filepath.Join(dir, "web.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	running := func(e client.Event) bool { return e.Object.(*corev1.Pod).Status.Phase == corev1.PodRunning }
	write(manifest)
	first := h.await("the mirror", running)
	if first.Name != "web-n1" || first.Annotations["kubernetes.io/config.mirror"] == "" {
		t.Error(first.ObjectMeta)
	}
	// A mirror that is deleted comes back; the containers do not notice.
	ids := h.runtime.IDs()
	h.api.DeletePod(api.KeyOf(first), 0)
	h.await("the mirror again", func(e client.Event) bool { return e.Object.GetUID() != first.UID && running(e) })
	if now := h.runtime.IDs(); now["app"] != ids["app"] {
		t.Error("the container was replaced")
	}
	// Another manifest is another pod.
	write(strings.Replace(manifest, "name: app,", "name: other,", 1))
	h.await("the other pod", func(e client.Event) bool {
		s := e.Object.(*corev1.Pod).Status.ContainerStatuses
		return running(e) && len(s) == 1 && s[0].Name == "other"
	})
	h.await("its end", func(e client.Event) bool {
		if e.Op == client.Added { // the watch has begun, and will see the end
			if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
				t.Error(err)
			}
		}
		return e.Op == client.Deleted
	})
}

func TestConfig(t *testing.T) {
	good := Defaults()
	good.NodeName, good.NodeIPs = "n1", []string{"10.0.0.1"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.NodeName, bad.NodeIPs, bad.MaxPods, bad.CgroupRoot, bad.ContainerLogMaxSize = "N 1", []string{"x"}, 0, "/", "-1"
	bad.Reserved, bad.HealthzPort = map[string]string{"gpu": "1"}, 70000
	err := bad.Validate()
	for _, field := range []string{"nodeName", "nodeIPs", "maxPods", "cgroupRoot", "containerLogMaxSize", "reserved", "healthzPort"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not reported in %v", field, err)
		}
	}
}
