package reconcile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics tell of all controllers' queues, under the names that dashboards know.
type Metrics struct {
	depth         *prometheus.GaugeVec
	adds, retries *prometheus.CounterVec
	waited, work  *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	of := []string{"name"}
	seconds := prometheus.ExponentialBuckets(10e-9, 10, 10)
	m := &Metrics{
		depth:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "workqueue_depth", Help: "Current depth of workqueue"}, of),
		adds:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "workqueue_adds_total", Help: "Total number of adds handled by workqueue"}, of),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "workqueue_retries_total", Help: "Total number of retries handled by workqueue"}, of),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_queue_duration_seconds",
			Help: "How long in seconds an item stays in workqueue before being requested.", Buckets: seconds}, of),
		work: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_work_duration_seconds",
			Help: "How long in seconds processing an item from workqueue takes.", Buckets: seconds}, of),
	}
	r.MustRegister(m.depth, m.adds, m.retries, m.waited, m.work)
	return m
}

// of returns the metrics of one controller; nil where there are none.
func (m *Metrics) of(name string) *queueMetrics {
	if m == nil {
		return nil
	}
	return &queueMetrics{m.depth.WithLabelValues(name), m.adds.WithLabelValues(name), m.retries.WithLabelValues(name),
		m.waited.WithLabelValues(name), m.work.WithLabelValues(name)}
}

// queueMetrics are those of one queue. A nil one counts nothing.
type queueMetrics struct {
	depth         prometheus.Gauge
	adds, retries prometheus.Counter
	waited, work  prometheus.Observer
}

func (m *queueMetrics) added(it *item) {
	if m != nil {
		it.since = time.Now()
		m.adds.Inc()
		m.depth.Inc()
	}
}

func (m *queueMetrics) taken(it *item) {
	if m != nil {
		m.depth.Dec()
		m.waited.Observe(time.Since(it.since).Seconds())
	}
}

func (m *queueMetrics) worked(took time.Duration, again bool) {
	if m == nil {
		return
	}
	m.work.Observe(took.Seconds())
	if again {
		m.retries.Inc()
	}
}
