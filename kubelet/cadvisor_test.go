package kubelet

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/netns"
)

// selectors are those of the rules and dashboards of kubernetes-mixin and kube-prometheus, without what Prometheus adds itself (job, cluster, instance,
// metrics_path). Of an idle container there may be no figures of disks: what is at the end is described, at least.
var selectors = []string{
	`container_cpu_usage_seconds_total{image!=""}`,
	`container_cpu_usage_seconds_total{namespace="default", pod="web", container!="POD", container!=""}`,
	`container_cpu_usage_seconds_total{container="", cpu="total", pod="web"}`,
	`container_cpu_usage_seconds_total{id="/"}`,
	`container_cpu_usage_seconds_total{id=~".*/kubepods"}`,
	`container_memory_working_set_bytes{image!="", container!=""}`,
	`container_memory_working_set_bytes{container!="", image!="", namespace="default", pod="web"}`,
	`container_memory_working_set_bytes{id="/"}`,
	`container_memory_rss{image!="", container!=""}`,
	`container_memory_cache{image!="", container!=""}`,
	`container_memory_swap{image!="", container!=""}`,
	`container_memory_usage_bytes{container="app"}`,
	`container_memory_failcnt{container="app"}`,
	`container_memory_failures_total{container="app", failure_type="pgmajfault", scope="container"}`,
	`container_cpu_cfs_throttled_periods_total{container!=""}`,
	`container_cpu_cfs_periods_total{container!=""}`,
	`container_cpu_cfs_throttled_seconds_total{container="app"}`,
	`container_spec_cpu_quota{container="app"}`,
	`container_spec_cpu_period{container="app"}`,
	`container_spec_cpu_shares{container="app"}`,
	`container_spec_memory_limit_bytes{container!=""}`,
	`container_network_receive_bytes_total{namespace=~".+", interface="eth0", pod="web"}`,
	`container_network_transmit_bytes_total{namespace!="", pod="web"}`,
	`container_network_receive_packets_total{namespace!="", pod="web"}`,
	`container_network_transmit_packets_total{namespace!="", pod="web"}`,
	`container_network_receive_packets_dropped_total{namespace!="", pod="web"}`,
	`container_network_transmit_packets_dropped_total{namespace!="", pod="web"}`,
	`container_network_receive_errors_total{pod="web"}`,
	`container_network_transmit_errors_total{pod="web"}`,
	`container_start_time_seconds{container="app", name!=""}`,
	`container_last_seen{container="app"}`,
	`container_oom_events_total{container="app"}`,
	`container_processes{container="app"}`,
	`container_threads{container="app"}`,
	`container_fs_usage_bytes{container="app"}`,
	`container_fs_limit_bytes{id="/"}`,
	`container_ulimits_soft{container="app", ulimit="max_open_files"}`,
	`container_scrape_error{}`,
	`machine_cpu_cores{}`,
	`machine_memory_bytes{}`,
	`machine_scrape_error{}`,

	`container_fs_reads_total{device=~"(/dev/)?(mmcblk.p.+|nvme.+|rbd.+|sd.+|vd.+|xvd.+|dm-.+|md.+|dasd.+)", container!="", namespace="default", pod="web"}`,
	`container_fs_writes_total{device=~"(/dev/)?(mmcblk.p.+|nvme.+|rbd.+|sd.+|vd.+|xvd.+|dm-.+|md.+|dasd.+)", container!="", namespace="default", pod="web"}`,
	`container_fs_reads_bytes_total{device=~"(/dev/)?(mmcblk.p.+|nvme.+|rbd.+|sd.+|vd.+|xvd.+|dm-.+|md.+|dasd.+)", id!="", container!=""}`,
	`container_fs_writes_bytes_total{device=~"(/dev/)?(mmcblk.p.+|nvme.+|rbd.+|sd.+|vd.+|xvd.+|dm-.+|md.+|dasd.+)", id!="", container!=""}`,
}

var pair = regexp.MustCompile(`(\w+)(=~|!=|=)"((?:[^"\\]|\\.)*)"`)

// selects tells whether a line of the text is of a selector.
func selects(selector, line string) bool {
	name, matchers, _ := strings.Cut(selector, "{")
	if rest, ok := strings.CutPrefix(line, name); !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
		return false
	}
	labels := map[string]string{}
	for _, l := range pair.FindAllStringSubmatch(line, -1) {
		labels[l[1]] = l[3]
	}
	for _, m := range pair.FindAllStringSubmatch(matchers, -1) {
		is := labels[m[1]] == m[3]
		switch m[2] {
		case "!=":
			is = !is
		case "=~":
			is = regexp.MustCompile("^(?:" + m[3] + ")$").MatchString(labels[m[1]])
		}
		if !is {
			return false
		}
	}
	return true
}

// TestRealCadvisor runs a pod and asks what dashboards ask.
func TestRealCadvisor(t *testing.T) {
	m := newMachine(t)
	p := realPod("web", "sh", "-c", "while :; do sleep 1; done")
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	m.api.Put(p)
	m.await("web", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning })
	if err := netns.Do(filepath.Join(m.network.dir, fmt.Sprint("ns", m.network.n)), func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"})
	}); err != nil {
		t.Fatal(err)
	}
	text := m.get("/metrics/cadvisor")
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil {
		t.Errorf("not Prometheus' format: %v, %v", err, problems)
	}
	d, err := m.cri.Runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	described := map[string][]string{}
	for _, one := range d.Descriptors {
		described[one.Name] = one.LabelKeys
	}
	lines := strings.Split(text, "\n")
	for _, s := range selectors {
		if slices.ContainsFunc(lines, func(line string) bool { return selects(s, line) }) {
			continue
		}
		name, _, _ := strings.Cut(s, "{")
		if !strings.Contains(name, "_reads_") && !strings.Contains(name, "_writes_") {
			t.Errorf("no series of %s", s)
		}
		for _, l := range pair.FindAllStringSubmatch(s, -1) {
			if !slices.Contains(described[name], l[1]) {
				t.Errorf("%s: %s has no label %s", s, name, l[1])
			}
		}
	}
	seen := map[string]bool{}
	for _, line := range lines {
		series, _, _ := strings.Cut(line, "} ")
		if strings.HasPrefix(line, "container_") && seen[series] {
			t.Errorf("twice: %s", line)
		}
		seen[series] = true
	}
	if t.Failed() {
		t.Log(text)
	}
	m.remove("web")
	m.awaitEmpty()
}

// BenchmarkRealCadvisor scrapes 100 containers, each in a pod of its own.
func BenchmarkRealCadvisor(b *testing.B) {
	m := newMachine(b)
	for i := range 100 {
		m.api.Put(realPod(fmt.Sprint("p", i), "sleep", "1000"))
	}
	for i := range 100 {
		m.await(fmt.Sprint("p", i), func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning })
	}
	var before, after unix.Rusage
	for b.Loop() {
		if before.Utime == (unix.Timeval{}) {
			if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
		}
		m.get("/metrics/cadvisor")
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	used := func(r *unix.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }
	b.ReportMetric(float64(used(&after)-used(&before))/float64(b.N)/1e6, "cpu-ms/op")
	for i := range 100 {
		m.api.DeletePod(api.Key{Namespace: "default", Name: fmt.Sprint("p", i)}, 2)
	}
	for i := range 100 {
		m.await(fmt.Sprint("p", i), func(p *corev1.Pod) bool { return p == nil })
	}
	m.awaitEmpty()
}
