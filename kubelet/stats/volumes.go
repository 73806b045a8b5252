package stats

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/kubelet/volume"
)

// Volumes are measured at most once in volumesAge, upstream's: that is a walk through files, or a question to a driver, which gets volumesLimit.
// Who asks waits volumesWait for what he has made be measured, and takes what is there then.
const (
	volumesAge   = time.Minute
	volumesLimit = 10 * time.Second
	volumesWait  = 2 * time.Second
)

// Volumes measures the volumes of pods, of each pod by itself: one file system or driver that hangs leaves the others their figures.
type Volumes struct {
	// Context is that of measuring, which outlives who asked.
	Context context.Context
	// Measure measures those of one pod; what it returns counts beside an error.
	Measure func(context.Context, *corev1.Pod) ([]volume.Stats, error)
	// Failed is told of errors.
	Failed func(pod *corev1.Pod, err error)
	Pods   func() []*corev1.Pod

	mu   sync.Mutex
	last map[types.UID]*figures
}

// figures are those of one pod.
type figures struct {
	at    time.Time // when they were taken; zero: they were not
	stats []volume.Stats
	busy  bool // they are being taken
}

// All returns the figures of all pods' volumes, at most a minute old but for those that take longer.
func (v *Volumes) All(ctx context.Context) map[types.UID][]volume.Stats {
	ctx, cancel := context.WithTimeout(ctx, volumesWait)
	defer cancel()
	pods := v.Pods()
	begun := make(chan struct{}, len(pods))
	for range v.begin(pods, begun) {
		select {
		case <-begun:
		case <-ctx.Done():
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[types.UID][]volume.Stats{}
	for _, p := range pods {
		if f := v.last[p.UID]; f != nil && !f.at.IsZero() {
			out[p.UID] = f.stats
		}
	}
	return out
}

// begin has measured what is too old, and forgets pods that are gone. It returns of how many pods done will get a value.
func (v *Volumes) begin(pods []*corev1.Pod, done chan<- struct{}) (count int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next := map[types.UID]*figures{}
	for _, p := range pods {
		f := v.last[p.UID]
		if f == nil {
			f = &figures{}
		}
		next[p.UID] = f
		if f.busy || !f.at.IsZero() && time.Since(f.at) < volumesAge {
			continue
		}
		f.busy = true
		count++
		go func() {
			v.measure(p, f)
			done <- struct{}{}
		}()
	}
	v.last = next
	return count
}

func (v *Volumes) measure(p *corev1.Pod, f *figures) {
	ctx, cancel := context.WithTimeout(v.Context, volumesLimit)
	defer cancel()
	stats, err := v.Measure(ctx, p)
	if err != nil {
		v.Failed(p, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	f.at, f.stats, f.busy = time.Now(), stats, false
}

// summary are the figures in the words of the summary API.
func summary(all []volume.Stats) (out []statsapi.VolumeStats) {
	for _, s := range all {
		out = append(out, s.VolumeStats)
	}
	return out
}

// claims is the collector of the use of claims' volumes.
type claims struct{ volumes *Volumes }

// NewClaims returns the collector.
func NewClaims(v *Volumes) prometheus.Collector { return &claims{v} }

// Describe says nothing, as resource's.
func (c *claims) Describe(chan<- *prometheus.Desc) {}

// Collect measures. A claim that several pods have is told once.
func (c *claims) Collect(out chan<- prometheus.Metric) {
	told := map[statsapi.PVCReference]bool{}
	for _, all := range c.volumes.All(c.volumes.Context) {
		for _, s := range all {
			if s.PVCRef == nil || told[*s.PVCRef] {
				continue
			}
			told[*s.PVCRef] = true
			c.claim(out, s)
		}
	}
}

func (c *claims) claim(out chan<- prometheus.Metric, s volume.Stats) {
	send := func(name, help string, value *uint64) {
		if value != nil {
			out <- prometheus.MustNewConstMetric(desc("kubelet_volume_stats_"+name, help, "namespace", "persistentvolumeclaim"), prometheus.GaugeValue,
				float64(*value), s.PVCRef.Namespace, s.PVCRef.Name)
		}
	}
	send("capacity_bytes", "Capacity in bytes of the volume", s.CapacityBytes)
	send("available_bytes", "Number of available bytes in the volume", s.AvailableBytes)
	send("used_bytes", "Number of used bytes in the volume", s.UsedBytes)
	send("inodes", "Maximum number of inodes in the volume", s.Inodes)
	send("inodes_free", "Number of free inodes in the volume", s.InodesFree)
	send("inodes_used", "Number of used inodes in the volume", s.InodesUsed)
	if s.Abnormal != nil {
		ill := uint64(0)
		if *s.Abnormal {
			ill = 1
		}
		send("health_status_abnormal", "1 if the driver complains of the volume, 0 otherwise", &ill)
	}
}
