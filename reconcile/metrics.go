package reconcile

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics tell of all controllers' queues, under the names that dashboards know.
type Metrics struct {
	depth         *prometheus.GaugeVec
	adds, retries *prometheus.CounterVec
	waited, work  *prometheus.HistogramVec

	mu     sync.Mutex
	queues []*queueMetrics
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
	r.MustRegister(m.depth, m.adds, m.retries, m.waited, m.work, m)
	return m
}

// What is worked on is looked at when somebody asks.
var (
	unfinished = prometheus.NewDesc("workqueue_unfinished_work_seconds", "How many seconds of work has been done that is in progress and hasn't been observed by work_duration. Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases.", []string{"name"}, nil)
	longest    = prometheus.NewDesc("workqueue_longest_running_processor_seconds", "How many seconds has the longest running processor for workqueue been running.", []string{"name"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- unfinished; ch <- longest }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	queues := slices.Clone(m.queues)
	m.mu.Unlock()
	for _, q := range queues {
		all, most := q.inProgress()
		ch <- prometheus.MustNewConstMetric(unfinished, prometheus.GaugeValue, all.Seconds(), q.name)
		ch <- prometheus.MustNewConstMetric(longest, prometheus.GaugeValue, most.Seconds(), q.name)
	}
}

// of returns the metrics of one controller; nil where there are none.
func (m *Metrics) of(name string) *queueMetrics {
	if m == nil {
		return nil
	}
	q := &queueMetrics{name: name, depth: m.depth.WithLabelValues(name), adds: m.adds.WithLabelValues(name), retries: m.retries.WithLabelValues(name),
		waited: m.waited.WithLabelValues(name), work: m.work.WithLabelValues(name), begun: map[int]time.Time{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queues = append(slices.DeleteFunc(m.queues, func(o *queueMetrics) bool { return o.name == name }), q) // a controller may be made anew
	return q
}

// queueMetrics are those of one queue. A nil one counts nothing.
type queueMetrics struct {
	name          string
	depth         prometheus.Gauge
	adds, retries prometheus.Counter
	waited, work  prometheus.Observer

	mu    sync.Mutex
	last  int
	begun map[int]time.Time // of what is worked on, by a number of its own
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

// working counts work that begins. The function that it returns counts its end, and whether it is to be done again.
func (m *queueMetrics) working() func(again bool) {
	if m == nil {
		return func(bool) {}
	}
	begin := time.Now()
	m.mu.Lock()
	m.last++
	number := m.last
	m.begun[number] = begin
	m.mu.Unlock()
	return func(again bool) {
		m.mu.Lock()
		delete(m.begun, number)
		m.mu.Unlock()
		m.work.Observe(time.Since(begin).Seconds())
		if again {
			m.retries.Inc()
		}
	}
}

// inProgress is for how long all that is worked on has been, and the one that has been longest.
func (m *queueMetrics) inProgress() (all, most time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, begin := range m.begun {
		took := time.Since(begin)
		all, most = all+took, max(most, took)
	}
	return all, most
}
