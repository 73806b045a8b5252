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

// Volumes are measured at most once in volumesAge, upstream's: that is a walk through files, or a question to a driver. All pods together
// get volumesLimit; who has no answer by then has none.
const (
	volumesAge   = time.Minute
	volumesLimit = 10 * time.Second
)

// Volumes measures the volumes of pods.
type Volumes struct {
	// Measure measures those of one pod; what it returns counts beside an error.
	Measure func(context.Context, *corev1.Pod) ([]volume.Stats, error)
	// Failed is told of errors.
	Failed func(pod *corev1.Pod, err error)
	Pods   func() []*corev1.Pod

	mu   sync.Mutex
	last map[types.UID]measured
}

type measured struct {
	at    time.Time
	stats []volume.Stats
}

// All returns the figures of all pods' volumes, at most a minute old. Those who ask together wait for one another.
func (v *Volumes) All(ctx context.Context) map[types.UID][]volume.Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, volumesLimit)
	defer cancel()
	next, out := map[types.UID]measured{}, map[types.UID][]volume.Stats{}
	for _, p := range v.Pods() {
		m, ok := v.last[p.UID]
		if (!ok || time.Since(m.at) >= volumesAge) && ctx.Err() == nil {
			stats, err := v.Measure(ctx, p)
			if err != nil {
				v.Failed(p, err)
			}
			m = measured{time.Now(), stats}
		}
		if m.at.IsZero() {
			continue
		}
		next[p.UID], out[p.UID] = m, m.stats
	}
	v.last = next
	return out
}

// summary are the figures in the words of the summary API.
func summary(all []volume.Stats) (out []statsapi.VolumeStats) {
	for _, s := range all {
		out = append(out, s.VolumeStats)
	}
	return out
}

// claims is the collector of the use of claims' volumes, until ctx ends.
type claims struct {
	ctx     context.Context
	volumes *Volumes
}

// NewClaims returns the collector, which works until ctx ends.
func NewClaims(ctx context.Context, v *Volumes) prometheus.Collector { return &claims{ctx, v} }

// Describe says nothing, as resource's.
func (c *claims) Describe(chan<- *prometheus.Desc) {}

// Collect measures. A claim that several pods have is told once.
func (c *claims) Collect(out chan<- prometheus.Metric) {
	told := map[statsapi.PVCReference]bool{}
	for _, all := range c.volumes.All(c.ctx) {
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
