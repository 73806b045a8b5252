package resources

import (
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

// pod makes a pod whose containers have "requests/limits", each "cpu,memory" or empty.
func pod(containers ...string) *corev1.Pod {
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
		requests, limits, _ := strings.Cut(c, "/")
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}})
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
		{"more than there is", pod(",4Gi/"), Host{Unified: true, Throttle: 0.5, Allocatable: 3 << 30}, map[string]string{group: "1", high: "max"}},
	} {
		got := Container(c.pod, &c.pod.Spec.Containers[0], c.host).Unified
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
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
	l := Limits{Shares: 1024, Quota: -1, Memory: 1 << 20, Pids: 10}
	all := []string{"cpu", "memory", "pids"}
	for _, c := range []struct {
		name string
		v2   bool
		has  []string
		want []string
	}{
		{"v2", true, all, []string{"cpu.weight=39", "cpu.max=max 100000", "memory.max=1048576", "pids.max=10"}},
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
