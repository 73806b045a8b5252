package criserver

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metric is one of cAdvisor's metrics that dashboards know, read from what stats
// measure.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string
	// of returns the value, nil where it is not known.
	of func(*runtimeapi.ContainerStats) *runtimeapi.UInt64Value
}

// containerMetrics is the table. CRI's values are integers: CPU time is in whole
// seconds, as the metric's name says.
func containerMetrics() []metric {
	const counter, gauge = runtimeapi.MetricType_COUNTER, runtimeapi.MetricType_GAUGE
	type stats = *runtimeapi.ContainerStats
	type number = *runtimeapi.UInt64Value
	return []metric{
		{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", counter, nil, func(s stats) number {
			if s.GetCpu() == nil {
				return nil
			}
			return value(s.Cpu.GetUsageCoreNanoSeconds().GetValue() / uint64(time.Second))
		}},
		{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge, nil, func(s stats) number { return s.GetMemory().GetUsageBytes() }},
		{"container_memory_working_set_bytes", "Current working set in bytes.", gauge, nil, func(s stats) number { return s.GetMemory().GetWorkingSetBytes() }},
		{"container_memory_rss", "Size of RSS in bytes.", gauge, nil, func(s stats) number { return s.GetMemory().GetRssBytes() }},
		{"container_memory_swap", "Container swap usage in bytes.", gauge, nil, func(s stats) number { return s.GetSwap().GetSwapUsageBytes() }},
		{"container_memory_page_faults_total", "Cumulative count of page faults.", counter, nil, func(s stats) number { return s.GetMemory().GetPageFaults() }},
		{"container_memory_major_page_faults_total", "Cumulative count of page faults that read from disk.", counter, nil, func(s stats) number { return s.GetMemory().GetMajorPageFaults() }},
		{"container_fs_usage_bytes", "Bytes that the container wrote to its root file system.", gauge, nil, func(s stats) number { return s.GetWritableLayer().GetUsedBytes() }},
		{"container_fs_inodes_used", "Inodes that the container's writes take.", gauge, nil, func(s stats) number { return s.GetWritableLayer().GetInodesUsed() }},
	}
}

// linkMetric is the same for a network interface of a sandbox.
type linkMetric struct {
	name, help string
	of         func(*runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value
}

func linkMetrics() []linkMetric {
	return []linkMetric{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received.", (*runtimeapi.NetworkInterfaceUsage).GetRxBytes},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", (*runtimeapi.NetworkInterfaceUsage).GetRxErrors},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", (*runtimeapi.NetworkInterfaceUsage).GetTxBytes},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", (*runtimeapi.NetworkInterfaceUsage).GetTxErrors},
	}
}

// ListMetricDescriptors says what ListPodSandboxMetrics reports.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	out := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range containerMetrics() {
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: m.labels})
	}
	for _, m := range linkMetrics() {
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: []string{"interface"}})
	}
	return out, nil
}

// ListPodSandboxMetrics reports them for all ready sandboxes.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	all, err := s.sandboxMetrics()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: all}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	all, err := s.sandboxMetrics()
	if err != nil {
		return err
	}
	return inPieces(all, func(p []*runtimeapi.PodSandboxMetrics) error {
		return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: p})
	})
}

func (s *Server) sandboxMetrics() ([]*runtimeapi.PodSandboxMetrics, error) {
	stats, err := s.measureSandboxes(nil)
	if err != nil {
		return nil, err
	}
	var all []*runtimeapi.PodSandboxMetrics
	for _, st := range stats {
		all = append(all, metricsOf(st))
	}
	return all, nil
}

// metricsOf is pure. Metrics without a time were measured for who asked.
func metricsOf(st *runtimeapi.PodSandboxStats) *runtimeapi.PodSandboxMetrics {
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: st.GetAttributes().GetId()}
	links := st.GetLinux().GetNetwork().GetInterfaces()
	if d := st.GetLinux().GetNetwork().GetDefaultInterface(); d != nil {
		links = slices.Concat([]*runtimeapi.NetworkInterfaceUsage{d}, links)
	}
	for _, link := range links {
		for _, m := range linkMetrics() {
			out.Metrics = append(out.Metrics, &runtimeapi.Metric{
				Name: m.name, MetricType: runtimeapi.MetricType_COUNTER,
				LabelValues: []string{link.Name}, Value: m.of(link),
			})
		}
	}
	for _, c := range st.GetLinux().GetContainers() {
		of := &runtimeapi.ContainerMetrics{ContainerId: c.GetAttributes().GetId()}
		for _, m := range containerMetrics() {
			if v := m.of(c); v != nil {
				of.Metrics = append(of.Metrics, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, Value: v})
			}
		}
		out.ContainerMetrics = append(out.ContainerMetrics, of)
	}
	return out
}
