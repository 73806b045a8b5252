package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yare-dev/yare/api"
)

// requests counts what is asked of the database, under upstream's names.
type requests struct {
	took   *prometheus.HistogramVec
	total  *prometheus.CounterVec
	failed *prometheus.CounterVec
}

// newRequests registers the metrics; r may be nil.
func newRequests(r prometheus.Registerer) *requests {
	of := []string{"operation", "group", "resource"}
	m := &requests{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "etcd_request_duration_seconds", Help: "Etcd request latency in seconds for each operation and object type.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, of),
		total:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_requests_total", Help: "Etcd request counts for each operation and object type."}, of),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "etcd_request_errors_total", Help: "Etcd failed request counts for each operation and object type."}, of),
	}
	if r != nil {
		r.MustRegister(m.took, m.total, m.failed)
	}
	return m
}

// observe counts one request that began then.
func (m *requests) observe(operation string, k *api.Kind, then time.Time, err error) {
	m.total.WithLabelValues(operation, k.Group, k.Plural).Inc()
	m.took.WithLabelValues(operation, k.Group, k.Plural).Observe(time.Since(then).Seconds())
	if err != nil {
		m.failed.WithLabelValues(operation, k.Group, k.Plural).Inc()
	}
}
