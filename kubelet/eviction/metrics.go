package eviction

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts evictions, by upstream's names. The nil Metrics counts nothing.
type Metrics struct {
	evictions *prometheus.CounterVec
	ages      *prometheus.HistogramVec
}

// NewMetrics returns Metrics at nought.
func NewMetrics() *Metrics {
	labels := []string{"eviction_signal"}
	return &Metrics{
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubelet_evictions", Help: "Cumulative number of pod evictions by eviction signal"}, labels),
		ages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubelet_eviction_stats_age_seconds", Buckets: prometheus.DefBuckets,
			Help: "Time between when stats are collected, and when pod is evicted based on those stats by eviction signal"}, labels),
	}
}

// Collectors are to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.evictions, m.ages}
}

// Evicted counts a pod that was evicted for the signal, or for the limit, of which there are others than signals.
func (m *Metrics) Evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}

// age notes how old the observation was that an eviction follows.
func (m *Metrics) age(s Signal, d time.Duration) {
	if m != nil {
		m.ages.WithLabelValues(string(s)).Observe(d.Seconds())
	}
}
