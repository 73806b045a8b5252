package stats

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/linux/cgroupmetrics"
)

var update = flag.Bool("update", false, "rewrite golden files")

var base = []string{"container", "id", "image", "name", "namespace", "pod"}

// metric returns one of a kind with the values of its labels.
func metric(name string, kind runtimeapi.MetricType, v uint64, labels ...string) *runtimeapi.Metric {
	return &runtimeapi.Metric{Name: name, MetricType: kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: v}}
}

// TestText shows what a runtime's answer becomes: labels in their order, nanoseconds in place of seconds, times, what needs escaping, and
// of what does not go together nothing.
func TestText(t *testing.T) {
	const counter, gauge = runtimeapi.MetricType_COUNTER, runtimeapi.MetricType_GAUGE
	describe := func(name, help string, labels ...string) *runtimeapi.MetricDescriptor {
		return &runtimeapi.MetricDescriptor{Name: name, Help: help, LabelKeys: labels}
	}
	descriptors := []*runtimeapi.MetricDescriptor{
		describe("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", append(base[:6:6], "cpu")...),
		describe("container_cpu_usage_nanoseconds_total", "Cumulative cpu time consumed in seconds.", append(base[:6:6], "cpu")...),
		describe("container_memory_rss", "Size of RSS in bytes.", base...),
		describe("container_network_receive_bytes_total", "Cumulative count of bytes received", "pod", "namespace", "interface"),
		describe("other_nanoseconds_total", "A time that nobody tells in seconds.\nOf \\two lines."),
		describe("container_never_told", "Nobody has it."),
	}
	app, whole := []string{"app", "/kubepods/pod1/c1", "nginx:1", "c1", "default", "web"}, []string{"", "/kubepods/pod1", "", "", "default", "web"}
	of := func(who []string, more ...string) []string { return append(who[:6:6], more...) }
	old := metric("container_memory_rss", gauge, 7, "odd", "/x", "a\"b\\c\nd", "", "", "")
	old.Timestamp = 1_700_000_000_123_456_789
	pods := []*runtimeapi.PodSandboxMetrics{{
		Metrics: []*runtimeapi.Metric{
			metric("container_cpu_usage_seconds_total", counter, 2, of(whole, "total")...), metric("container_cpu_usage_nanoseconds_total", counter, 2_000_000_001, of(whole, "total")...),
			metric("container_network_receive_bytes_total", counter, 18446744073709551615, "web", "default", "eth0"),
			metric("other_nanoseconds_total", counter, 3), metric("undescribed", gauge, 1), metric("container_memory_rss", gauge, 1, "too few"),
			{Name: "container_memory_rss", LabelValues: whole},
		},
		ContainerMetrics: []*runtimeapi.ContainerMetrics{{Metrics: []*runtimeapi.Metric{
			metric("container_cpu_usage_seconds_total", counter, 1, of(app, "total")...), metric("container_cpu_usage_nanoseconds_total", counter, 1_500_000_000, of(app, "total")...),
			metric("container_memory_rss", gauge, 4096, app...), old,
		}}},
	}}
	var p page
	p.runtime(descriptors, pods)
	var r cgroupmetrics.Reader
	r.Times(0, 0, 1_700_000_000)
	p.own("/", r.Values())
	var text bytes.Buffer
	if err := p.write(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/cadvisor.txt", text.Bytes())
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if problems, err := promlint.New(bytes.NewReader(got)).Lint(); err != nil {
		t.Errorf("not Prometheus' format: %v, %v", err, problems)
	}
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s", file, got)
	}
}

// TestRuntimeFails: the machine's figures are there without the runtime's, and that these are missing is told.
func TestRuntimeFails(t *testing.T) {
	r := &Reader{CRI: &cri.Client{Runtime: failing{}}, Root: t.TempDir(), CgroupRoot: "/no/such"}
	var b strings.Builder
	if err := r.Cadvisor(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"\ncontainer_scrape_error 1\n", "\nmachine_scrape_error 0\n", "\nmachine_cpu_cores{boot_id=", "\nmachine_memory_bytes{boot_id=", "\ncadvisor_version_info{"} {
		if !strings.Contains("\n"+text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if !regexp.MustCompile(`(?m)^container_cpu_usage_seconds_total\{container="",cpu="total",id="/",image="",name="",namespace="",pod=""\} [0-9.]+$`).MatchString(text) {
		t.Errorf("no use of the whole host in\n%s", text)
	}
}

// failing is a runtime that cannot tell.
type failing struct {
	runtimeapi.RuntimeServiceClient
}

func (failing) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest, ...grpc.CallOption) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, errors.New("unimplemented")
}

// crowd is what 100 containers in 100 pods come to.
func crowd() (descriptors []*runtimeapi.MetricDescriptor, pods []*runtimeapi.PodSandboxMetrics) {
	for i := range 70 {
		descriptors = append(descriptors, &runtimeapi.MetricDescriptor{Name: fmt.Sprintf("container_metric_number_%d_bytes", i), Help: "A metric of the usual length.", LabelKeys: base})
	}
	for i := range 100 {
		pod := fmt.Sprintf("web-5d4f8c7b9-x%03d", i)
		id := fmt.Sprintf("/yare/default/kubepods/burstable/pod6d1f7c1e-8a40-4a0c-9a53-1f0c6d9b%04d", i)
		both := [2][]*runtimeapi.Metric{}
		for j, who := range [][]string{{"", id, "", "", "default", pod}, {"app", id + "/4f1b2c", "docker.io/library/nginx:1.29", strings.Repeat("4f1b2c3d", 8), "default", pod}} {
			for k, d := range descriptors {
				both[j] = append(both[j], metric(d.Name, runtimeapi.MetricType_GAUGE, uint64(i*k)<<20, who...))
			}
		}
		pods = append(pods, &runtimeapi.PodSandboxMetrics{Metrics: both[0], ContainerMetrics: []*runtimeapi.ContainerMetrics{{Metrics: both[1]}}})
	}
	return descriptors, pods
}

func BenchmarkText(b *testing.B) {
	descriptors, pods := crowd()
	b.ReportAllocs()
	for b.Loop() {
		var p page
		p.runtime(descriptors, pods)
		if err := p.write(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompressed is BenchmarkText as it is sent.
func BenchmarkCompressed(b *testing.B) {
	descriptors, pods := crowd()
	b.ReportAllocs()
	size := 0
	for b.Loop() {
		var p page
		p.runtime(descriptors, pods)
		var sent bytes.Buffer
		z, err := gzip.NewWriterLevel(&sent, gzip.BestSpeed)
		if err == nil {
			err = errors.Join(p.write(z), z.Close())
		}
		if err != nil {
			b.Fatal(err)
		}
		size = sent.Len()
	}
	b.ReportMetric(float64(size), "B/sent")
}

// BenchmarkOwn is what the kubelet reads itself.
func BenchmarkOwn(b *testing.B) {
	r := &Reader{CRI: &cri.Client{Runtime: failing{}}, Root: b.TempDir()}
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Cadvisor(b.Context(), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
