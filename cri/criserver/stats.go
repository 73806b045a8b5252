package criserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/cgroup"
)

// cpuSample is the last reading of a counter, from which a rate follows.
type cpuSample struct {
	at   time.Time
	used time.Duration
	rate *runtimeapi.UInt64Value // nanocores; nil until there are two readings
}

// minInterval is the least time between two readings that make a rate.
const minInterval = time.Second

// next takes a reading. Readings close to the last one repeat its rate.
func (s *cpuSample) next(at time.Time, used time.Duration) *runtimeapi.UInt64Value {
	elapsed := at.Sub(s.at)
	switch {
	case s.at.IsZero() || used < s.used:
		s.at, s.used, s.rate = at, used, nil
	case elapsed >= minInterval:
		s.rate = value(uint64(float64(used-s.used) / elapsed.Seconds()))
		s.at, s.used = at, used
	}
	return s.rate
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// ContainerStats measures one container.
func (s *Server) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.measure(c, s.measureLayer)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats measures the running containers among those asked for.
func (s *Server) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	all, err := s.measureContainers(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: all}, nil
}

// StreamContainerStats is ListContainerStats in pieces.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	all, err := s.measureContainers(r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(all, func(p []*runtimeapi.ContainerStats) error {
		return out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: p})
	})
}

func (s *Server) measureContainers(f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	s.walkLayers(nil)
	var all []*runtimeapi.ContainerStats
	for _, c := range s.matchingContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		if r := c.record(); r.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		st, err := s.measure(c, s.knownLayer)
		if vanished(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

// measure reads a container's counters, and asks for its layer; one that has ended has only that.
func (s *Server) measure(c *container, layer func(*container) (*runtimeapi.FilesystemUsage, error)) (*runtimeapi.ContainerStats, error) {
	r := c.record()
	out := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: r.ID, Metadata: r.Metadata, Labels: r.Labels, Annotations: r.Annotations,
	}}
	var err error
	if out.WritableLayer, err = layer(c); err != nil {
		return nil, err
	}
	if r.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return out, nil
	}
	g, err := c.cgroup()
	if err != nil {
		return nil, err
	}
	st, err := g.Stats()
	if err != nil {
		if now := c.record(); now.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return out, nil // it ended between the two
		}
		return nil, err
	}
	at := st.At.UnixNano()
	out.Cpu, out.Memory = cpuUsage(st), memoryUsage(st)
	c.mu.Lock()
	out.Cpu.UsageNanoCores = c.usage.next(st.At, st.CPU.Usage)
	c.mu.Unlock()
	out.Swap = &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: value(st.Memory.Swap)}
	out.Io = &runtimeapi.IoUsage{Timestamp: at, Psi: pressure(st.IOPSI)}
	return out, nil
}

func cpuUsage(st *cgroup.Stats) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp: st.At.UnixNano(), UsageCoreNanoSeconds: value(uint64(st.CPU.Usage)), Psi: pressure(st.CPU.PSI),
	}
}

func memoryUsage(st *cgroup.Stats) *runtimeapi.MemoryUsage {
	m := &runtimeapi.MemoryUsage{
		Timestamp: st.At.UnixNano(), WorkingSetBytes: value(st.Memory.WorkingSet), UsageBytes: value(st.Memory.Usage),
		RssBytes: value(st.Memory.Anon), PageFaults: value(st.Memory.Faults), MajorPageFaults: value(st.Memory.MajorFaults),
		Psi: pressure(st.Memory.PSI),
	}
	if st.Memory.Limit > st.Memory.WorkingSet {
		m.AvailableBytes = value(st.Memory.Limit - st.Memory.WorkingSet)
	}
	return m
}

func pressure(p *cgroup.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroup.PSILine) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(l.Total), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// PodSandboxStats measures one sandbox with its containers.
func (s *Server) PodSandboxStats(_ context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.measureSandbox(sb)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats measures the ready sandboxes among those asked for.
func (s *Server) ListPodSandboxStats(_ context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	all, err := s.measureSandboxes(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: all}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	all, err := s.measureSandboxes(r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(all, func(p []*runtimeapi.PodSandboxStats) error {
		return out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: p})
	})
}

func (s *Server) measureSandboxes(f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var all []*runtimeapi.PodSandboxStats
	for _, sb := range s.matchingSandboxes(f.GetId(), f.GetLabelSelector()) {
		if rec := sb.record(); rec.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		st, err := s.measureSandbox(sb)
		if vanished(err) {
			continue // the others have their figures
		}
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

// vanished says that what was measured was removed meanwhile: before its files were opened, or before they were read.
func vanished(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// measureSandbox reads the pod's cgroup where the kubelet made one, and the
// counters of its network, which the shim lives in.
func (s *Server) measureSandbox(sb *sandbox) (*runtimeapi.PodSandboxStats, error) {
	rec := sb.record()
	out := &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: rec.ID, Metadata: rec.Config.GetMetadata(), Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{},
	}
	if rec.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return out, nil
	}
	var err error
	out.Linux.Containers, err = s.measureContainers(&runtimeapi.ContainerStatsFilter{PodSandboxId: sb.id})
	if err != nil {
		return nil, err
	}
	if parent := rec.Config.GetLinux().GetCgroupParent(); parent != "" {
		if err := measurePod(out.Linux, parent, sb); err != nil {
			return nil, fmt.Errorf("measure sandbox %s: %w", sb.id, err)
		}
	}
	if client, err := sb.client(); rec.NetNS != "" && err == nil {
		out.Linux.Network, err = networkUsage(fmt.Sprintf("/proc/%d/net/dev", client.Pid()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("measure sandbox %s: %w", sb.id, err)
		}
	}
	return out, nil
}

func measurePod(out *runtimeapi.LinuxPodSandboxStats, parent string, sb *sandbox) error {
	g, err := cgroup.Open(parent)
	if err != nil {
		return err
	}
	st, err := g.Stats()
	if err != nil {
		return err
	}
	out.Cpu, out.Memory = cpuUsage(st), memoryUsage(st)
	sb.mu.Lock()
	out.Cpu.UsageNanoCores = sb.usage.next(st.At, st.CPU.Usage)
	sb.mu.Unlock()
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	out.Process = &runtimeapi.ProcessUsage{Timestamp: st.At.UnixNano(), ProcessCount: value(uint64(len(pids)))}
	out.Io = &runtimeapi.IoUsage{Timestamp: st.At.UnixNano(), Psi: pressure(st.IOPSI)}
	return nil
}

// networkUsage reads the counters of a network namespace, the default
// interface's (eth0, else the first) apart from the others': lines of
// "eth0: rx-bytes packets errs drop fifo frame compressed multicast tx-bytes packets errs ...".
func networkUsage(file string) (*runtimeapi.NetworkUsage, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := &runtimeapi.NetworkUsage{Timestamp: now()}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		name = strings.TrimSpace(name)
		fields := strings.Fields(counters)
		if !ok || name == "lo" || len(fields) < 11 {
			continue
		}
		number := func(i int) *runtimeapi.UInt64Value {
			n, _ := strconv.ParseUint(fields[i], 10, 64)
			return value(n)
		}
		link := &runtimeapi.NetworkInterfaceUsage{
			Name: name, RxBytes: number(0), RxErrors: number(2), TxBytes: number(8), TxErrors: number(10),
		}
		if out.DefaultInterface == nil && name == "eth0" {
			out.DefaultInterface = link
			continue
		}
		out.Interfaces = append(out.Interfaces, link)
	}
	if out.DefaultInterface == nil && len(out.Interfaces) > 0 {
		out.DefaultInterface, out.Interfaces = out.Interfaces[0], out.Interfaces[1:]
	}
	return out, lines.Err()
}
