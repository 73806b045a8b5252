package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/devices"
	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/registrar"
)

// shop is a node with a device plugin.
type shop struct {
	*bed
	plugin  *devicetest.Plugin
	set     *devices.Set
	root    string
	sockets devicetest.Sockets
	ended   []func()
	killed  func()
	came    atomic.Int32
}

func newShop(t *testing.T, plugin *devicetest.Plugin) *shop {
	s := &shop{bed: newBed(t), plugin: plugin, root: t.TempDir()}
	s.bed.stop()
	s.boot()
	t.Cleanup(func() {
		s.killed()
		if m := plugin.Mistakes(); len(m) > 0 {
			t.Error(m)
		}
	})
	return s
}

// boot runs a kubelet with what the one before it has left; the plugin is not there yet.
func (s *shop) boot() {
	ctx, cancel := context.WithCancel(s.t.Context())
	s.set = devices.New(devices.Config{Root: s.root, Boot: "b", Dial: s.sockets.Dial, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil)), Changed: func() {},
		Came: func() { s.came.Add(1); s.pods.RefreshAll() }, Wake: func(uid types.UID) { s.pods.Wake(uid) }})
	if err := s.set.Open(ctx); err != nil {
		s.t.Fatal(err)
	}
	s.bed.devices = s.set
	s.bed.start()
	stop := s.bed.stop
	s.killed = func() {
		cancel()
		for _, end := range s.ended {
			end()
		}
		s.ended = nil
	}
	s.bed.stop = func() { s.killed(); stop() }
}

// open has the plugin come.
func (s *shop) open() {
	stop := s.plugin.Serve(s.sockets.Listen("/p"))
	done := make(chan struct{})
	set, ctx := s.set, s.t.Context()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		_ = set.Serve(ctx, registrar.Registration{Name: s.plugin.Resource, Socket: "/p", Versions: []string{pluginapi.Version}}, func() {})
	}()
	s.ended = append(s.ended, func() { cancel(); stop(); <-done })
	s.settle()
}

func wants(n string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				list[i].Resources.Limits = corev1.ResourceList{"example.com/dev": resource.MustParse(n)}
				list[i].Resources.Requests = list[i].Resources.Limits
			}
		}
	}
}

// remove deletes a pod, and waits until it is gone.
func (s *shop) remove(name string) {
	s.api.DeletePod(api.Key{Namespace: "default", Name: name}, 0)
	time.Sleep(time.Minute)
}

func (s *shop) env(container, name string) string {
	for _, v := range s.runtime.Running()[container].GetEnvs() {
		if v.Key == name {
			return string(v.Value)
		}
	}
	return ""
}

func TestDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plugin := devicetest.New("example.com/dev", "d0", "d1")
		plugin.Options.PreStartRequired = true
		plugin.Answer = func(ids []string) (*pluginapi.AllocateResponse, error) {
			return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{
				Envs: map[string]string{"DEV": strings.Join(ids, ","), "OWN": "plugin"}, Annotations: map[string]string{"vendor/a": "1"},
				Devices:    []*pluginapi.DeviceSpec{{HostPath: "/dev/null", ContainerPath: "/dev/" + ids[0], Permissions: "rw"}},
				Mounts:     []*pluginapi.Mount{{HostPath: "/usr", ContainerPath: "/opt/vendor", ReadOnly: true}, {HostPath: "/usr", ContainerPath: "/etc/hosts"}},
				CdiDevices: []*pluginapi.CDIDevice{{Name: "vendor/dev=" + ids[0]}}}}}, nil
		}
		s := newShop(t, plugin)
		s.open()
		s.api.Put(newPod("p", initContainer("init", false), wants("1"), func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "OWN", Value: "pod"}}
			p.Spec.Containers[0].Command = []string{"$(DEV)"}
		}))
		s.wantRunning("init")
		s.runtime.Exit("init", 0)
		s.wantStatus("p", "Running ready init=Completed app=running")
		c := s.runtime.Running()["app"]
		if s.env("app", "DEV") != "d0" || s.env("app", "OWN") != "pod" || c.Command[0] != "d0" || c.Annotations["vendor/a"] != "1" {
			t.Error(c)
		}
		if len(c.Devices) != 1 || c.Devices[0].ContainerPath != "/dev/d0" || c.Devices[0].Permissions != "rw" || len(c.CDIDevices) != 1 || c.CDIDevices[0].Name != "vendor/dev=d0" {
			t.Error(c.Devices, c.CDIDevices)
		}
		mount := func(at string) (found []*runtimeapi.Mount) {
			for _, m := range c.Mounts {
				if m.ContainerPath == at {
					found = append(found, m)
				}
			}
			return found
		}
		if m := mount("/opt/vendor"); len(m) != 1 || !m[0].Readonly || len(mount("/etc/hosts")) != 1 || mount("/etc/hosts")[0].HostPath == "/usr" {
			t.Error(c.Mounts)
		}
		if st := fmt.Sprint(s.pod("p").Status.ContainerStatuses[0].AllocatedResourcesStatus); st != "[{example.com/dev [{d0 Healthy <nil>}]}]" {
			t.Error(st)
		}
		plugin.Health(pluginapi.Unhealthy, "d0")
		time.Sleep(time.Second)
		s.settle()
		if st := fmt.Sprint(s.pod("p").Status.ContainerStatuses[0].AllocatedResourcesStatus); st != "[{example.com/dev [{d0 Unhealthy <nil>}]}]" {
			t.Error(st)
		}
		// Each start is prepared; what fails is tried again.
		want := []string{"GetDevicePluginOptions", "ListAndWatch", "Allocate d0", "Allocate d0", "PreStartContainer d0", "PreStartContainer d0"}
		if calls := plugin.Calls(); !slices.Equal(calls, want) {
			t.Error(calls)
		}
		plugin.Change(func() { plugin.PreStart = func([]string) error { return errors.New("busy") } })
		s.runtime.Exit("app", 1)
		time.Sleep(11 * time.Second)
		s.wantStatus("p", "Running init=Completed app=CreateContainerError")
		if w := s.pod("p").Status.ContainerStatuses[0].State.Waiting; !strings.Contains(w.Message, "busy") {
			t.Error(w)
		}
		plugin.Change(func() { plugin.PreStart = nil })
		time.Sleep(time.Minute)
		s.wantStatus("p", "Running ready init=Completed app=running#1")
		if calls := plugin.Calls(); len(calls) < 2 || slices.Contains(calls, "Allocate d0") {
			t.Error(calls)
		}
		s.remove("p")
		if h := s.set.Holders(); len(h) > 0 {
			t.Error("devices stay allocated:", h)
		}
	})
}

func TestDevicesRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, devicetest.New("example.com/dev", "d0"))
		s.open()
		s.api.Put(newPod("a", wants("1")))
		s.wantRunning("app")
		s.api.Put(newPod("b", wants("1")))
		s.wantStatus("b", "Failed (UnexpectedAdmissionError)")
		const want = "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/dev. Requested: 1, Available: 0, which is unexpected"
		if m := s.pod("b").Status.Message; m != want {
			t.Errorf("%q, want %q", m, want)
		}
		// A pod that has ended leaves its devices to others, and still shows what it had.
		s.remove("b")
		s.api.Put(newPod("once", wants("1"), policy(corev1.RestartPolicyNever)))
		s.settle()
		s.remove("a")
		s.remove("once")
		s.api.Put(newPod("c", wants("1"), policy(corev1.RestartPolicyNever)))
		s.wantRunning("app")
		s.runtime.Exit("app", 0)
		s.wantStatus("c", "Succeeded app=Completed")
		if st := fmt.Sprint(s.pod("c").Status.ContainerStatuses[0].AllocatedResourcesStatus); st != "[{example.com/dev [{d0 Healthy <nil>}]}]" {
			t.Error(st)
		}
		s.api.Put(newPod("d", wants("1")))
		s.wantRunning("app")
	})
}

// What ran before a plugin came for its resource goes on as it is; its next start has devices.
func TestDevicesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, devicetest.New("example.com/dev", "d0"))
		s.api.Put(newPod("p", wants("1")))
		s.wantRunning("app")
		s.open()
		s.pods.WakeAll()
		s.settle()
		if calls := s.plugin.Calls(); slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, "Allocate") }) {
			t.Error(calls)
		}
		s.runtime.Exit("app", 0)
		time.Sleep(time.Minute)
		s.wantStatus("p", "Running ready app=running#1")
		if s.env("app", "DEVICES") != "d0" {
			t.Error("it runs without a device")
		}
	})
}

// A kubelet that is killed at any point of a pod's start gives its devices to nobody else, and its successor goes on.
func TestDevicesKilled(t *testing.T) {
	for at := range 8 {
		synctest.Test(t, func(t *testing.T) {
			plugin := devicetest.New("example.com/dev", "d0", "d1")
			plugin.Options.PreStartRequired = true
			s := newShop(t, plugin)
			slow := func() { time.Sleep(time.Second) }
			plugin.PreStart = func([]string) error { slow(); return nil }
			plugin.Answer = func(ids []string) (*pluginapi.AllocateResponse, error) {
				slow()
				return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{Envs: map[string]string{"DEV": ids[0]}}}}, nil
			}
			s.runtime.RunSandbox = func(*runtimeapi.PodSandboxConfig) error { slow(); return nil }
			s.open()
			s.api.Put(newPod("p", wants("1")))
			time.Sleep(time.Duration(at) * 600 * time.Millisecond)
			s.bed.stop()
			s.boot()
			s.settle()
			s.api.Put(newPod("q", wants("1"), func(p *corev1.Pod) { p.Spec.Containers[0].Name = "other" }))
			time.Sleep(5 * time.Second)
			s.open()
			time.Sleep(time.Minute)
			s.wantRunning("app", "other")
			if a, b := s.env("app", "DEV"), s.env("other", "DEV"); a == "" || b == "" || a == b {
				t.Errorf("after %d steps: %q and %q", at, a, b)
			}
			if p := s.pod("p"); p.Status.ContainerStatuses[0].RestartCount != 0 {
				t.Error(short(p))
			}
		})
	}
}
