// Package stats says what the node and its pods use: the summary API (stats/v1alpha1), the resource metrics and
// cAdvisor's. It replaces upstream's kubelet/server/stats and cAdvisor; pods' figures are the runtime's.
//
// Nothing is sampled in the background: each request reads, volumes at most once a minute, and rates (usageNanoCores) are the runtime's where it gives
// them, else the difference from the request before.
package stats

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/node"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Reader reads figures.
type Reader struct {
	CRI  *cri.Client
	Node string
	Root string // the kubelet's folder
	// CgroupRoot is above kubepods: "" or "/some/path".
	CgroupRoot string
	Pods       func() []*corev1.Pod
	// Volumes measures pods' volumes.
	Volumes *Volumes

	mu   sync.Mutex
	last cpuSample

	links links
}

type cpuSample struct {
	at   time.Time
	used uint64 // nanoseconds of all cpus
}

// Summary returns the node's, its pods' and their volumes' figures.
func (r *Reader) Summary(ctx context.Context) (*statsapi.Summary, error) {
	sum, err := r.running(ctx)
	if err != nil {
		return nil, err
	}
	volumes := r.Volumes.All(ctx)
	for i := range sum.Pods {
		sum.Pods[i].VolumeStats = summary(volumes[types.UID(sum.Pods[i].PodRef.UID)])
	}
	return sum, nil
}

// running returns the node's and its pods' figures, without their volumes.
func (r *Reader) running(ctx context.Context) (*statsapi.Summary, error) {
	n, err := r.node()
	if err != nil {
		return nil, err
	}
	sum := &statsapi.Summary{Node: *n}
	got, err := r.CRI.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("read pods' figures: %w", err)
	}
	known := map[string]*corev1.Pod{}
	for _, p := range r.Pods() {
		known[string(p.UID)] = p
	}
	for _, s := range got.Stats {
		if p := known[s.GetAttributes().GetLabels()[spec.PodUIDLabel]]; p != nil {
			sum.Pods = append(sum.Pods, podStats(p, s))
		}
	}
	return sum, nil
}

func podStats(p *corev1.Pod, s *runtimeapi.PodSandboxStats) statsapi.PodStats {
	out := statsapi.PodStats{PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}}
	if p.Status.StartTime != nil {
		out.StartTime = *p.Status.StartTime
	}
	l := s.GetLinux()
	out.CPU, out.Memory = cpu(l.GetCpu()), memory(l.GetMemory())
	if n := l.GetNetwork(); n != nil && n.DefaultInterface != nil {
		out.Network = &statsapi.NetworkStats{Time: stamp(n.Timestamp), InterfaceStats: iface(n.DefaultInterface)}
		for _, i := range n.Interfaces {
			out.Network.Interfaces = append(out.Network.Interfaces, iface(i))
		}
	}
	if n := l.GetProcess().GetProcessCount(); n != nil {
		out.ProcessStats = &statsapi.ProcessStats{ProcessCount: &n.Value}
	}
	for _, c := range l.GetContainers() {
		cs := statsapi.ContainerStats{Name: c.GetAttributes().GetMetadata().GetName(), CPU: cpu(c.GetCpu()), Memory: memory(c.GetMemory()), StartTime: started(p, c)}
		if fs := c.GetWritableLayer(); fs != nil {
			cs.Rootfs = &statsapi.FsStats{Time: stamp(fs.Timestamp), UsedBytes: value(fs.UsedBytes), InodesUsed: value(fs.InodesUsed)}
		}
		out.Containers = append(out.Containers, cs)
	}
	return out
}

func started(p *corev1.Pod, c *runtimeapi.ContainerStats) metav1.Time {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, s := range list {
			if s.Name == c.GetAttributes().GetMetadata().GetName() && s.State.Running != nil {
				return s.State.Running.StartedAt
			}
		}
	}
	return metav1.Time{}
}

func stamp(ns int64) metav1.Time { return metav1.NewTime(time.Unix(0, ns)) }

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func cpu(c *runtimeapi.CpuUsage) *statsapi.CPUStats {
	if c == nil {
		return nil
	}
	return &statsapi.CPUStats{Time: stamp(c.Timestamp), UsageNanoCores: value(c.UsageNanoCores), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds)}
}

func memory(m *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if m == nil {
		return nil
	}
	return &statsapi.MemoryStats{Time: stamp(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults)}
}

func iface(i *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
	return statsapi.InterfaceStats{Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors), TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors)}
}

// node reads the machine's figures.
func (r *Reader) node() (*statsapi.NodeStats, error) {
	f, err := node.Read(r.Root)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	at := metav1.NewTime(now)
	used, boot := cpuTime()
	workingSet, usage, available := uint64(f.WorkingSet), uint64(f.MemoryUsage), uint64(max(0, f.Memory-f.WorkingSet))
	out := &statsapi.NodeStats{
		NodeName: r.Node, StartTime: metav1.NewTime(boot),
		CPU:    &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &used, UsageNanoCores: r.rate(now, used)},
		Memory: &statsapi.MemoryStats{Time: at, AvailableBytes: &available, UsageBytes: &usage, WorkingSetBytes: &workingSet},
	}
	capacity, free, inodes, inodesFree := uint64(f.Storage), uint64(f.StorageFree), uint64(f.Inodes), uint64(f.InodesFree)
	usedBytes, usedInodes := capacity-free, inodes-inodesFree
	out.Fs = &statsapi.FsStats{Time: at, AvailableBytes: &free, CapacityBytes: &capacity, UsedBytes: &usedBytes, InodesFree: &inodesFree, Inodes: &inodes, InodesUsed: &usedInodes}
	out.Rlimit = &statsapi.RlimitStats{Time: at, MaxPID: &f.PIDsMax, NumOfRunningProcesses: &f.PIDs}
	return out, nil
}

// rate returns the use since the request before, in billionths of a CPU.
func (r *Reader) rate(now time.Time, used uint64) *uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.last
	r.last = cpuSample{now, used}
	took := now.Sub(before.at)
	if before.at.IsZero() || took <= 0 || used < before.used {
		return nil
	}
	n := uint64(float64(used-before.used) / took.Seconds())
	return &n
}

// cpuTime returns the time that all CPUs have worked, in nanoseconds, and when the machine was started.
func cpuTime() (used uint64, boot time.Time) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, time.Time{}
	}
	const tick = uint64(time.Second / 100) // USER_HZ is 100 on every architecture that we know
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) > 5 && f[0] == "cpu":
			for i, text := range f[1:] {
				n, err := strconv.ParseUint(text, 10, 64)
				if err == nil && i != 3 && i != 4 && i < 8 { // idle and iowait are not work, guest is counted in user
					used += n * tick
				}
			}
		case len(f) == 2 && f[0] == "btime":
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				boot = time.Unix(n, 0)
			}
		}
	}
	return used, boot
}
