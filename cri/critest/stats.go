package critest

import (
	"slices"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func statsCases() []Case {
	return []Case{
		{"a container's processor and memory are measured", 0, statsContainer},
		{"what a container has written is measured", 0, statsLayer},
		{"counters grow", 0, statsGrow},
		{"a container's name and labels are told", 0, statsAttributes},
		{"a container that is not there is an error", 0, statsUnknown},
		{"running containers are listed", 0, statsList},
		{"they are found by their ID", 0, statsByID},
		{"they are found by their sandbox", 0, statsBySandbox},
		{"they are found by a label", 0, statsByLabel},
		{"exited containers are not listed", 0, statsExited},
		{"containers come in a stream too", 36, statsStream},
		{"a pod is measured", 23, statsPod},
		{"a pod that is not there is an error", 23, statsPodUnknown},
		{"pods are found by their ID", 23, statsPodsByID},
		{"pods are found by a label", 23, statsPodsByLabel},
		{"pods come in a stream too", 36, statsPodsStream},
		{"metrics are described", 26, metricsDescribed},
		{"a pod's metrics are told, as they are described", 26, metricsTold},
		{"metrics come in a stream too", 36, metricsStream},
	}
}

func (t *T) stats(id string) *runtimeapi.ContainerStats {
	t.Helper()
	r, err := t.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("container stats: %v", err)
	}
	return r.Stats
}

func statsContainer(t *T) {
	s := t.stats(t.sleeper(t.any()))
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetTimestamp() <= 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetMemory().GetTimestamp() <= 0 {
		t.Errorf("%v", s)
	}
}

// A server may measure in its own time.
func statsLayer(t *T) {
	id := t.sleeper(t.any())
	t.exec(id, "sh", "-c", "head -c 1000000 /dev/urandom > /file; sync")
	t.eventually("what was written", func() bool {
		l := t.stats(id).GetWritableLayer()
		return l.GetUsedBytes().GetValue() >= 1000000 && l.GetInodesUsed().GetValue() > 0 && l.GetFsId().GetMountpoint() != "" && l.GetTimestamp() > 0
	})
}

func statsGrow(t *T) {
	id := t.sleeper(t.any())
	before := t.stats(id)
	t.exec(id, "sh", "-c", "i=0; while test $i -lt 20000; do i=$((i+1)); done")
	after := t.stats(id)
	if a, b := before.Cpu, after.Cpu; b.UsageCoreNanoSeconds.Value <= a.UsageCoreNanoSeconds.Value || b.Timestamp <= a.Timestamp {
		t.Errorf("%v, then %v", a, b)
	}
}

func statsAttributes(t *T) {
	c := t.config(forever()...)
	id := t.run(t.any(), c)
	if a := t.stats(id).GetAttributes(); a.GetId() != id || a.GetMetadata().GetName() != c.Metadata.Name || a.GetLabels()["container"] != c.Labels["container"] || a.GetAnnotations()["note"] != c.Annotations["note"] {
		t.Errorf("%v", a)
	}
}

func statsUnknown(t *T) {
	_, err := t.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "0123456789abcdef"})
	t.refused("the stats of nothing", err, codes.NotFound)
}

func (t *T) wantStats(f *runtimeapi.ContainerStatsFilter, want ...string) {
	t.Helper()
	r, err := t.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: f})
	if err != nil {
		t.Fatalf("list container stats: %v", err)
	}
	t.wantMeasured(r.Stats, want...)
}

func (t *T) wantMeasured(stats []*runtimeapi.ContainerStats, want ...string) {
	t.Helper()
	var got []string
	for _, s := range stats {
		got = append(got, s.GetAttributes().GetId())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("measured are %v, want %v", got, want)
	}
}

// couple is two running containers in a pod of their own, with labels.
func (t *T) couple() (pod pods, ids [2]string, label map[string]string) {
	t.Helper()
	label = map[string]string{"set": t.unique("set")}
	pod = t.own(func(c *sandboxConfig) { c.Labels["set"] = label["set"] })
	for i := range ids {
		ids[i] = t.sleeper(pod, func(c *containerConfig) { c.Labels["set"] = label["set"] })
	}
	return pod, ids, label
}

func statsList(t *T) {
	_, ids, _ := t.couple()
	r, err := t.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range r.Stats {
		if slices.Contains(ids[:], s.GetAttributes().GetId()) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d of 2", n)
	}
}

func statsByID(t *T) {
	_, ids, _ := t.couple()
	t.wantStats(&runtimeapi.ContainerStatsFilter{Id: ids[0]}, ids[0])
}

func statsBySandbox(t *T) {
	pod, ids, _ := t.couple()
	t.wantStats(&runtimeapi.ContainerStatsFilter{PodSandboxId: pod.id}, ids[:]...)
}

func statsByLabel(t *T) {
	_, ids, label := t.couple()
	t.wantStats(&runtimeapi.ContainerStatsFilter{LabelSelector: label}, ids[:]...)
}

func statsExited(t *T) {
	_, ids, label := t.couple()
	t.stop(ids[1], 0)
	t.wantStats(&runtimeapi.ContainerStatsFilter{LabelSelector: label}, ids[0])
}

func statsStream(t *T) {
	_, ids, label := t.couple()
	s, err := t.Runtime.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: label}})
	if err != nil {
		t.Fatal(err)
	}
	t.wantMeasured(collect(t, s.Recv, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats), ids[:]...)
}

func statsPod(t *T) {
	pod, ids, _ := t.couple()
	r, err := t.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod.id})
	if err != nil {
		t.Fatal(err)
	}
	a, l := r.Stats.GetAttributes(), r.Stats.GetLinux()
	if a.GetId() != pod.id || a.GetMetadata().GetName() != pod.config.Metadata.Name || l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 ||
		l.GetMemory().GetWorkingSetBytes().GetValue() == 0 || l.GetProcess().GetProcessCount().GetValue() < 2 {
		t.Errorf("%v", r.Stats)
	}
	t.wantMeasured(l.GetContainers(), ids[:]...)
	for _, i := range l.GetNetwork().GetInterfaces() { // "excluding the default"
		if i.Name == l.Network.DefaultInterface.GetName() {
			t.Errorf("%v", l.Network)
		}
	}
}

func statsPodUnknown(t *T) {
	_, err := t.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "0123456789abcdef"})
	t.refused("the stats of no pod", err, codes.NotFound)
}

func (t *T) wantPodStats(f *runtimeapi.PodSandboxStatsFilter, want ...string) {
	t.Helper()
	r, err := t.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
	if err != nil {
		t.Fatalf("list pod stats: %v", err)
	}
	t.wantPodsMeasured(r.Stats, want...)
}

func (t *T) wantPodsMeasured(stats []*runtimeapi.PodSandboxStats, want ...string) {
	t.Helper()
	var got []string
	for _, s := range stats {
		got = append(got, s.GetAttributes().GetId())
	}
	if !slices.Equal(got, want) {
		t.Errorf("measured are %v, want %v", got, want)
	}
}

func statsPodsByID(t *T) {
	pod, _, _ := t.couple()
	t.wantPodStats(&runtimeapi.PodSandboxStatsFilter{Id: pod.id}, pod.id)
}

func statsPodsByLabel(t *T) {
	pod, _, label := t.couple()
	t.wantPodStats(&runtimeapi.PodSandboxStatsFilter{LabelSelector: label}, pod.id)
}

func statsPodsStream(t *T) {
	pod, _, label := t.couple()
	s, err := t.Runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: label}})
	if err != nil {
		t.Fatal(err)
	}
	t.wantPodsMeasured(collect(t, s.Recv, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats), pod.id)
}

// descriptors are the number of labels of each metric.
func (t *T) descriptors() map[string]int {
	t.Helper()
	r, err := t.Runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, d := range r.Descriptors {
		if _, twice := all[d.Name]; twice || d.Name == "" || d.Help == "" {
			t.Errorf("%v", d)
		}
		all[d.Name] = len(d.LabelKeys)
	}
	return all
}

func metricsDescribed(t *T) {
	d := t.descriptors()
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_usage_bytes", "container_memory_rss"} {
		if _, ok := d[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
}

func (t *T) wantMetrics(pod string, ids []string, all []*runtimeapi.PodSandboxMetrics) {
	t.Helper()
	described := t.descriptors()
	for _, p := range all {
		if p.PodSandboxId != pod {
			continue
		}
		metrics, got := p.Metrics, []string{}
		for _, c := range p.ContainerMetrics {
			got, metrics = append(got, c.ContainerId), append(metrics, c.Metrics...)
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(ids)); !slices.Equal(got, want) || len(metrics) == 0 {
			t.Errorf("metrics of %v, want %v", got, want)
		}
		for _, m := range metrics {
			if n, ok := described[m.Name]; !ok || n != len(m.LabelValues) || m.Value == nil {
				t.Errorf("%v", m)
			}
		}
		return
	}
	t.Errorf("no metrics of the pod")
}

func metricsTold(t *T) {
	pod, ids, _ := t.couple()
	r, err := t.Runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.wantMetrics(pod.id, ids[:], r.PodMetrics)
}

func metricsStream(t *T) {
	pod, ids, _ := t.couple()
	s, err := t.Runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.wantMetrics(pod.id, ids[:], collect(t, s.Recv, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics))
}
