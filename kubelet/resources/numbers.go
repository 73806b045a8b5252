package resources

import (
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
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

// Container returns the CRI resources of one container of the pod. A limit that it has none of is that of the whole pod, so that programs
// which look at their own group find it.
func Container(pod *corev1.Pod, c *corev1.Container, h Host) *runtimeapi.LinuxContainerResources {
	limits := limitsOf(pod, c)
	request, limit := c.Resources.Requests.Cpu().MilliValue(), limits.Cpu().MilliValue()
	if _, ok := c.Resources.Requests[corev1.ResourceCPU]; !ok {
		request = limit
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          Shares(request),
		MemoryLimitInBytes: limits.Memory().Value(),
		OomScoreAdj:        OOMScore(pod, c, h.Memory),
		HugepageLimits:     hugepages(limits),
	}
	if !h.NoQuota {
		r.CpuPeriod, r.CpuQuota = period, Quota(limit)
	}
	if h.Unified {
		r.Unified = unified(pod, c, h)
	}
	return r
}

// limitsOf returns the container's limits, and the whole pod's of what it has none of.
func limitsOf(pod *corev1.Pod, c *corev1.Container) corev1.ResourceList {
	if pod.Spec.Resources == nil || len(pod.Spec.Resources.Limits) == 0 {
		return c.Resources.Limits
	}
	limits := corev1.ResourceList{}
	maps.Copy(limits, pod.Spec.Resources.Limits)
	for name, q := range c.Resources.Limits {
		if !q.IsZero() || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) { // of which none is a limit
			limits[name] = q
		}
	}
	return limits
}

// unified returns what CRI has no fields for: files of the container's v2 group.
func unified(pod *corev1.Pod, c *corev1.Container, h Host) map[string]string {
	// What an update does not name stays, so the throttle is also taken away.
	files := map[string]string{"memory.oom.group": "1", "memory.high": "max"}
	if h.SingleKill {
		files["memory.oom.group"] = "0"
	}
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	if limit == 0 {
		if limits := limitsOf(pod, c); !limits.Memory().IsZero() {
			return files // the pod's own group is slowed down
		}
		limit = h.Allocatable
	}
	if high := h.high(request, limit); high > 0 {
		files["memory.high"] = strconv.FormatInt(high, 10)
	}
	return files
}

// high returns where between a memory request and a limit a group is slowed down, -1 for nowhere.
func (h Host) high(request, limit int64) int64 {
	if h.Throttle == 0 || request == limit && request != 0 {
		return -1
	}
	page := int64(os.Getpagesize())
	if high := int64(float64(request)+float64(limit-request)*h.Throttle) / page * page; high > request {
		return high
	}
	return -1
}

// OOMScore returns the container's oom_score_adj: the more of its memory request a Burstable container has, the later
// it is killed. What the pod requests as a whole beyond its containers is theirs in equal parts, and a sidecar is not killed before
// all of the containers that it serves.
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
	asked := c.Resources.Requests.Memory().Value()
	if slices.ContainsFunc(pod.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.Name && api.Sidecar(&i) }) {
		least := int64(math.MaxInt64)
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		asked = max(asked, least)
	}
	score := 1000 - 1000*(asked+spare(pod))/memory
	// Above every Guaranteed container, below every BestEffort one.
	return min(max(score, 1000+guaranteedOOM), bestEffortOOM-1)
}

// spare is a container's part of the memory that the pod requests as a whole and not for one container.
func spare(pod *corev1.Pod) int64 {
	if pod.Spec.Resources == nil {
		return 0
	}
	containers := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	left := pod.Spec.Resources.Requests.Memory().Value() - containers.Memory().Value()
	return max(left, 0) / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
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
	High      int64 // bytes from which on v2 slows it down; -1: none
	Pids      int64
	Hugepages []*runtimeapi.HugepageLimit
}

// PodLimits returns the numbers of the pod's own group: what it requests, as a whole or its containers added up, and limits where it
// or every container has one.
func PodLimits(pod *corev1.Pod, h Host) Limits {
	requests := Requests(pod)
	l := Limits{Shares: Shares(requests.Cpu().MilliValue()), Pids: h.PidLimit}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if limited(pod, corev1.ResourceCPU) {
		if milli := limits.Cpu().MilliValue(); milli > 0 && !h.NoQuota {
			l.Quota = Quota(milli)
		}
	}
	if limited(pod, corev1.ResourceMemory) {
		l.Memory = limits.Memory().Value()
	}
	if h.Unified && resourcehelper.IsPodLevelResourcesSet(pod) {
		if l.High = -1; l.Memory > 0 {
			l.High = h.high(requests.Memory().Value(), l.Memory)
		}
	}
	l.Hugepages = hugepages(limits)
	return l
}

// Equal reports whether the limits are the same.
func (l Limits) Equal(o Limits) bool {
	same := slices.EqualFunc(l.Hugepages, o.Hugepages, func(a, b *runtimeapi.HugepageLimit) bool {
		return a.PageSize == b.PageSize && a.Limit == b.Limit
	})
	return same && l.Shares == o.Shares && l.Quota == o.Quota && l.Memory == o.Memory && l.High == o.High && l.Pids == o.Pids
}

// Widest returns limits under which whatever fits into either of two does. One of the two is l, for what cannot be compared.
func (l Limits) Widest(o Limits) Limits {
	l.Shares, l.Pids = max(l.Shares, o.Shares), max(l.Pids, o.Pids)
	wider := func(a, b int64) int64 { // of numbers of which -1 is none
		if a > 0 && b > 0 {
			return max(a, b)
		}
		return min(a, b, 0)
	}
	l.Quota, l.High = wider(l.Quota, o.Quota), wider(l.High, o.High)
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

// limited reports whether the pod has a limit as a whole, or every container of it has one.
func limited(pod *corev1.Pod, name corev1.ResourceName) bool {
	if r := pod.Spec.Resources; r != nil {
		if limit := r.Limits[name]; limit.Sign() > 0 {
			return true
		}
	}
	for _, cs := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range cs {
			if limit := cs[i].Resources.Limits[name]; limit.Sign() <= 0 {
				return false
			}
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
