package probe

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Metrics counts probes, by upstream's names. The nil Metrics counts nothing.
type Metrics struct {
	total *prometheus.CounterVec
	took  *prometheus.HistogramVec

	mu   sync.Mutex
	pods map[[2]string]int // Counts by namespace and name of their pods
}

// NewMetrics returns Metrics at nought.
func NewMetrics() *Metrics {
	of := []string{"probe_type", "container", "pod", "namespace"}
	return &Metrics{
		pods: map[[2]string]int{},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prober_probe_total",
			Help: "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result."}, append(of[:len(of):len(of)], "result", "pod_uid")),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "prober_probe_duration_seconds", Buckets: prometheus.DefBuckets,
			Help: "[ALPHA] Duration in seconds for a probe response."}, of),
	}
}

// Collectors are to be registered.
func (m *Metrics) Collectors() []prometheus.Collector { return []prometheus.Collector{m.total, m.took} }

// Counts are the metrics of one pod, for as long as it is probed.
type Counts struct {
	metrics              *Metrics
	namespace, name, uid string
	open                 bool
}

// Of returns the pod's counts.
func (m *Metrics) Of(pod *corev1.Pod) *Counts {
	if m == nil {
		return nil
	}
	return &Counts{metrics: m, namespace: pod.Namespace, name: pod.Name, uid: string(pod.UID)}
}

// observe counts a verdict. How long an answer took is told of those that were good, as upstream does: a failure often is a timeout.
func (c *Counts) observe(kind, container string, ok bool, took time.Duration) {
	if c == nil {
		return
	}
	m := c.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	if !c.open {
		c.open = true
		m.pods[[2]string{c.namespace, c.name}]++
	}
	result := "failed"
	if ok {
		result = "successful"
		m.took.WithLabelValues(kind, container, c.name, c.namespace).Observe(took.Seconds())
	}
	m.total.WithLabelValues(kind, container, c.name, c.namespace, result, c.uid).Inc()
}

// drop forgets the pod. A later observe begins anew.
func (c *Counts) drop() {
	if c == nil {
		return
	}
	m := c.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	if !c.open {
		return
	}
	c.open = false
	m.total.DeletePartialMatch(prometheus.Labels{"pod_uid": c.uid})
	at := [2]string{c.namespace, c.name}
	if m.pods[at]--; m.pods[at] == 0 { // else a pod of the same name is probed already
		delete(m.pods, at)
		m.took.DeletePartialMatch(prometheus.Labels{"pod": c.name, "namespace": c.namespace})
	}
}
