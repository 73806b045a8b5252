package devices

import (
	"context"
	"fmt"
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

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/registrar"
)

const dev = "example.com/dev"

// bed is a Set over a folder, whose kubelet can be killed and the host be booted.
type bed struct {
	*testing.T
	*Set
	root, boot string
	closed     bool
	sockets    devicetest.Sockets
	cancel     context.CancelFunc
	wg         sync.WaitGroup

	mu      sync.Mutex
	changed int
	came    int
	woken   []types.UID
}

func newBed(t *testing.T) *bed {
	b := &bed{T: t, root: t.TempDir(), boot: "boot1"}
	b.start()
	t.Cleanup(func() { b.kill() })
	return b
}

func (b *bed) start() {
	b.Helper()
	s := b.unopened()
	ctx, cancel := context.WithCancel(b.Context())
	b.cancel = cancel
	if err := s.Open(ctx); err != nil {
		b.Fatal(err)
	}
	b.Set = s
}

func (b *bed) unopened() *Set {
	return New(Config{Root: b.root, Boot: b.boot, Closed: b.closed, Dial: b.sockets.Dial, Log: slog.New(slog.NewTextHandler(b.Output(), nil)),
		Changed: func() { b.mu.Lock(); b.changed++; b.mu.Unlock() }, Came: func() { b.mu.Lock(); b.came++; b.mu.Unlock() },
		Wake: func(uid types.UID) { b.mu.Lock(); b.woken = append(b.woken, uid); b.mu.Unlock() }})
}

func (b *bed) kill() {
	b.cancel()
	b.wg.Wait()
	b.close()
}

// serve has the plugin come; the returned function takes it away.
func (b *bed) serve(p *devicetest.Plugin, path string) (stop func()) {
	b.Helper()
	end := p.Serve(b.sockets.Listen(path))
	set := b.Set
	b.wg.Go(func() {
		_ = set.Serve(set.ctx, registrar.Registration{Name: p.Resource, Socket: path, Versions: []string{pluginapi.Version}}, func() {})
	})
	synctest.Wait()
	b.Cleanup(end)
	return func() { end(); synctest.Wait() }
}

// told is how often those that wait were told to look again.
func (b *bed) told() int {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.came
}

func (b *bed) wantCounts(want string) {
	b.Helper()
	time.Sleep(listPause)
	synctest.Wait()
	var got []string
	counts := b.Counts()
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		got = append(got, fmt.Sprint(name, " ", counts[name]))
	}
	if s := strings.Join(got, ", "); s != want {
		b.Errorf("counts %q, want %q", s, want)
	}
}

// newPod has containers that ask for numbers of dev: "init:2", "side:1", "app:1".
func newPod(uid string, containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: uid, UID: types.UID(uid)}}
	always := corev1.ContainerRestartPolicyAlways
	for _, text := range containers {
		name, n, _ := strings.Cut(text, ":")
		c := corev1.Container{Name: name}
		c.Resources.Limits = corev1.ResourceList{dev: resource.MustParse(n), corev1.ResourceCPU: resource.MustParse("1")}
		switch {
		case strings.HasPrefix(name, "side"):
			c.RestartPolicy = &always
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		case strings.HasPrefix(name, "init"):
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		default:
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
	return p
}

// allocate returns what the pod's containers have afterwards, or why not.
func (b *bed) allocate(p *corev1.Pod) string {
	b.Helper()
	if b.Missing(p) {
		wait, err := b.Allocate(b.Context(), p)
		if err != nil {
			return "error: " + err.Error()
		}
		if wait != "" {
			return "wait: " + wait
		}
	}
	return b.has(p)
}

func (b *bed) has(p *corev1.Pod) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	each(p, func(c *corev1.Container, _ bool) {
		all, _ := b.held(p.UID, c.Name)
		for _, g := range all {
			out = append(out, c.Name+"="+strings.Join(g.IDs, ","))
		}
	})
	return strings.Join(out, " ")
}

func ids(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("d%d", i))
	}
	return all
}

func TestStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.wantCounts("")
		p := devicetest.New(dev, ids(3)...)
		stop := b.serve(p, "/a")
		b.wantCounts("example.com/dev {3 3 false}")
		if got := b.allocate(newPod("a", "app:1")); got != "app=d0" {
			t.Error(got)
		}
		p.Health(pluginapi.Unhealthy, "d0", "d1")
		b.wantCounts("example.com/dev {3 1 false}")
		if !slices.Equal(b.woken, []types.UID{"a"}) {
			t.Error("woken:", b.woken)
		}
		if h := fmt.Sprint(b.Health("a", "app")); h != "[{example.com/dev [{d0 Unhealthy <nil>}]}]" {
			t.Error(h)
		}
		p.Health(pluginapi.Healthy, "d0", "d1")
		// It goes: nothing can be given at once; it comes back in time, at another socket.
		stop()
		b.wantCounts("example.com/dev {3 0 false}")
		if h := fmt.Sprint(b.Health("a", "app")); h != "[{example.com/dev [{d0 Unknown <nil>}]}]" {
			t.Error(h)
		}
		if got := b.allocate(newPod("b", "app:1")); got != "error: no healthy devices present; cannot allocate unhealthy devices example.com/dev" {
			t.Error(got)
		}
		time.Sleep(grace - time.Second)
		b.wantCounts("example.com/dev {3 0 false}")
		stop = b.serve(devicetest.New(dev, ids(4)...), "/b")
		time.Sleep(2 * grace)
		b.wantCounts("example.com/dev {4 4 false}")
		if got := b.allocate(newPod("b", "app:2")); got != "app=d1,d2" {
			t.Error(got)
		}
		// Another takes its place while it is there: it is not told of what is left of the former's connection.
		b.serve(devicetest.New(dev, "x"), "/c")
		b.wantCounts("example.com/dev {1 1 false}")
		stop()
		b.wantCounts("example.com/dev {1 1 false}")
	})
}

// A plugin that is replaced while it is being asked is no reason to refuse a pod, and does not take its resource back; nor does one that goes
// while it is asked make a pod wait.
func TestReplaced(t *testing.T) {
	for _, call := range []string{"Allocate", "GetPreferredAllocation"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			p := devicetest.New(dev, "d0")
			p.Options.GetPreferredAllocationAvailable = true
			p.Hang[call] = true
			ctx, cancel := context.WithCancel(t.Context())
			stop, over := p.Serve(b.sockets.Listen("/a")), make(chan error, 1)
			go func() {
				over <- b.Serve(ctx, registrar.Registration{Name: dev, Socket: "/a", Versions: []string{pluginapi.Version}}, func() {})
			}()
			synctest.Wait()
			var got string
			done := make(chan struct{})
			go func() { got = b.allocate(newPod("a", "app:1")); close(done) }()
			synctest.Wait()
			next := devicetest.New(dev, "d0", "d1")
			next.Hang["Allocate"] = true
			end := b.serve(next, "/b")
			if <-done; got != "wait: the device plugin of example.com/dev was replaced while it was asked" {
				t.Error(got)
			}
			time.Sleep(time.Minute)
			p.Set(&pluginapi.Device{ID: "old", Health: pluginapi.Healthy})
			b.wantCounts("example.com/dev {2 2 false}")
			done = make(chan struct{})
			go func() { got = b.allocate(newPod("b", "app:2")); close(done) }()
			synctest.Wait()
			end()
			if <-done; !strings.HasPrefix(got, "error: rpc error: code = Unavailable") {
				t.Error(got)
			}
			b.wantCounts("example.com/dev {2 0 false}")
			select {
			case err := <-over:
				t.Error("the registrar would have it try again:", err)
			default:
			}
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
			stop()
		})
	}
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		for _, path := range []string{"/x", "/y", "/z"} { // each time it has the whole grace period to come back
			b.serve(devicetest.New(dev, "d0"), path)()
			time.Sleep(grace * 2 / 3)
			b.wantCounts("example.com/dev {1 0 false}")
		}
		b.serve(devicetest.New(dev, "d0"), "/a")()
		before := b.told()
		time.Sleep(grace + time.Second)
		b.wantCounts("example.com/dev {0 0 false}")
		if b.Owns(dev) || b.told() == before {
			t.Error("it is still waited for")
		}
		b.kill()
		b.start()
		b.wantCounts("") // the Node has the zero
		b.serve(devicetest.New(dev, "d0"), "/b")
		b.wantCounts("example.com/dev {1 1 false}")
	})
}

func TestAllocate(t *testing.T) {
	last := func(available, _ []string, size int) ([]string, error) { return available[len(available)-size:], nil }
	for name, c := range map[string]struct {
		devices int
		prefer  func(available, must []string, size int) ([]string, error)
		pods    []*corev1.Pod
		want    []string
	}{
		"one after the other": {devices: 3, pods: []*corev1.Pod{newPod("a", "app:2"), newPod("b", "app:1"), newPod("c", "app:1")},
			want: []string{"app=d0,d1", "app=d2",
				"error: requested number of devices unavailable for example.com/dev. Requested: 1, Available: 0"}},
		"all or nothing": {devices: 3, pods: []*corev1.Pod{newPod("a", "x:2", "y:2"), newPod("b", "x:3")},
			want: []string{"error: requested number of devices unavailable for example.com/dev. Requested: 2, Available: 1", "x=d0,d1,d2"}},
		"init containers' are used again": {devices: 3, pods: []*corev1.Pod{newPod("a", "init1:2", "init2:3", "x:1", "y:2")},
			want: []string{"init1=d0,d1 init2=d0,d1,d2 x=d0 y=d1,d2"}},
		"sidecars keep theirs": {devices: 4, pods: []*corev1.Pod{newPod("a", "init1:2", "side:1", "init2:2", "x:3")},
			want: []string{"init1=d0,d1 side=d0 init2=d1,d2 x=d1,d2,d3"}},
		"none asked for": {devices: 1, pods: []*corev1.Pod{newPod("a", "x:0")}, want: []string{""}},
		"preferred":      {devices: 4, prefer: last, pods: []*corev1.Pod{newPod("a", "x:2"), newPod("b", "x:1")}, want: []string{"x=d2,d3", "x=d1"}},
		"preferred with those of an init container": {devices: 4, prefer: func(_, must []string, _ int) ([]string, error) {
			if len(must) == 1 {
				return []string{must[0], "d3"}, nil
			}
			return []string{"d2"}, nil
		}, pods: []*corev1.Pod{newPod("a", "init:1", "x:2")}, want: []string{"init=d2 x=d2,d3"}},
		"preferred, but unknown, taken or too many": {devices: 4, prefer: func([]string, []string, int) ([]string, error) {
			return []string{"nope", "d0", "d0", "d3", "d2", "d1"}, nil
		}, pods: []*corev1.Pod{newPod("a", "x:1"), newPod("b", "x:2")}, want: []string{"x=d0", "x=d2,d3"}},
		"preferred, but too few": {devices: 3, prefer: func([]string, []string, int) ([]string, error) { return []string{"d2"}, nil },
			pods: []*corev1.Pod{newPod("a", "x:2")}, want: []string{"x=d0,d2"}},
		"no preference": {devices: 2, prefer: func([]string, []string, int) ([]string, error) { return nil, fmt.Errorf("broken") },
			pods: []*corev1.Pod{newPod("a", "x:1")}, want: []string{"error: rpc error: code = Unknown desc = broken"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				p := devicetest.New(dev, ids(c.devices)...)
				p.Prefer, p.Options.GetPreferredAllocationAvailable = c.prefer, c.prefer != nil
				b.serve(p, "/a")
				for i, pod := range c.pods {
					if got := b.allocate(pod); got != c.want[i] {
						t.Errorf("%s: %q, want %q", pod.Name, got, c.want[i])
					}
				}
				if m := p.Mistakes(); len(m) > 0 {
					t.Error(m)
				}
			})
		})
	}
}

// Pods that are allocated for at the same time get different devices, and one that hangs holds up nobody else's.
func TestAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, ids(20)...)
		p.Options.GetPreferredAllocationAvailable = true
		p.Prefer = func(available, _ []string, size int) ([]string, error) {
			time.Sleep(time.Second)
			return available[:size], nil
		}
		b.serve(p, "/a")
		slow := devicetest.New("example.com/slow", "s0")
		slow.Hang["Allocate"] = true
		b.serve(slow, "/s")
		q := newPod("slow", "app:1")
		q.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"example.com/slow": resource.MustParse("1")}
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			if got := b.allocate(q); !strings.Contains(got, "DeadlineExceeded") || time.Since(began) != callLimit {
				t.Error(got, time.Since(began))
			}
		})
		pods := make([]*corev1.Pod, 11)
		failed := 0
		for i := range pods {
			pods[i] = newPod(fmt.Sprint("p", i), "app:2")
			wg.Go(func() {
				if got := b.allocate(pods[i]); strings.HasPrefix(got, "error") {
					b.mu.Lock()
					failed++
					b.mu.Unlock()
				}
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, p := range pods {
			for _, id := range strings.Split(strings.TrimPrefix(b.has(p), "app="), ",") {
				if id != "" && seen[id] {
					t.Error("given twice:", id)
				}
				seen[id] = true
			}
		}
		if failed != 1 {
			t.Error(failed, "pods got none")
		}
		slow.Change(func() { slow.Hang["Allocate"] = false }) // what the failure had reserved is free
		if got := b.allocate(q); got != "app=s0" {
			t.Error(got)
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, ids(4)...)
		p.Options.PreStartRequired = true
		stop := b.serve(p, "/a")
		a, c := newPod("a", "init:2", "app:1"), newPod("c", "app:1")
		if got := b.allocate(a) + ", " + b.allocate(c); got != "init=d0,d1 app=d0, app=d1" && got != "init=d0,d1 app=d0, app=d2" {
			t.Fatal(got)
		}
		had := b.has(a) + b.has(c)
		b.kill()
		b.start()
		// The plugin is not there yet: what pods have they keep, new ones wait, and the Node keeps the capacity.
		b.wantCounts("example.com/dev {0 0 true}")
		if got := b.allocate(a) + b.allocate(c); got != had {
			t.Error("after a restart:", got, "before:", had)
		}
		add, err := b.Additions(c, &c.Spec.Containers[0])
		if err != nil || len(add.Envs) != 1 || add.Envs[0].Key != "DEVICES" {
			t.Error(add, err)
		}
		if !b.Prepares("c", "app") || b.Prepare(t.Context(), "c", "app") == nil {
			t.Error("no container starts before the plugin has prepared its devices")
		}
		n := newPod("n", "app:1")
		if got := b.allocate(n); !strings.HasPrefix(got, "wait: the device plugin of example.com/dev") {
			t.Error(got)
		}
		stop()
		b.serve(p, "/b")
		if b.told() != 2 {
			t.Error("who waited was told", b.told(), "times")
		}
		if got := b.allocate(n); !strings.HasPrefix(got, "app=d") || strings.Contains(had, got) && got != "app=d0" {
			t.Error(got)
		}
		if err := b.Prepare(t.Context(), "c", "app"); err != nil {
			t.Error(err)
		}
		if h := b.Holders(); !slices.Equal(h, []types.UID{"a", "c", "n"}) {
			t.Error(h)
		}
		for _, uid := range b.Holders() {
			if err := b.Free(uid); err != nil {
				t.Error(err)
			}
		}
		b.kill()
		b.start()
		b.serve(p, "/c")
		if got := b.allocate(newPod("z", "app:4")); got != "app=d0,d1,d2,d3" {
			t.Error("freed:", got)
		}
	})
}

// After a boot pods wait for the plugin, and are given the same again where that is there.
func TestBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, ids(5)...)
		b.serve(p, "/a")
		x, a, c := newPod("x", "app:1"), newPod("a", "app:2"), newPod("c", "app:1")
		b.allocate(x)
		had := b.allocate(a)
		b.allocate(c)
		b.kill()
		b.boot = "boot2"
		b.start()
		if got := b.allocate(a); !strings.HasPrefix(got, "wait:") {
			t.Error(got)
		}
		if _, err := b.Additions(a, &a.Spec.Containers[0]); err == nil {
			t.Error("a container would run without its devices")
		}
		b.serve(p, "/b")
		if got := b.allocate(newPod("new", "app:1")); got != "app=d4" {
			t.Error("what others had is not theirs any more:", got)
		}
		p.Calls()
		if got := b.allocate(a); got != had {
			t.Errorf("%q, before the boot %q", got, had)
		}
		if calls := p.Calls(); !slices.Equal(calls, []string{"Allocate d1,d2"}) {
			t.Error(calls)
		}
		p.Set(&pluginapi.Device{ID: "d0", Health: pluginapi.Healthy}) // the other's has gone
		time.Sleep(listPause)
		synctest.Wait()
		if err := b.Free("x"); err != nil {
			t.Error(err)
		}
		if got := b.allocate(c); got != "app=d0" {
			t.Error(got)
		}
		// Torn by the boot: everything is allocated anew. Torn without one: somebody has spoilt it.
		b.kill()
		torn := filepath.Join(b.root, grantsFile)
		if err := os.WriteFile(torn, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := b.unopened().Open(t.Context()); err == nil || !strings.Contains(err.Error(), torn) || !strings.Contains(err.Error(), "remove it") {
			t.Error(err)
		}
		b.boot = "boot3"
		b.start()
		b.serve(p, "/c")
		if got := b.allocate(c); got != "app=d0" {
			t.Error(got)
		}
	})
}

// What cannot be saved is not granted.
func TestUnsaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.serve(devicetest.New(dev, "d0"), "/a")
		obstacle := filepath.Join(b.root, "."+grantsFile+".new")
		if err := os.Mkdir(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		if got := b.allocate(newPod("a", "app:1")); !strings.Contains(got, obstacle) && !strings.Contains(got, grantsFile) {
			t.Error(got)
		}
		os.Remove(obstacle)
		if got := b.allocate(newPod("b", "app:1")); got != "app=d0" {
			t.Error(got)
		}
		if err := os.Mkdir(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := b.Free("b"); err == nil || b.has(newPod("b", "app:1")) != "app=d0" {
			t.Error("freed, but a restarted kubelet would not know:", err)
		}
		os.Remove(obstacle)
		if err := b.Free("b"); err != nil {
			t.Error(err)
		}
	})
}

// What a pod has a claim for, the plugin of the same name does not serve: DRA drivers do.
func TestByClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, "d0")
		b.serve(p, "/a")
		claimed := newPod("a", "app:1")
		claimed.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "c",
			RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: "app", ResourceName: dev, RequestName: "r"}}}
		if b.Missing(claimed) {
			t.Error("the plugin is to serve it")
		}
		if add, err := b.Additions(claimed, &claimed.Spec.Containers[0]); add != nil || err != nil {
			t.Error(add, err)
		}
		if got := b.allocate(newPod("b", "app:1")); got != "app=d0" {
			t.Error(got)
		}
	})
}

// With device plugins switched off, pods keep what they have over a restart of the kubelet, and nobody gets anything; switched on again, all is as it was.
func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, "d0", "d1")
		stop := b.serve(p, "/a")
		a := newPod("a", "app:1")
		had := b.allocate(a)
		stop()
		b.kill()
		b.closed = true
		b.start()
		b.wantCounts("example.com/dev {0 0 false}") // at once: no plugin is waited for
		if b.Missing(a) {
			t.Error("the pod is to be granted devices, and has some")
		}
		if add, err := b.Additions(a, &a.Spec.Containers[0]); err != nil || len(add.Envs) != 1 {
			t.Error(add, err)
		}
		if h := b.Health("a", "app"); len(h) != 1 || h[0].Resources[0].Health != corev1.ResourceHealthStatusUnknown {
			t.Error(h)
		}
		if got := b.allocate(newPod("b", "app:1")); got != "error: cannot allocate unregistered device example.com/dev" {
			t.Error(got)
		}
		gone := newPod("c", "app:1")
		if err := b.Free(gone.UID); err != nil {
			t.Error(err)
		}
		b.kill()
		b.closed = false
		b.start()
		b.wantCounts("example.com/dev {0 0 true}")
		b.serve(p, "/b")
		if got := b.allocate(a); got != had {
			t.Errorf("%s, had %s", got, had)
		}
		if got := b.allocate(newPod("b", "app:1")); got == had || !strings.HasPrefix(got, "app=d") {
			t.Error(got)
		}
		if err := b.Free("a"); err != nil {
			t.Error(err)
		}
	})
}
