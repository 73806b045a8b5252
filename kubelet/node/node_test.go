package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux"
)

func ready(network bool) *runtimeapi.StatusResponse {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: network, Reason: "NetworkPluginNotReady", Message: "no range"}}}}
}

func facts() Facts {
	return Facts{CPUs: 4, Memory: 8 << 30, WorkingSet: 4 << 30, Hugepages: map[string]int64{"2Mi": 1 << 30}, Storage: 100 << 30, StorageFree: 50 << 30,
		Inodes: 1000, InodesFree: 900, PIDs: 100, PIDsMax: 32768, Kernel: "6.1", OSImage: "Test", Architecture: "amd64"}
}

func conditions(st corev1.NodeStatus) string {
	var out []string
	for _, c := range st.Conditions {
		out = append(out, string(c.Type)+"="+string(c.Status)+" "+c.Reason)
	}
	return strings.Join(out, ", ")
}

func TestStatus(t *testing.T) {
	c := Config{Name: "n1", Addresses: []string{"10.0.0.1", "fd00::1"}, Port: 10250, MaxPods: 110,
		Reserved: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("1Gi")}}
	now := time.Unix(1000, 0)
	st := Status(c, facts(), Runtime{Status: ready(true), Version: "r://1"}, &corev1.NodeStatus{Capacity: corev1.ResourceList{"example.com/gpu": resource.MustParse("2")}}, now)
	for name, want := range map[corev1.ResourceName]string{corev1.ResourceCPU: "3500m", corev1.ResourceMemory: "6Gi", corev1.ResourcePods: "110",
		"hugepages-2Mi": "1Gi", "example.com/gpu": "2", corev1.ResourceEphemeralStorage: "100Gi"} {
		if q := st.Allocatable[name]; q.Cmp(resource.MustParse(want)) != 0 {
			t.Errorf("allocatable %s is %s, want %s", name, q.String(), want)
		}
	}
	kept := c
	kept.Kept = func(capacity corev1.ResourceList) corev1.ResourceList {
		if capacity.Memory().Value() != 8<<30 {
			t.Error("not the capacity:", capacity)
		}
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
	}
	if l := Status(kept, facts(), Runtime{Status: ready(true)}, &corev1.NodeStatus{}, now).Allocatable; l.Memory().String() != "5Gi" || l.StorageEphemeral().String() != "100Gi" {
		t.Error("what is kept free is given away:", l)
	}
	if len(st.Addresses) != 3 || st.Addresses[2].Type != corev1.NodeHostName || st.DaemonEndpoints.KubeletEndpoint.Port != 10250 {
		t.Error(st.Addresses, st.DaemonEndpoints)
	}
	if st.NodeInfo.Swap != nil {
		t.Error("no swap is told, which upstream's API server refuses")
	}
	want := "MemoryPressure=False KubeletHasSufficientMemory, DiskPressure=False KubeletHasNoDiskPressure, PIDPressure=False KubeletHasSufficientPID, Ready=True KubeletReady"
	if got := conditions(st); got != want {
		t.Error(got)
	}
	// Heartbeats alone are no difference; a condition is, and keeps the others' transition times.
	later := Status(c, facts(), Runtime{Status: ready(true), Version: "r://1"}, &st, now.Add(time.Minute))
	if differs(&later, &st) {
		t.Error("a heartbeat is written")
	}
	c.Under = func(corev1.NodeConditionType) bool { return true }
	bad := Status(c, facts(), Runtime{Err: errors.New("refused")}, &st, now.Add(time.Minute))
	want = "MemoryPressure=True KubeletHasInsufficientMemory, DiskPressure=True KubeletHasDiskPressure, PIDPressure=True KubeletHasInsufficientPID, Ready=False KubeletNotReady"
	if got := conditions(bad); got != want || !differs(&bad, &st) {
		t.Error(got)
	}
	if at := bad.Conditions[3].LastTransitionTime; !at.Equal(&metav1.Time{Time: now.Add(time.Minute)}) {
		t.Error("transition at", at)
	}
	if at := later.Conditions[3].LastTransitionTime; !at.Equal(&metav1.Time{Time: now}) {
		t.Error("transition moved to", at)
	}
}

func TestNotReady(t *testing.T) {
	for want, rt := range map[string]Runtime{
		"":                                    {Status: ready(true)},
		"container runtime is down: x":        {Err: errors.New("x")},
		"may not have completed yet":          {Status: &runtimeapi.StatusResponse{}},
		"NetworkReady=false reason:NetworkPl": {Status: ready(false)},
	} {
		if got := NotReady(rt); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestImages(t *testing.T) {
	var all []*runtimeapi.Image
	for i := range 60 {
		all = append(all, &runtimeapi.Image{Size: uint64(i), RepoTags: []string{"t"}})
	}
	all = append(all, &runtimeapi.Image{Size: 1 << 40})
	if got := images(all); len(got) != 50 || got[0].SizeBytes != 59 {
		t.Error(len(got), got[0])
	}
}

func TestRead(t *testing.T) {
	f, err := Read(filepath.Join(t.TempDir(), "not", "there", "yet"))
	if err != nil || f.CPUs < 1 || f.Memory == 0 || f.WorkingSet <= 0 || f.WorkingSet >= f.Memory || f.MemoryUsage < f.WorkingSet || f.Storage == 0 || f.PIDsMax == 0 || f.Kernel == "" || f.BootID == "" {
		t.Errorf("%+v %v", f, err)
	}
	dir := t.TempDir()
	for size, n := range map[string]string{"2048": "3", "1048576": "1", "64": "2"} {
		if err := os.MkdirAll(filepath.Join(dir, "hugepages-"+size+"kB"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hugepages-"+size+"kB", "nr_hugepages"), []byte(n+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if h := hugepages(dir); h["2Mi"] != 6<<20 || h["1Gi"] != 1<<30 || h["64Ki"] != 128<<10 {
		t.Error(h)
	}
}

// The use of memory is that of the hierarchy that counts it, in the words of either version.
func TestCgroupMemory(t *testing.T) {
	for name, c := range map[string]struct {
		controllers    []string
		files          map[string]string
		usage, working int64
	}{
		"v1":              {[]string{"memory"}, map[string]string{"memory.stat": "inactive_file 1\ntotal_inactive_file 300\n", "memory.usage_in_bytes": "1000\n"}, 1000, 700},
		"v2 root":         {nil, map[string]string{"memory.stat": "anon 600\nfile 400\nkernel 50\ninactive_file 300\n"}, 1000, 700},
		"v2 below a root": {nil, map[string]string{"memory.stat": "anon 600\nfile 400\ninactive_file 300\n", "memory.current": "1100\n"}, 1100, 800},
		"all inactive":    {nil, map[string]string{"memory.stat": "inactive_file 300\n", "memory.current": "100\n"}, 100, 0},
		"not counted":     {nil, nil, 0, 0},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if usage, working := cgroupMemory(linux.Hierarchy{Root: dir, Controllers: c.controllers}); usage != c.usage || working != c.working {
			t.Errorf("%s: %d %d, want %d %d", name, usage, working, c.usage, c.working)
		}
	}
}
