package devices

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/kubelet/registrar"
)

func answer(c ...*pluginapi.ContainerAllocateResponse) func([]string) (*pluginapi.AllocateResponse, error) {
	return func([]string) (*pluginapi.AllocateResponse, error) {
		return &pluginapi.AllocateResponse{ContainerResponses: c}, nil
	}
}

// What a plugin answers that cannot be passed on refuses the pod, and leaves the devices free.
func TestGarbage(t *testing.T) {
	for want, f := range map[string]func([]string) (*pluginapi.AllocateResponse, error){
		"no containers return in allocation response": answer(),
		`envs: "A=B" is no name`:                      answer(&pluginapi.ContainerAllocateResponse{Envs: map[string]string{"A=B": "c"}}),
		`envs: "" is no name`:                         answer(&pluginapi.ContainerAllocateResponse{Envs: map[string]string{"": "c"}}),
		`mounts: "x" to "/y": both must be absolute`:  answer(&pluginapi.ContainerAllocateResponse{Mounts: []*pluginapi.Mount{{HostPath: "x", ContainerPath: "/y"}}}),
		`devices: "/x" to "": both must be absolute`:  answer(&pluginapi.ContainerAllocateResponse{Devices: []*pluginapi.DeviceSpec{{HostPath: "/x"}}}),
		`permissions "all"`: answer(&pluginapi.ContainerAllocateResponse{Devices: []*pluginapi.DeviceSpec{
			{HostPath: "/x", ContainerPath: "/x", Permissions: "all"}}}),
		"cdi_devices: a name is missing": answer(&pluginapi.ContainerAllocateResponse{CdiDevices: []*pluginapi.CDIDevice{{}}}),
		"received message larger than":   answer(&pluginapi.ContainerAllocateResponse{Envs: map[string]string{"A": strings.Repeat("x", 5<<20)}}),
		"xxx...": func([]string) (*pluginapi.AllocateResponse, error) {
			return nil, errors.New(strings.Repeat("x", 1<<15))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			p := devicetest.New(dev, "d0")
			p.Answer = f
			b.serve(p, "/a")
			if got := b.allocate(newPod("a", "app:1")); !strings.HasPrefix(got, "error: ") || !strings.Contains(got, want) || len(got) > 2*registrar.MaxText {
				t.Errorf("%q, want %q", got, want)
			}
			p.Change(func() { p.Answer = nil })
			if got := b.allocate(newPod("b", "app:1")); got != "app=d0" {
				t.Error(got)
			}
		})
	}
}

// A plugin that lists its devices all the time has neither the Node nor pods written as often, and its last word counts.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev, "d0", "d1")
		b.serve(p, "/a")
		b.allocate(newPod("a", "app:1"))
		for i := range 1000 {
			p.Health([]string{pluginapi.Healthy, pluginapi.Unhealthy}[i%2], "d0")
			time.Sleep(time.Millisecond)
		}
		b.wantCounts("example.com/dev {2 1 false}")
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.changed > 25 || len(b.woken) > 25 {
			t.Error(b.changed, "and", len(b.woken), "times in a second")
		}
	})
}

// Whatever hangs, others go on, and the one call ends.
func TestHangs(t *testing.T) {
	for call, limit := range map[string]time.Duration{"Allocate": callLimit, "GetPreferredAllocation": callLimit, "PreStartContainer": prepareLimit} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			p := devicetest.New(dev, "d0")
			p.Options.PreStartRequired, p.Options.GetPreferredAllocationAvailable = true, true
			p.Hang[call] = true
			b.serve(p, "/a")
			began := time.Now()
			got := b.allocate(newPod("a", "app:1"))
			if call == "PreStartContainer" {
				got = fmt.Sprint(b.Prepare(t.Context(), "a", "app"))
			}
			if !strings.Contains(got, "DeadlineExceeded") || time.Since(began) != limit {
				t.Errorf("%s: %q after %v", call, got, time.Since(began))
			}
		})
	}
	for _, call := range []string{"GetDevicePluginOptions", "ListAndWatch"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			p := devicetest.New(dev, "d0")
			p.Hang[call] = true
			b.serve(p, "/a")
			b.wantCounts("")
			p = devicetest.New(dev, "d0", "d1") // it takes the place of one that has said nothing
			b.serve(p, "/b")
			b.wantCounts("example.com/dev {2 2 false}")
		})
	}
	synctest.Test(t, func(t *testing.T) { // nobody is there
		b := newBed(t)
		began := time.Now()
		err := b.Serve(b.ctx, registrar.Registration{Name: dev, Socket: "/none", Versions: []string{"v1beta1"}}, func() {})
		if err == nil || time.Since(began) > callLimit {
			t.Error(err, time.Since(began))
		}
	})
}

func TestOddDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		p := devicetest.New(dev)
		p.Set(&pluginapi.Device{Health: pluginapi.Healthy}, &pluginapi.Device{ID: strings.Repeat("x", maxID+1), Health: pluginapi.Healthy},
			&pluginapi.Device{ID: "twice", Health: pluginapi.Healthy}, &pluginapi.Device{ID: "twice", Health: pluginapi.Unhealthy}, &pluginapi.Device{ID: "odd", Health: "so-so"},
			&pluginapi.Device{ID: "good", Health: pluginapi.Healthy, Topology: &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: 1}, {}}}})
		b.serve(p, "/a")
		b.wantCounts("example.com/dev {3 1 false}")
		p.Set()
		b.wantCounts("example.com/dev {0 0 false}")
	})
}

// Thousands of devices cost the allocation next to nothing: it is a bound that only a mistake exceeds.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var all []string
		for i := range 20000 {
			all = append(all, fmt.Sprintf("device-with-a-name-that-is-rather-long-%05d", i))
		}
		p := devicetest.New(dev, all...)
		b.serve(p, "/a")
		for i := range 100 {
			if got := b.allocate(newPod(fmt.Sprint("p", i), "app:8")); strings.HasPrefix(got, "error") {
				t.Fatal(got)
			}
		}
		if n := len(b.used[dev]); n != 800 {
			t.Error(n)
		}
		b.kill()
		b.start()
		if n := len(b.used[dev]); n != 800 {
			t.Error("after a restart:", n)
		}
	})
}

func BenchmarkAllocate(b *testing.B) {
	s := New(Config{Root: b.TempDir(), Boot: "b"})
	p := &plugin{}
	st := &stock{plugin: p, devices: map[string]*pluginapi.Device{}}
	for i := range 1000 {
		id := fmt.Sprintf("device-%04d", i)
		st.devices[id] = &pluginapi.Device{ID: id, Health: pluginapi.Healthy}
		st.healthy = append(st.healthy, id)
	}
	s.stocks[dev] = st
	for i := range 100 {
		pod := newPod(fmt.Sprint("p", i), "app:4")
		a := allocation{set: s, pod: pod, grants: map[string]map[string]*grant{}, taken: map[string][]string{}}
		c, _, _, _ := a.reserve(b.Context(), dev, 4)
		a.grants["app"] = map[string]*grant{dev: {IDs: c.ids, Encoded: make([]byte, 200)}}
		if err := a.commit(); err != nil {
			b.Fatal(err)
		}
	}
	pod := newPod("p", "app:4")
	for b.Loop() {
		a := allocation{set: s, pod: pod, grants: map[string]map[string]*grant{}, taken: map[string][]string{}}
		c, _, _, err := a.reserve(b.Context(), dev, 4)
		if err != nil {
			b.Fatal(err)
		}
		a.grants["app"] = map[string]*grant{dev: {IDs: c.ids, Encoded: make([]byte, 200)}}
		if err := a.commit(); err != nil {
			b.Fatal(err)
		}
		if err := s.Free("p"); err != nil {
			b.Fatal(err)
		}
	}
}

// Two plugins' wishes for one container are joined; the first by name has its way.
func TestAdditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		for i, name := range []string{"example.com/a", "example.com/b"} {
			p := devicetest.New(name, "d0")
			who := name[len(name)-1:]
			p.Answer = answer(&pluginapi.ContainerAllocateResponse{
				Envs:        map[string]string{"BOTH": who, "ONLY_" + who: "1"},
				Mounts:      []*pluginapi.Mount{{HostPath: "/" + who, ContainerPath: "/m", ReadOnly: true}, {HostPath: "/usr", ContainerPath: "/" + who}},
				Devices:     []*pluginapi.DeviceSpec{{HostPath: "/dev/" + who, ContainerPath: "/dev/x", Permissions: "rw"}},
				Annotations: map[string]string{"both": who},
				CdiDevices:  []*pluginapi.CDIDevice{{Name: "example.com/cdi=both"}, {Name: "example.com/cdi=" + who}}})
			b.serve(p, fmt.Sprint("/", i))
		}
		pod := newPod("p", "app:1")
		one := pod.Spec.Containers[0].Resources.Limits[dev]
		pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"example.com/b": one, "example.com/a": one}
		if got := b.allocate(pod); got != "app=d0 app=d0" {
			t.Fatal(got)
		}
		a, err := b.Additions(pod, &pod.Spec.Containers[0])
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range a.Envs {
			got = append(got, e.Key+"="+string(e.Value))
		}
		for _, m := range a.Mounts {
			got = append(got, fmt.Sprint(m.HostPath, ":", m.ContainerPath, " ", m.Readonly))
		}
		for _, d := range a.Devices {
			got = append(got, d.HostPath+" "+d.Permissions)
		}
		for _, c := range a.CDI {
			got = append(got, c.Name)
		}
		got = append(got, fmt.Sprint(a.Annotations))
		want := []string{"BOTH=a", "ONLY_a=1", "ONLY_b=1", "/usr:/a false", "/usr:/b false", "/a:/m true", "/dev/a rw", "example.com/cdi=a", "example.com/cdi=b",
			"example.com/cdi=both", "map[both:a]"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
