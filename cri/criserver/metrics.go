package criserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/linux/cgroupmetrics"
	"github.com/yare-dev/yare/oci/cgroup"
)

// baseLabels are whose a metric is; its own labels follow them.
func baseLabels() []string {
	return []string{"container", "id", "image", "name", "namespace", "pod"}
}

// described is a metric as CRI tells of it. CRI's values are integers, too coarse for seconds: what is measured in nanoseconds is told
// under two names, in whole seconds for everybody, and as _nanoseconds_total for who knows that this is the same, as our kubelet does.
type described struct {
	name, nano string
	kind       runtimeapi.MetricType
}

// names are those of all metrics.
var names = sync.OnceValue(func() map[*cgroupmetrics.Metric]described {
	all := map[*cgroupmetrics.Metric]described{}
	for _, m := range cgroupmetrics.All() {
		d := described{name: m.Name, kind: runtimeapi.MetricType_GAUGE}
		if m.Counter {
			d.kind = runtimeapi.MetricType_COUNTER
		}
		if m.Nano {
			d.nano = strings.Replace(m.Name, "_seconds_total", "_nanoseconds_total", 1)
		}
		all[m] = d
	}
	return all
})

// ListMetricDescriptors says what ListPodSandboxMetrics reports: what KEP-2371 wants of a runtime, cAdvisor's metrics with its labels.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	out := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range cgroupmetrics.All() {
		labels, d := append(baseLabels(), m.Labels...), names()[m]
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: d.name, Help: m.Help, LabelKeys: labels})
		if d.nano != "" {
			out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: d.nano, Help: m.Help, LabelKeys: labels})
		}
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
	running := s.running()
	s.walkLayers(running)
	var r cgroupmetrics.Reader
	defer r.Close()
	disk, err := r.Find(s.images.Dir())
	if err != nil {
		return nil, err
	}
	var all []*runtimeapi.PodSandboxMetrics
	for _, sb := range s.matchingSandboxes("", nil) {
		rec := sb.record()
		if rec.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: rec.ID}
		if out.Metrics, err = podMetrics(&r, sb, &rec); err != nil {
			return nil, fmt.Errorf("measure sandbox %s: %w", rec.ID, err)
		}
		for _, c := range running[sb] {
			of, err := containerMetrics(&r, c, &rec, disk)
			if err != nil {
				return nil, fmt.Errorf("measure container %s: %w", c.id, err)
			}
			if of != nil {
				out.ContainerMetrics = append(out.ContainerMetrics, of)
			}
		}
		all = append(all, out)
	}
	return all, nil
}

// running are the containers that run, by sandbox.
func (s *Server) running() map[*sandbox][]*container {
	running := map[*sandbox][]*container{}
	for _, c := range s.matchingContainers("", "", nil) {
		if rec := c.record(); rec.state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running[c.sandbox] = append(running[c.sandbox], c)
		}
	}
	return running
}

// podMetrics are the figures of the pod's cgroup, where the kubelet made one, and of its network, which the shim lives in.
func podMetrics(r *cgroupmetrics.Reader, sb *sandbox, rec *sandboxRecord) ([]*runtimeapi.Metric, error) {
	r.Start()
	id := ""
	if parent := rec.Config.GetLinux().GetCgroupParent(); parent != "" {
		g, err := sb.cgroup(parent)
		if err != nil {
			return nil, err
		}
		id = g.Path()
		if err := r.Group(g.Dirs(), sb.limits()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		made := rec.Created / int64(time.Second)
		r.Times(made, made, time.Now().Unix())
	}
	if client, err := sb.client(); rec.NetNS != "" && err == nil {
		if err := r.Network(fmt.Sprintf("/proc/%d/net/dev", client.Pid()), nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	m := rec.Config.GetMetadata()
	return told(r.Values(), []string{"", id, "", "", m.GetNamespace(), m.GetName()}), nil
}

// containerMetrics are nil for a container that has ended meanwhile.
func containerMetrics(r *cgroupmetrics.Reader, c *container, pod *sandboxRecord, disk *cgroupmetrics.Filesystem) (*runtimeapi.ContainerMetrics, error) {
	g, err := c.cgroup()
	if err != nil {
		return nil, err
	}
	r.Start()
	err = r.Group(g.Dirs(), c.limits())
	c.mu.Lock()
	rec, pid, layer := c.rec, c.pid, c.layer
	c.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) || rec.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var written *uint64
	if layer != nil {
		written = &layer.UsedBytes.Value
	}
	r.Filesystem(disk, written)
	r.Ulimits(pid)
	r.Times(rec.Created/int64(time.Second), rec.Started/int64(time.Second), time.Now().Unix())
	name := rec.Image.GetUserSpecifiedImage()
	if name == "" {
		name = rec.Image.GetImage()
	}
	m := pod.Config.GetMetadata()
	return &runtimeapi.ContainerMetrics{ContainerId: rec.ID, Metrics: told(r.Values(),
		[]string{rec.Metadata.GetName(), g.Path(), name, rec.ID, m.GetNamespace(), m.GetName()})}, nil
}

// told puts figures into CRI's words. Metrics without a time were measured for who asked. A node has thousands of them: they
// are made in one piece, and share the values of their labels.
func told(values []cgroupmetrics.Value, base []string) []*runtimeapi.Metric {
	count := len(values)
	for _, v := range values {
		if v.Nano {
			count++
		}
	}
	metrics, numbers := make([]runtimeapi.Metric, count), make([]runtimeapi.UInt64Value, count)
	out := make([]*runtimeapi.Metric, 0, count)
	add := func(name string, kind runtimeapi.MetricType, labels []string, v uint64) {
		m, n := &metrics[len(out)], &numbers[len(out)]
		n.Value = v
		m.Name, m.MetricType, m.LabelValues, m.Value = name, kind, labels, n
		out = append(out, m)
	}
	all := names()
	var own *string // that labels were made for: those of an interface, or a device, come one after the other
	var labels []string
	for _, v := range values {
		switch {
		case len(v.Labels) == 0:
			own, labels = nil, base
		case own != &v.Labels[0]:
			own, labels = &v.Labels[0], slices.Concat(base, v.Labels)
		}
		d := all[v.Metric]
		if d.nano == "" {
			add(d.name, d.kind, labels, v.Value)
			continue
		}
		add(d.name, d.kind, labels, v.Value/uint64(time.Second))
		add(d.nano, d.kind, labels, v.Value)
	}
	return out
}

// cgroup is the pod's, whose path is that of its configuration.
func (sb *sandbox) cgroup(path string) (*cgroup.Group, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.group == nil {
		g, err := cgroup.Open(path)
		if err != nil {
			return nil, err
		}
		sb.group = g
	}
	return sb.group, nil
}

// limits are those of the pod's cgroup, as far as they are known. Its processes are those of its containers.
func (sb *sandbox) limits() *cgroupmetrics.Given {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.given == nil {
		sb.given = &cgroupmetrics.Given{Inner: true}
	}
	return sb.given
}

func (sb *sandbox) forgetLimits() {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.given = nil
}

// limits is as of sandbox.
func (c *container) limits() *cgroupmetrics.Given {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.given == nil {
		c.given = &cgroupmetrics.Given{}
	}
	return c.given
}

// forgetLimits also forgets the pod's: who changes a container changes its pod.
func (c *container) forgetLimits() {
	c.mu.Lock()
	c.given = nil
	c.mu.Unlock()
	c.sandbox.forgetLimits()
}

// What containers have written is a walk through their files. It is made at most once in layersAge, and takes one part in layersShare of the time
// at most; between two walks metrics and lists of stats show what the last one, or somebody who asked for stats, has found.
const (
	layersAge   = time.Minute
	layersShare = 100
)

// layers says when to walk next.
type layers struct {
	mu   sync.Mutex
	next time.Time
}

// walkLayers measures the layers of the containers that run (nil: it finds them) when it is time to. Who comes while another walks does not wait.
func (s *Server) walkLayers(running map[*sandbox][]*container) {
	if !s.layers.mu.TryLock() {
		return
	}
	defer s.layers.mu.Unlock()
	begin := time.Now()
	if begin.Before(s.layers.next) {
		return
	}
	if running == nil {
		running = s.running()
	}
	for _, all := range running {
		for _, c := range all {
			_, _ = s.measureLayer(c) // what cannot be measured has no figure
		}
	}
	took := time.Since(begin)
	s.layers.next = begin.Add(max(layersAge, layersShare*took))
}

// measureLayer is what the container has written until now; nothing where there is no layer any more.
func (s *Server) measureLayer(c *container) (*runtimeapi.FilesystemUsage, error) {
	u, err := s.images.SnapshotUsage(c.id)
	if err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, err
	}
	used := s.filesystemUsage(u)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.layer = used
	return used, nil
}

// knownLayer is what the container had written when that was measured last. One that nobody has measured is.
func (s *Server) knownLayer(c *container) (*runtimeapi.FilesystemUsage, error) {
	c.mu.Lock()
	layer := c.layer
	c.mu.Unlock()
	if layer != nil {
		return layer, nil
	}
	return s.measureLayer(c)
}
