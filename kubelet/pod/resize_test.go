package pod

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/resources"
)

// sized asks for cpu and memory and limits both, "" being none.
func sized(cpu, memory, cpuLimit, memoryLimit string) corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	return corev1.ResourceRequirements{Requests: list(cpu, memory), Limits: list(cpuLimit, memoryLimit)}
}

func having(r corev1.ResourceRequirements, policies ...corev1.ContainerResizePolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources, p.Spec.Containers[0].ResizePolicy = r, policies }
}

// resize is what a user's write of pods/resize comes to.
func (b *bed) resize(name string, r corev1.ResourceRequirements) {
	p := b.pod(name).DeepCopy()
	p.Spec.Containers[0].Resources = r
	p.Generation++
	b.api.Put(p)
	b.settle()
}

// wantSize checks what the pod's status says of the container's resources, and of a resize under way.
func (b *bed) wantSize(name string, r corev1.ResourceRequirements, conditions ...string) {
	b.t.Helper()
	p := b.pod(name)
	s := p.Status.ContainerStatuses[0]
	for _, l := range []struct{ got, want corev1.ResourceList }{{s.Resources.Requests, r.Requests}, {s.Resources.Limits, r.Limits}} {
		for n, q := range l.want {
			if got := l.got[n]; got.Cmp(q) != 0 {
				b.t.Errorf("%s is %s, want %s", n, got.String(), q.String())
			}
		}
	}
	var got []string
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
			got = append(got, string(c.Type)+" "+c.Reason+": "+c.Message)
		}
	}
	if !slices.Equal(got, conditions) {
		b.t.Errorf("conditions %q, want %q", got, conditions)
	}
	if p.Status.ObservedGeneration != p.Generation {
		b.t.Errorf("generation %d was observed, of %d", p.Status.ObservedGeneration, p.Generation)
	}
}

func (b *bed) wantCalls(want ...string) {
	b.t.Helper()
	var got []string
	for _, c := range b.runtime.Calls() {
		if !strings.HasPrefix(c, "pull") && !strings.HasPrefix(c, "run ") {
			got = append(got, c)
		}
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("calls %q, want %q", got, want)
	}
}

func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		b.node.Status.Allocatable = sized("2", "2Gi", "", "").Requests
		b.api.Put(newPod("a", having(sized("100m", "100Mi", "200m", "200Mi"))))
		b.wantStatus("a", "Running ready app=running")
		b.runtime.Calls()
		b.api.Events()

		b.resize("a", sized("200m", "100Mi", "400m", "300Mi"))
		b.wantSize("a", sized("200m", "100Mi", "400m", "300Mi"))
		b.wantCalls("update app 204 40000 314572800")
		for _, g := range b.groups.have {
			if g.Shares != 204 || g.Quota != 40000 || g.Memory != 300<<20 {
				t.Error("the pod's group has", g)
			}
		}
		events := b.api.Events()
		if len(events) != 2 || !strings.HasPrefix(events[0], "Normal a ResizeStarted: Pod resize started: {") ||
			!strings.HasPrefix(events[1], "Normal a ResizeCompleted: Pod resize completed: {") || !strings.Contains(events[1], `"generation":2`) {
			t.Errorf("events %q", events)
		}

		// A limit below what is used is refused until less is used; the rest of the pod goes on.
		b.runtime.Memory = 150 << 20
		b.resize("a", sized("200m", "100Mi", "400m", "100Mi"))
		b.wantSize("a", sized("200m", "100Mi", "400m", "300Mi"),
			`PodResizeInProgress Error: attempting to set container "app" memory limit (104857600) below current usage (157286400)`)
		b.wantCalls()
		b.runtime.Exit("app", 1) // the next run has what was given
		b.wantStatus("a", "Running ready app=running#1")
		b.wantSize("a", sized("200m", "100Mi", "400m", "100Mi"), "PodResizeInProgress Error: attempting to set container \"app\" memory limit (104857600) below current usage (157286400)")
		synctest.Wait()
	})
}

func TestResizeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		b.node.Status.Allocatable = sized("2", "2Gi", "", "").Requests
		small := sized("1", "", "", "")
		b.api.Put(newPod("a", having(small)))
		b.wantStatus("a", "Running ready app=running")
		b.api.Put(newPod("b", having(sized("500m", "", "", ""))))
		b.wantStatus("b", "Running ready app=running")
		b.api.Events()

		b.resize("a", sized("3", "", "", ""))
		b.wantSize("a", small, "PodResizePending Infeasible: Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000")
		b.resize("a", sized("1800m", "", "", ""))
		b.wantSize("a", small, "PodResizePending Deferred: Node didn't have enough resource: cpu, requested: 1800, used: 500, capacity: 2000")
		if e := b.api.Events(); len(e) != 2 || !strings.HasPrefix(e[0], "Warning a ResizeInfeasible: Pod resize Infeasible: {") ||
			!strings.HasPrefix(e[1], "Warning a ResizeDeferred: Pod resize Deferred: {") {
			t.Errorf("events %q", e)
		}

		// A restart of the kubelet changes nothing of this, and gives nothing away twice.
		b.stop()
		b.start()
		b.settle()
		b.wantSize("a", small, "PodResizePending Deferred: Node didn't have enough resource: cpu, requested: 1800, used: 500, capacity: 2000")

		b.api.DeletePod(api.KeyOf(b.pod("b")), 30)
		b.settle()
		b.wantSize("a", sized("1800m", "", "", ""))
	})
}

func TestResizeRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		restart := corev1.ContainerResizePolicy{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}
		b.api.Put(newPod("a", policy(corev1.RestartPolicyOnFailure), having(sized("100m", "100Mi", "", ""), restart)))
		b.wantStatus("a", "Running ready app=running")
		b.runtime.Calls()
		b.resize("a", sized("200m", "100Mi", "", ""))
		b.wantStatus("a", "Running ready app=running")
		b.wantCalls("update app 204 -1 0")
		// No cgroup shows a request of memory; and a container that ends well when it is told to is started all the same.
		b.resize("a", sized("200m", "200Mi", "", ""))
		b.wantStatus("a", "Running ready app=running#1")
		b.wantSize("a", sized("200m", "200Mi", "", ""))
		b.wantCalls("stop app 30", "create app 1", "start app")
	})
}

// TestResizeRestartsGroup: what is restarted needs its room until it has ended.
func TestResizeRestartsGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		restart := corev1.ContainerResizePolicy{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}
		b.api.Put(newPod("a", having(sized("100m", "100Mi", "200m", "200Mi"), restart)))
		b.wantStatus("a", "Running ready app=running")
		b.runtime.Calls()
		b.runtime.Memory = 150 << 20
		var groups []string
		b.groups.seen = func(l resources.Limits) {
			groups = append(groups, fmt.Sprintf("%dm %dMi with %d running", l.Quota/100, l.Memory>>20, len(b.runtime.Running())))
		}
		b.resize("a", sized("100m", "100Mi", "300m", "100Mi"))
		b.wantStatus("a", "Running ready app=running#1")
		b.wantSize("a", sized("100m", "100Mi", "300m", "100Mi"))
		b.wantCalls("stop app 30", "create app 1", "start app")
		if want := []string{"300m 200Mi with 1 running", "300m 100Mi with 0 running"}; !slices.Equal(groups, want) {
			t.Errorf("the pod's group got %q, want %q", groups, want)
		}
	})
}

// asAWhole gives the pod resources that its containers share.
func asAWhole(r corev1.ResourceRequirements) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Resources = &r }
}

// resizeWhole is resize for the pod as a whole.
func (b *bed) resizeWhole(name string, r corev1.ResourceRequirements) {
	p := b.pod(name).DeepCopy()
	p.Spec.Resources = &r
	p.Generation++
	b.api.Put(p)
	b.settle()
}

// wantWhole checks what the pod's status says it has as a whole, what it was given, and of a resize under way.
func (b *bed) wantWhole(name string, has, given corev1.ResourceRequirements, conditions ...string) {
	b.t.Helper()
	p := b.pod(name)
	if !equality.Semantic.DeepEqual(p.Status.Resources, &has) {
		b.t.Errorf("the pod has %v, want %v", p.Status.Resources, has)
	}
	if !equality.Semantic.DeepEqual(p.Status.AllocatedResources, given.Requests) {
		b.t.Errorf("the pod was given %v, want %v", p.Status.AllocatedResources, given.Requests)
	}
	b.wantSize(name, corev1.ResourceRequirements{}, conditions...)
}

func TestResizeWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		b.node.Status.Allocatable = sized("4", "4Gi", "", "").Requests
		small, large := sized("500m", "1Gi", "1", "1Gi"), sized("1", "2Gi", "2", "2Gi")
		b.api.Put(newPod("a", asAWhole(small), func(p *corev1.Pod) { p.Spec.Overhead = sized("1", "", "", "").Requests }))
		b.wantStatus("a", "Running ready app=running")
		b.wantWhole("a", small, small)
		for _, c := range b.runtime.Running() {
			if r := c.Linux.Resources; r.CpuQuota != 100000 || r.MemoryLimitInBytes != 1<<30 {
				t.Error("the container has", r)
			}
		}
		b.runtime.Calls()
		b.api.Events()

		b.resizeWhole("a", large)
		b.wantWhole("a", large, large)
		b.wantCalls("update app 2048 200000 2147483648")
		for _, g := range b.groups.have {
			if g.Shares != 2048 || g.Quota != 300000 || g.Memory != 2<<30 { // with the overhead
				t.Error("the pod's group has", g)
			}
		}
		if told := b.runtime.Resized; len(told) != 1 || told[0].Resources.CpuQuota != 300000 || told[0].Resources.MemoryLimitInBytes != 2<<30 || told[0].Overhead.CpuShares != 1024 {
			t.Errorf("the runtime was told %v", told)
		}
		if e := b.api.Events(); len(e) != 2 || !strings.Contains(e[1], `ResizeCompleted: Pod resize completed: {"resources":{"limits":{"cpu":"2","memory":"2Gi"}`) {
			t.Errorf("events %q", e)
		}

		// Below what is used it does not become.
		b.runtime.Memory = 1200 << 20
		b.resizeWhole("a", small)
		b.wantWhole("a", large, small,
			`PodResizeInProgress Error: attempting to set container "app" memory limit (1073741824) below current usage (1258291200)`)
		b.wantCalls()

		// Nor larger than the node; what it has stays when the kubelet is restarted.
		huge := sized("9", "2Gi", "9", "2Gi")
		b.resizeWhole("a", huge)
		b.wantWhole("a", large, small, "PodResizePending Infeasible: Node didn't have enough capacity: cpu, requested: 10000, capacity: 4000",
			`PodResizeInProgress Error: attempting to set container "app" memory limit (1073741824) below current usage (1258291200)`)
		b.stop()
		b.start()
		b.settle()
		b.wantWhole("a", large, large, "PodResizePending Infeasible: Node didn't have enough capacity: cpu, requested: 10000, capacity: 4000")
		b.wantCalls()
	})
}

// TestResizeWholeBesideContainers is about a pod whose container has limits of its own.
func TestResizeWholeBesideContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{}
		b.node.Status.Allocatable = sized("4", "4Gi", "", "").Requests
		own := sized("100m", "10Mi", "200m", "20Mi")
		b.api.Put(newPod("a", having(own)))
		b.wantStatus("a", "Running ready app=running")
		if s := b.pod("a").Status; s.Resources != nil || !equality.Semantic.DeepEqual(s.AllocatedResources, own.Requests) {
			t.Errorf("a pod of containers has %v, and was given %v", s.Resources, s.AllocatedResources)
		}
		b.runtime.Calls()

		// It gets resources as a whole, and its container notices nothing. The node has no room for them before a restart of the kubelet, nor after.
		most := sized("5", "30Mi", "5", "30Mi")
		b.resizeWhole("a", most)
		b.stop()
		b.start()
		b.settle()
		b.wantSize("a", own, "PodResizePending Infeasible: Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000")
		if s := b.pod("a").Status; s.Resources != nil {
			t.Error("it has what it was not given:", s.Resources)
		}
		more := sized("1", "30Mi", "1", "30Mi")
		b.resizeWhole("a", more)
		b.wantWhole("a", more, more)
		b.wantCalls()
		for _, g := range b.groups.have {
			if g.Quota != 100000 || g.Memory != 30<<20 {
				t.Error("the pod's group has", g)
			}
		}

		b.runtime.Memory = 25 << 20
		b.resizeWhole("a", sized("1", "22Mi", "1", "22Mi"))
		b.wantWhole("a", more, sized("1", "22Mi", "", ""), `PodResizeInProgress Error: attempting to set pod memory limit (23068672) below current usage (26214400)`)
		b.runtime.Use(21 << 20)
		time.Sleep(time.Minute)
		b.settle()
		less := sized("1", "22Mi", "1", "22Mi")
		b.wantWhole("a", less, less)
	})
}
