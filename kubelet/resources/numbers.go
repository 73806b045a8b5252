package resources

import (
	"os"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	minShares = 2
	maxShares = 262144
	period    = 100000 // microseconds of a CPU quota's period
	minQuota  = 1000   // microseconds; the kernel refuses less

	guaranteedOOM = -997
	bestEffortOOM = 1000
	criticalOOM   = -997
)

// Shares converts a request in thousandths of a CPU to cgroup v1's cpu.shares.
func Shares(milli int64) int64 {
	return min(max(milli*1024/1000, minShares), maxShares)
}

// Weight converts v1 shares to cgroup v2's cpu.weight, for pods in proportion, as upstream's kubelet does. (OCI runtimes have
// another formula for the containers, which are weighed against each other only.)
func Weight(shares int64) int64 {
	return 1 + ((min(max(shares, minShares), maxShares)-minShares)*9999)/(maxShares-minShares)
}

// Quota converts a limit in thousandths of a CPU to microseconds of each period; no limit is -1.
func Quota(milli int64) int64 {
	if milli <= 0 {
		return -1
	}
	return max(milli*period/1000, minQuota)
}

// Host says what the numbers are relative to.
type Host struct {
	Memory   int64 // bytes
	PidLimit int64 // processes a pod may have; zero or less: no limit
	NoQuota  bool  // CPU limits are not enforced (cpuCFSQuota: false)

	// Unified says that the host has cgroup v2 alone, for which the rest is.
	Unified bool
	// SingleKill lets a container live on when the kernel kills one of its processes for want of memory.
	SingleKill bool
	// Throttle is where between its memory request and its limit a container is slowed down: 0 to 1; 0: nowhere.
	Throttle float64
	// Allocatable is the memory of all pods together, in bytes: the limit of what has none.
	Allocatable int64
}

// Container returns the CRI resources of one container of the pod.
func Container(pod *corev1.Pod, c *corev1.Container, h Host) *runtimeapi.LinuxContainerResources {
	request, limit := c.Resources.Requests.Cpu().MilliValue(), c.Resources.Limits.Cpu().MilliValue()
	if _, ok := c.Resources.Requests[corev1.ResourceCPU]; !ok {
		request = limit
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          Shares(request),
		MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
		OomScoreAdj:        OOMScore(pod, c, h.Memory),
		HugepageLimits:     hugepages(c.Resources.Limits),
	}
	if !h.NoQuota {
		r.CpuPeriod, r.CpuQuota = period, Quota(limit)
	}
	if h.Unified {
		r.Unified = unified(c, h)
	}
	return r
}

// unified returns what CRI has no fields for: files of the container's v2 group.
func unified(c *corev1.Container, h Host) map[string]string {
	// What an update does not name stays, so the throttle is also taken away.
	files := map[string]string{"memory.oom.group": "1", "memory.high": "max"}
	if h.SingleKill {
		files["memory.oom.group"] = "0"
	}
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	if h.Throttle == 0 || request == limit && request != 0 {
		return files
	}
	if limit == 0 {
		limit = h.Allocatable
	}
	page := int64(os.Getpagesize())
	if high := int64(float64(request)+float64(limit-request)*h.Throttle) / page * page; high > request {
		files["memory.high"] = strconv.FormatInt(high, 10)
	}
	return files
}

// OOMScore returns the container's oom_score_adj: the more of its memory request a Burstable container has, the later
// it is killed.
func OOMScore(pod *corev1.Pod, c *corev1.Container, memory int64) int64 {
	if p := pod.Spec.Priority; p != nil && *p >= 2000000000 { // system-node-critical and above
		return criticalOOM
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return guaranteedOOM
	case corev1.PodQOSBestEffort:
		return bestEffortOOM
	}
	if memory <= 0 {
		return bestEffortOOM - 1
	}
	score := 1000 - 1000*c.Resources.Requests.Memory().Value()/memory
	// Above every Guaranteed container, below every BestEffort one.
	return min(max(score, 1000+guaranteedOOM), bestEffortOOM-1)
}

func hugepages(limits corev1.ResourceList) []*runtimeapi.HugepageLimit {
	var out []*runtimeapi.HugepageLimit
	for name, q := range limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			out = append(out, &runtimeapi.HugepageLimit{PageSize: strings.TrimSuffix(size, "i") + "B", Limit: uint64(q.Value())})
		}
	}
	slices.SortFunc(out, func(a, b *runtimeapi.HugepageLimit) int { return strings.Compare(a.PageSize, b.PageSize) })
	return out
}

// Limits are the numbers of one group. Zero means: leave as it is.
type Limits struct {
	Shares    int64 // v1 units
	Quota     int64 // microseconds of each period of 100 ms; -1: none
	Memory    int64 // bytes
	Pids      int64
	Hugepages []*runtimeapi.HugepageLimit
}

// PodLimits returns the numbers of the pod's own group: requests added up, and limits where every container has one.
func PodLimits(pod *corev1.Pod, h Host) Limits {
	requests := Requests(pod)
	l := Limits{Shares: Shares(requests.Cpu().MilliValue()), Pids: h.PidLimit}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	podLevel := pod.Spec.Resources != nil
	if podLevel || everyContainer(pod, corev1.ResourceCPU) {
		if milli := limits.Cpu().MilliValue(); milli > 0 && !h.NoQuota {
			l.Quota = Quota(milli)
		}
	}
	if podLevel || everyContainer(pod, corev1.ResourceMemory) {
		l.Memory = limits.Memory().Value()
	}
	l.Hugepages = hugepages(limits)
	return l
}

// Equal reports whether the limits are the same.
func (l Limits) Equal(o Limits) bool {
	same := slices.EqualFunc(l.Hugepages, o.Hugepages, func(a, b *runtimeapi.HugepageLimit) bool {
		return a.PageSize == b.PageSize && a.Limit == b.Limit
	})
	return same && l.Shares == o.Shares && l.Quota == o.Quota && l.Memory == o.Memory && l.Pids == o.Pids
}

// Widest returns limits under which whatever fits into either of two does. One of the two is l, for what cannot be compared.
func (l Limits) Widest(o Limits) Limits {
	l.Shares, l.Pids = max(l.Shares, o.Shares), max(l.Pids, o.Pids)
	if l.Quota > 0 && o.Quota > 0 {
		l.Quota = max(l.Quota, o.Quota)
	} else {
		l.Quota = min(l.Quota, o.Quota, 0)
	}
	if l.Memory > 0 && o.Memory > 0 {
		l.Memory = max(l.Memory, o.Memory)
	} else {
		l.Memory = 0
	}
	return l
}

// Differ reports whether the CPU or memory numbers of a running container are not those wanted. What a runtime does not report,
// and what cannot be changed while it runs, does not differ.
func Differ(is, want *runtimeapi.LinuxContainerResources) (cpu, memory bool) {
	if is == nil {
		return false, false
	}
	cpu = is.CpuShares != want.CpuShares || max(is.CpuQuota, 0) != max(want.CpuQuota, 0)
	return cpu, is.MemoryLimitInBytes != want.MemoryLimitInBytes
}

func everyContainer(pod *corev1.Pod, name corev1.ResourceName) bool {
	limited := func(c corev1.Container) bool {
		limit := c.Resources.Limits[name]
		return limit.Sign() > 0
	}
	for _, c := range pod.Spec.InitContainers {
		if !limited(c) {
			return false
		}
	}
	for _, c := range pod.Spec.Containers {
		if !limited(c) {
			return false
		}
	}
	return true
}

// Parent returns the cgroup path of a pod below root, which is "" for /kubepods at the top of the hierarchies.
func Parent(root string, pod *corev1.Pod) string {
	dir := root + "/kubepods"
	switch QOS(pod) {
	case corev1.PodQOSBurstable:
		dir += "/burstable"
	case corev1.PodQOSBestEffort:
		dir += "/besteffort"
	}
	return dir + "/pod" + string(pod.UID)
}
