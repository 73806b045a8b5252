package critest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux"
)

func resourceCases() []Case {
	return []Case{
		{"a memory limit", 0, limitMemory},
		{"no limit is no limit", 0, limitNone},
		{"processor shares", 0, limitShares},
		{"a processor quota", 0, limitQuota},
		{"a set of processors", 0, limitCpuset},
		{"who is killed first for memory", 0, limitOOMScore},
		{"the memory limit changes while it runs", 0, updateMemory},
		{"the quota changes while it runs", 0, updateQuota},
		{"shares change while it runs", 0, updateShares},
		{"what is not named stays as it is", 0, updateOthers},
		{"a created container changes too", 0, updateCreated},
		{"a container that is not there is not found", 0, updateUnknown},
		{"a change of nothing is taken", 0, updateNothing},
		{"the status says what holds after a change", 25, updateStatus},
		{"the sum of a pod's resources is taken", 33, updatePod},
		{"the sum of no pod is not found", 33, updatePodUnknown},
		{"huge pages that are forbidden are taken", 0, limitHugepages},
	}
}

// cgroup is the folder of a container's cgroup in the hierarchy of a controller.
func (t *T) cgroup(pod pods, id, controller string) string {
	t.Helper()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies {
		if !h.Unified() && !slices.Contains(h.Controllers, controller) {
			continue
		}
		found := ""
		_ = filepath.WalkDir(filepath.Join(h.Root, pod.config.Linux.CgroupParent), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(d.Name(), id) {
				found = p
			}
			return nil // others come and go
		})
		if found != "" {
			return found
		}
	}
	t.Fatalf("container %s has no cgroup below %s with %s", id, pod.config.Linux.CgroupParent, controller)
	return ""
}

// limit reads what a container may have, by the names of cgroup v1 or v2.
func (t *T) limit(pod pods, id, controller, v1, v2 string) string {
	t.Helper()
	dir := t.cgroup(pod, id, controller)
	text, err := os.ReadFile(filepath.Join(dir, v1))
	if os.IsNotExist(err) {
		text, err = os.ReadFile(filepath.Join(dir, v2))
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (t *T) memory(pod pods, id string) string {
	t.Helper()
	return t.limit(pod, id, "memory", "memory.limit_in_bytes", "memory.max")
}

// quota is in microseconds for each period, -1 for none.
func (t *T) quota(pod pods, id string) string {
	t.Helper()
	q, _, _ := strings.Cut(t.limit(pod, id, "cpu", "cpu.cfs_quota_us", "cpu.max"), " ")
	return strings.Replace(q, "max", "-1", 1)
}

// shares are v1's; v2's weight is a function of them.
func (t *T) shares(pod pods, id string, want uint64) {
	t.Helper()
	got := t.limit(pod, id, "cpu", "cpu.shares", "cpu.weight")
	if _, err := os.Stat(filepath.Join(t.cgroup(pod, id, "cpu"), "cpu.weight")); err == nil {
		if weight, err := strconv.ParseUint(got, 10, 64); err != nil || weight < 2 || weight >= 10000 {
			t.Errorf("weight %q", got)
		}
		return
	}
	if got != strconv.FormatUint(want, 10) {
		t.Errorf("shares %s, want %d", got, want)
	}
}

type limits = runtimeapi.LinuxContainerResources

// limited is a sleeper in a pod of its own.
func (t *T) limited(r *limits) (pods, string) {
	t.Helper()
	pod := t.own()
	return pod, t.sleeper(pod, func(c *containerConfig) { c.Linux.Resources = r })
}

func (t *T) update(id string, r *limits) {
	t.Helper()
	if _, err := t.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r}); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func (t *T) same(what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s %q, want %q", what, got, want)
	}
}

func limitMemory(t *T) {
	pod, id := t.limited(&limits{MemoryLimitInBytes: 64 << 20})
	t.same("memory", t.memory(pod, id), "67108864")
}

func limitNone(t *T) {
	pod, id := t.limited(nil)
	if got := t.memory(pod, id); got != "max" && len(got) < 18 {
		t.Errorf("memory %s", got)
	}
	t.same("quota", t.quota(pod, id), "-1")
}

func limitShares(t *T) {
	pod, id := t.limited(&limits{CpuShares: 512})
	t.shares(pod, id, 512)
}

func limitQuota(t *T) {
	pod, id := t.limited(&limits{CpuPeriod: 100_000, CpuQuota: 50_000})
	t.same("quota", t.quota(pod, id), "50000")
}

func limitCpuset(t *T) {
	pod, id := t.limited(&limits{CpusetCpus: "0"})
	t.same("processors", t.limit(pod, id, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
	t.wantExec(id, "Cpus_allowed_list:\t0\n", "grep", "Cpus_allowed_list", "/proc/self/status")
}

func limitOOMScore(t *T) {
	_, id := t.limited(&limits{OomScoreAdj: 777})
	t.wantExec(id, "777\n", "cat", "/proc/1/oom_score_adj")
}

func updateMemory(t *T) {
	pod, id := t.limited(&limits{MemoryLimitInBytes: 64 << 20})
	t.update(id, &limits{MemoryLimitInBytes: 128 << 20})
	t.same("memory", t.memory(pod, id), "134217728")
	t.update(id, &limits{MemoryLimitInBytes: 32 << 20})
	t.same("memory", t.memory(pod, id), "33554432")
}

func updateQuota(t *T) {
	pod, id := t.limited(&limits{CpuPeriod: 100_000, CpuQuota: 50_000})
	t.update(id, &limits{CpuPeriod: 100_000, CpuQuota: 20_000})
	t.same("quota", t.quota(pod, id), "20000")
}

func updateShares(t *T) {
	pod, id := t.limited(&limits{CpuShares: 512})
	t.update(id, &limits{CpuShares: 256})
	t.shares(pod, id, 256)
}

func updateOthers(t *T) {
	pod, id := t.limited(&limits{CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 << 20})
	t.update(id, &limits{MemoryLimitInBytes: 128 << 20})
	t.same("quota", t.quota(pod, id), "50000")
	t.shares(pod, id, 512)
	t.same("memory", t.memory(pod, id), "134217728")
}

func updateCreated(t *T) {
	pod, c := t.own(), t.config(forever()...)
	c.Linux.Resources = &limits{MemoryLimitInBytes: 64 << 20}
	id := t.create(pod, c)
	t.update(id, &limits{MemoryLimitInBytes: 128 << 20})
	t.start(id)
	t.same("memory", t.memory(pod, id), "134217728")
}

func updateUnknown(t *T) {
	_, err := t.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "0123456789abcdef", Linux: &limits{CpuShares: 256}})
	t.refused("the update of nothing", err, codes.NotFound)
}

func updateNothing(t *T) {
	id := t.sleeper(t.any())
	if _, err := t.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &limits{}}); err != nil {
		t.Errorf("an update without limits: %v", err)
	}
}

func updateStatus(t *T) {
	_, id := t.limited(&limits{CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 << 20})
	t.update(id, &limits{MemoryLimitInBytes: 128 << 20, CpuShares: 256})
	r := t.status(id).Resources.GetLinux()
	if r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpuShares() != 256 || r.GetCpuQuota() != 50_000 || r.GetCpuPeriod() != 100_000 {
		t.Errorf("%v", r)
	}
}

func updatePod(t *T) {
	pod, _ := t.limited(&limits{MemoryLimitInBytes: 64 << 20})
	_, err := t.Runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod.id, Resources: &limits{MemoryLimitInBytes: 128 << 20, CpuShares: 256}, Overhead: &limits{},
	})
	if err != nil {
		t.Error(err)
	}
}

func updatePodUnknown(t *T) {
	_, err := t.Runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "0123456789abcdef", Resources: &limits{CpuShares: 256}})
	t.refused("the update of no pod", err, codes.NotFound)
}

// The kubelet forbids every size that a container did not ask for, whatever the host can limit.
func limitHugepages(t *T) {
	t.limited(&limits{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}})
}
