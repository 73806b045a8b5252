package criserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/netns"
)

// series returns what the server tells of the containers and their pods, by "name{values of its labels}".
func (h *harness) series() map[string]uint64 {
	h.Helper()
	r, err := h.Runtime.ListPodSandboxMetrics(h.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		h.Fatal(err)
	}
	all := map[string]uint64{}
	add := func(metrics []*runtimeapi.Metric) {
		for _, m := range metrics {
			key := m.Name + "{" + strings.Join(m.LabelValues, ",") + "}"
			if _, twice := all[key]; twice {
				h.Errorf("%s is told twice", key)
			}
			all[key] = m.Value.Value
		}
	}
	for _, pod := range r.PodMetrics {
		add(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			add(c.Metrics)
		}
	}
	return all
}

// TestMetricsMove has a container use what is counted.
func TestMetricsMove(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(sb.record().NetNS, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"})
	}); err != nil {
		t.Fatal(err)
	}
	config := h.containerConfig("c", "sleep", "1000")
	config.Image.UserSpecifiedImage = "busybox"
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 200_000, CpuShares: 512, MemoryLimitInBytes: 256 << 20}
	id := h.create(pod, config)
	h.startContainer(id)
	c, err := h.server.findContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	g, err := c.cgroup()
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string, labels ...string) string {
		return name + "{" + strings.Join(append([]string{"c", g.Path(), "busybox", id, "default", "p"}, labels...), ",") + "}"
	}
	ofPod := func(name string, labels ...string) string {
		return name + "{" + strings.Join(append([]string{"", h.cgroup + "/p", "", "", "default", "p"}, labels...), ",") + "}"
	}
	before := h.series()
	if out, code := h.exec(id, "sh", "-c", "busybox dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"); code != 0 {
		t.Fatal(out)
	}
	h.server.layers.next = time.Time{} // as if a minute had passed
	after := h.series()
	for _, key := range []string{
		of("container_cpu_usage_nanoseconds_total", "total"), ofPod("container_cpu_usage_nanoseconds_total", "total"), of("container_cpu_user_nanoseconds_total"),
		of("container_memory_failures_total", "pgfault", "hierarchy"), of("container_memory_cache"), of("container_memory_usage_bytes"), ofPod("container_memory_usage_bytes"),
	} {
		if after[key] <= before[key] {
			t.Errorf("%s: %d, then %d", key, before[key], after[key])
		}
	}
	written, device := uint64(0), ""
	for key, v := range after {
		if rest, ok := strings.CutPrefix(key, strings.TrimSuffix(of("container_fs_usage_bytes", ""), "}")); ok {
			written, device = v, strings.TrimSuffix(rest, "}")
		}
	}
	if written < 8<<20 || after[of("container_fs_limit_bytes", device)] < written {
		t.Errorf("layer of %d bytes on %q", written, device)
	}
	for key, want := range map[string]uint64{
		of("container_spec_cpu_quota"): 200_000, of("container_spec_cpu_period"): 100_000, of("container_spec_memory_limit_bytes"): 256 << 20,
		of("container_processes"): 1, of("container_threads"): 1, of("container_oom_events_total"): 0,
		of("container_start_time_seconds"):                       uint64(h.status(id).StartedAt / int64(time.Second)),
		ofPod("container_network_receive_bytes_total", "eth0"):   0,
		ofPod("container_network_transmit_errors_total", "eth0"): 0,
		ofPod("container_network_receive_packets_total", "eth0"): 0,
		of("container_cpu_usage_seconds_total", "total"):         after[of("container_cpu_usage_nanoseconds_total", "total")] / 1e9,
		of("container_spec_memory_reservation_limit_bytes"):      0,
	} {
		if got, ok := after[key]; got != want || !ok {
			t.Errorf("%s is %d (%v), want %d", key, got, ok, want)
		}
	}
	if _, err := h.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 150_000, CpuPeriod: 100_000}}); err != nil {
		t.Fatal(err)
	}
	if got := h.series()[of("container_spec_cpu_quota")]; got != 150_000 {
		t.Errorf("the quota is %d after it was changed", got)
	}
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	for key := range h.series() {
		if strings.Contains(key, id) {
			t.Errorf("of a container that has ended: %s", key)
		}
	}
}

// BenchmarkMetrics asks for the metrics of 100 containers, each in a pod of its own.
func BenchmarkMetrics(b *testing.B) {
	h := newHarness(b)
	for i := range 100 {
		h.run(h.runPod(fmt.Sprint("p", i)), "c", "sleep", "1000")
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Runtime.ListPodSandboxMetrics(b.Context(), &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
