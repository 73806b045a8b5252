package resources

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pod makes a pod whose containers have "requests/limits", each "cpu,memory" or empty. After "whole " stand those of the pod, after
// "sidecar " those of a sidecar.
func pod(containers ...string) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	list := func(text string) corev1.ResourceList {
		cpu, memory, ok := strings.Cut(text, ",")
		if !ok {
			return nil
		}
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	for _, c := range containers {
		c, whole := strings.CutPrefix(c, "whole ")
		c, sidecar := strings.CutPrefix(c, "sidecar ")
		requests, limits, _ := strings.Cut(c, "/")
		r := corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}
		switch {
		case whole:
			p.Spec.Resources = &r
		case sidecar:
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: "s", Resources: r, RestartPolicy: &always})
		default:
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "c", Resources: r})
		}
	}
	return p
}

func TestNumbers(t *testing.T) {
	const host = 4 << 30
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		qos    corev1.PodQOSClass
		path   string
		limits Limits
		oom    int64
	}{
		{"nothing", pod("/"), corev1.PodQOSBestEffort, "/kubepods/besteffort/podu", Limits{Shares: 2}, 1000},
		{"all", pod("1,1Gi/1,1Gi", "500m,1Gi/500m,1Gi"), corev1.PodQOSGuaranteed, "/kubepods/podu", Limits{Shares: 1536, Quota: 150000, Memory: 2 << 30}, -997},
		{"requests", pod("100m,1Gi/"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 102}, 750},
		{"one without a limit", pod("1,1Gi/1,1Gi", "1,1Gi/"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 2048}, 750},
		{"memory alone", pod("1m,/,64Mi"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 2, Memory: 64 << 20}, 999},
		{"whole", pod("whole 1,1Gi/1,1Gi", "/", "100m,1Mi/,2Mi"), corev1.PodQOSGuaranteed, "/kubepods/podu", Limits{Shares: 1024, Quota: 100000, Memory: 1 << 30}, -997},
		{"whole in part", pod("whole 1,2Gi/,3Gi", "500m,1Gi/500m,1Gi", "/"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 1024, Memory: 3 << 30}, 625},
		{"whole without limits", pod("whole 1,1Gi/", "/,2Gi", "/"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 1024}, 875},
		{"whole with a sidecar", pod("whole 1,3Gi/", ",1Gi/", "sidecar /"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 1024}, 500},
		{"more than the host", pod(",8Gi/"), corev1.PodQOSBurstable, "/kubepods/burstable/podu", Limits{Shares: 2}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := QOS(c.pod); got != c.qos {
				t.Error(got)
			}
			if got := Parent("", c.pod); got != c.path {
				t.Error(got)
			}
			if d := cmp.Diff(c.limits, PodLimits(c.pod, Host{})); d != "" {
				t.Error(d)
			}
			if got := OOMScore(c.pod, &c.pod.Spec.Containers[0], host); got != c.oom {
				t.Error("oom", got)
			}
		})
	}
}

// TestContainer is about what a container has of its pod.
func TestContainer(t *testing.T) {
	const host = 4 << 30
	huge := pod("whole 1,/1,", "/", "/")
	huge.Spec.Resources.Limits["hugepages-2Mi"] = resource.MustParse("4Mi")
	huge.Spec.Containers[1].Resources.Limits = corev1.ResourceList{"hugepages-2Mi": resource.MustParse("2Mi")}
	for _, c := range []struct {
		name, want string
		pod        *corev1.Pod
	}{
		{"its own alone", "512 50000 1073741824", pod("500m,1Gi/500m,1Gi")},
		{"all of the pod's", "1024 100000 1073741824", pod("whole 500m,1Gi/1,1Gi", "/")},
		{"a request of its own", "204 100000 1073741824", pod("whole 500m,1Gi/1,1Gi", "200m,/")},
		{"a limit of its own", "1024 100000 2048", pod("whole 500m,/1,1Gi", "/,2048")},
		{"a pod without limits", "2 -1 0", pod("whole 500m,1Gi/", "/")},
		{"a limit of nothing is none", "1024 100000 0", pod("whole 1,/1,", "/0,")},
		{"huge pages of the pod", "1024 100000 0 2MB=4194304", huge},
	} {
		r := Container(c.pod, &c.pod.Spec.Containers[0], Host{Memory: host})
		got := fmt.Sprint(r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes)
		for _, p := range r.HugepageLimits {
			got += fmt.Sprintf(" %s=%d", p.PageSize, p.Limit)
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	if got := Container(huge, &huge.Spec.Containers[1], Host{}).HugepageLimits; len(got) != 1 || got[0].Limit != 2<<20 {
		t.Error("huge pages of its own:", got)
	}
	// A sidecar is killed with the containers that it serves, or after them.
	for want, p := range map[int64]*corev1.Pod{750: pod(",2Gi/", ",1Gi/", "sidecar /"), 667: pod("whole ,4Gi/", ",1Gi/", ",1Gi/", "sidecar ,1Gi/")} {
		if got := OOMScore(p, &p.Spec.InitContainers[0], host); got != want {
			t.Errorf("a sidecar has %d, want %d", got, want)
		}
	}
}

// TestUnified is about what hosts with cgroup v2 alone get beside.
func TestUnified(t *testing.T) {
	const high, group = "memory.high", "memory.oom.group"
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		host Host
		want map[string]string
	}{
		{"v1", pod("/"), Host{Throttle: 0.5}, nil},
		{"defaults", pod(",64Mi/,128Mi"), Host{Unified: true}, map[string]string{group: "1", high: "max"}},
		{"one process is killed", pod("/"), Host{Unified: true, SingleKill: true}, map[string]string{group: "0", high: "max"}},
		{"half way", pod(",64Mi/,128Mi"), Host{Unified: true, Throttle: 0.5}, map[string]string{group: "1", high: "100663296"}},
		{"whole pages", pod(",8192/,20000"), Host{Unified: true, Throttle: 0.5}, map[string]string{group: "1", high: "12288"}},
		{"guaranteed", pod("1,1Gi/1,1Gi"), Host{Unified: true, Throttle: 0.9}, map[string]string{group: "1", high: "max"}},
		{"no limit", pod(",1Gi/"), Host{Unified: true, Throttle: 0.5, Allocatable: 3 << 30}, map[string]string{group: "1", high: "2147483648"}},
		{"nothing", pod("/"), Host{Unified: true, Throttle: 0.5, Allocatable: 3 << 30}, map[string]string{group: "1", high: "1610612736"}},
		{"the whole pod's limit", pod("whole ,1Gi/,2Gi", ",64Mi/"), Host{Unified: true, Throttle: 0.5, Allocatable: 3 << 30}, map[string]string{group: "1", high: "max"}},
		{"more than there is", pod(",4Gi/"), Host{Unified: true, Throttle: 0.5, Allocatable: 3 << 30}, map[string]string{group: "1", high: "max"}},
	} {
		got := Container(c.pod, &c.pod.Spec.Containers[0], c.host).Unified
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	// What a pod has as a whole slows its own group down.
	for _, c := range []struct {
		pod  *corev1.Pod
		host Host
		want int64
	}{
		{pod("whole ,1Gi/,2Gi", "/"), Host{Unified: true, Throttle: 0.5}, 3 << 29},
		{pod("whole ,1Gi/,1Gi", "/"), Host{Unified: true, Throttle: 0.5}, -1},
		{pod("whole ,1Gi/", "/"), Host{Unified: true, Throttle: 0.5}, -1},
		{pod("whole ,1Gi/,2Gi", "/"), Host{Unified: true}, -1},
		{pod("whole ,1Gi/,2Gi", "/"), Host{Throttle: 0.5}, 0},
		{pod(",1Gi/,2Gi"), Host{Unified: true, Throttle: 0.5}, 0},
	} {
		if got := PodLimits(c.pod, c.host).High; got != c.want {
			t.Errorf("the pod's group is slowed down at %d, want %d", got, c.want)
		}
	}
}

func TestConversions(t *testing.T) {
	for milli, want := range map[int64]int64{0: 2, 1: 2, 2: 2, 100: 102, 1000: 1024, 1 << 40: 262144} {
		if got := Shares(milli); got != want {
			t.Errorf("Shares(%d) = %d, want %d", milli, got, want)
		}
	}
	for shares, want := range map[int64]int64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 30: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
	for milli, want := range map[int64]int64{0: -1, -5: -1, 1: 1000, 10: 1000, 500: 50000, 2000: 200000} {
		if got := Quota(milli); got != want {
			t.Errorf("Quota(%d) = %d, want %d", milli, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	l := Limits{Shares: 1024, Quota: -1, Memory: 1 << 20, High: -1, Pids: 10}
	all := []string{"cpu", "memory", "pids"}
	for _, c := range []struct {
		name string
		v2   bool
		has  []string
		want []string
	}{
		{"v2", true, all, []string{"cpu.weight=39", "cpu.max=max 100000", "memory.max=1048576", "memory.high=max", "pids.max=10"}},
		{"v2 of a hybrid host", true, []string{"pids"}, []string{"pids.max=10"}},
		{"v1 cpu", false, []string{"cpu", "cpuacct"}, []string{"cpu.shares=1024", "cpu.cfs_quota_us=-1"}},
		{"v1 memory", false, []string{"memory"}, []string{"memory.limit_in_bytes=1048576"}},
		{"v1 freezer", false, []string{"freezer"}, nil},
	} {
		var got []string
		for _, v := range values(c.v2, c.has, l) {
			got = append(got, v.file+"="+v.text)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestGroups(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	root := "/yare-test-resources-" + filepath.Base(t.TempDir()) + strings.ReplaceAll(t.Name(), "/", "")
	g, err := NewGroups(root)
	if err != nil {
		t.Fatal(err)
	}
	// at is where a controller's group is, and whether that is v2.
	at := func(controller, path string) (string, bool) {
		for _, h := range g.hierarchies {
			if slices.Contains(controllers(h), controller) {
				return filepath.Join(h.Root, path), h.Unified()
			}
		}
		t.Fatalf("no hierarchy of %s here", controller)
		return "", false
	}
	path := root + "/kubepods/burstable/podu"
	t.Cleanup(func() {
		for _, h := range g.hierarchies {
			if err := removeTree(filepath.Join(h.Root, root)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		if err := g.Ensure(path, Limits{Shares: 512, Quota: 50000, Memory: 64 << 20, Pids: 100}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ controller, v1, v2 string }{
		{"cpu", "cpu.shares=512", "cpu.weight=20"}, {"memory", "memory.limit_in_bytes=67108864", "memory.max=67108864"}, {"pids", "pids.max=100", "pids.max=100"},
	} {
		dir, v2 := at(c.controller, path)
		file, want, _ := strings.Cut(c.v1, "=")
		if v2 {
			file, want, _ = strings.Cut(c.v2, "=")
		}
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %s %v, want %s", file, b, err, want)
		}
	}
	if got := g.Pods(); got["u"] != path || len(got) != 1 {
		t.Error(got)
	}
	dir, _ := at("pids", path)
	if err := os.Mkdir(filepath.Join(dir, "container"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{root, "/", "/other", root + "/../x", ""} {
		if err := g.Remove(bad); err == nil {
			t.Errorf("Remove(%q) did something", bad)
		}
	}
}
