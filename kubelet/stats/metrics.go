package stats

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Resource returns what /metrics/resource shows, which the metrics server reads, within ctx.
func (r *Reader) Resource(ctx context.Context) (prometheus.Gatherer, error) {
	registry := prometheus.NewRegistry()
	return registry, registry.Register(&resource{ctx, r})
}

// resource is the collector of one request.
type resource struct {
	ctx    context.Context
	reader *Reader
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe says nothing: what is collected depends on the pods.
func (c *resource) Describe(chan<- *prometheus.Desc) {}

// Collect reads all figures.
func (c *resource) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	failed := desc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")
	sum, err := c.reader.running(ctx)
	if err != nil {
		out <- prometheus.MustNewConstMetric(failed, prometheus.GaugeValue, 1)
		return
	}
	out <- prometheus.MustNewConstMetric(failed, prometheus.GaugeValue, 0)
	send := func(d *prometheus.Desc, t prometheus.ValueType, v *uint64, scale float64, at time.Time, labels ...string) {
		if v != nil {
			out <- prometheus.NewMetricWithTimestamp(at, prometheus.MustNewConstMetric(d, t, float64(*v)/scale, labels...))
		}
	}
	const nano = 1e9
	n := sum.Node
	send(desc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds"), prometheus.CounterValue, n.CPU.UsageCoreNanoSeconds, nano, n.CPU.Time.Time)
	send(desc("node_memory_working_set_bytes", "Current working set of the node in bytes"), prometheus.GaugeValue, n.Memory.WorkingSetBytes, 1, n.Memory.Time.Time)
	containerCPU := desc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "container", "pod", "namespace")
	containerMemory := desc("container_memory_working_set_bytes", "Current working set of the container in bytes", "container", "pod", "namespace")
	containerStart := desc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", "container", "pod", "namespace")
	podCPU := desc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "pod", "namespace")
	podMemory := desc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "pod", "namespace")
	for _, p := range sum.Pods {
		for _, s := range p.Containers {
			labels := []string{s.Name, p.PodRef.Name, p.PodRef.Namespace}
			if s.CPU != nil {
				send(containerCPU, prometheus.CounterValue, s.CPU.UsageCoreNanoSeconds, nano, s.CPU.Time.Time, labels...)
			}
			if s.Memory != nil {
				send(containerMemory, prometheus.GaugeValue, s.Memory.WorkingSetBytes, 1, s.Memory.Time.Time, labels...)
			}
			if !s.StartTime.IsZero() {
				out <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(s.StartTime.Unix()), labels...)
			}
		}
		if p.CPU != nil {
			send(podCPU, prometheus.CounterValue, p.CPU.UsageCoreNanoSeconds, nano, p.CPU.Time.Time, p.PodRef.Name, p.PodRef.Namespace)
		}
		if p.Memory != nil {
			send(podMemory, prometheus.GaugeValue, p.Memory.WorkingSetBytes, 1, p.Memory.Time.Time, p.PodRef.Name, p.PodRef.Namespace)
		}
	}
}

// Running is the collector of how many pods and containers there are.
type Running struct{ pods func() []*corev1.Pod }

// NewRunning returns the collector.
func NewRunning(pods func() []*corev1.Pod) *Running { return &Running{pods} }

// Describe says nothing, as resource's.
func (c *Running) Describe(chan<- *prometheus.Desc) {}

// Collect counts.
func (c *Running) Collect(out chan<- prometheus.Metric) {
	pods, states := 0, map[string]int{"running": 0, "exited": 0}
	for _, p := range c.pods() {
		if p.Status.Phase == corev1.PodRunning {
			pods++
		}
		for _, s := range p.Status.ContainerStatuses {
			switch {
			case s.State.Running != nil:
				states["running"]++
			case s.State.Terminated != nil:
				states["exited"]++
			}
		}
	}
	out <- prometheus.MustNewConstMetric(desc("kubelet_running_pods", "Number of pods that have a running pod sandbox"), prometheus.GaugeValue, float64(pods))
	for state, n := range states {
		out <- prometheus.MustNewConstMetric(desc("kubelet_running_containers", "Number of containers currently running", "container_state"),
			prometheus.GaugeValue, float64(n), state)
	}
}
