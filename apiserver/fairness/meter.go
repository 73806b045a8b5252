package fairness

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics, by upstream's names.
const namespace = "apiserver_flowcontrol_"

// meter counts requests by level and schema.
type meter struct {
	rejected, dispatched *prometheus.CounterVec
	waited, executed     *prometheus.HistogramVec
	levels               atomic.Pointer[map[string]*level]

	mu    sync.Mutex
	known map[[2]string]*counts
}

// counts are those of one schema at one level.
type counts struct {
	dispatched                         prometheus.Counter
	waited, refused, executed          prometheus.Observer
	rejected                           *prometheus.CounterVec // by reason
	queued, queuedSeats, running, took atomic.Int64
}

var buckets = []float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}

func newMeter() *meter {
	by := []string{"priority_level", "flow_schema"}
	return &meter{
		known: map[[2]string]*counts{},
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: namespace + "rejected_requests_total",
			Help: "Number of requests rejected by API Priority and Fairness subsystem"}, append(by[:2:2], "reason")),
		dispatched: prometheus.NewCounterVec(prometheus.CounterOpts{Name: namespace + "dispatched_requests_total",
			Help: "Number of requests executed by API Priority and Fairness subsystem"}, by),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: namespace + "request_wait_duration_seconds",
			Help: "Length of time a request spent waiting in its queue", Buckets: buckets}, append(by[:2:2], "execute")),
		executed: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: namespace + "request_execution_seconds",
			Help: "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem", Buckets: buckets}, append(by[:2:2], "type")),
	}
}

// counts returns those of a schema at a level, made at most once.
func (m *meter) counts(level, schema string) *counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{level, schema}
	c := m.known[key]
	if c == nil {
		c = &counts{
			dispatched: m.dispatched.WithLabelValues(level, schema),
			waited:     m.waited.WithLabelValues(level, schema, "true"), refused: m.waited.WithLabelValues(level, schema, "false"),
			executed: m.executed.WithLabelValues(level, schema, "regular"),
			rejected: m.rejected.MustCurryWith(prometheus.Labels{"priority_level": level, "flow_schema": schema}),
		}
		m.known[key] = c
	}
	return c
}

// wait counts a request that came.
func (c *counts) wait(seats int) {
	c.queued.Add(1)
	c.queuedSeats.Add(int64(seats))
}

// start counts one that is served or refused.
func (c *counts) start(seats int, waited time.Duration, refusal string) {
	c.queued.Add(-1)
	c.queuedSeats.Add(int64(-seats))
	if refusal != "" {
		c.refused.Observe(waited.Seconds())
		c.rejected.WithLabelValues(refusal).Inc()
		return
	}
	c.running.Add(1)
	c.took.Add(int64(seats))
	c.dispatched.Inc()
	c.waited.Observe(waited.Seconds())
}

func (c *counts) end(seats int, took time.Duration) {
	c.running.Add(-1)
	c.took.Add(int64(-seats))
	c.executed.Observe(took.Seconds())
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+name, help, labels, nil)
}

var (
	inQueue      = desc("current_inqueue_requests", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", "priority_level", "flow_schema")
	inQueueSeats = desc("current_inqueue_seats", "Number of seats currently pending in queues of the API Priority and Fairness subsystem", "priority_level", "flow_schema")
	running      = desc("current_executing_requests", "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem", "priority_level", "flow_schema")
	runningSeats = desc("current_executing_seats", "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", "priority_level", "flow_schema")
	nominal      = desc("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", "priority_level")
	lower        = desc("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", "priority_level")
	upper        = desc("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", "priority_level")
	current      = desc("current_limit_seats", "current derived number of execution seats available to each priority level", "priority_level")
	smoothed     = desc("demand_seats_smoothed", "Smoothed seat demands", "priority_level")
	highWater    = desc("demand_seats_high_watermark", "High watermark, over last adjustment period, of seat demand by this priority level", "priority_level")
)

// Describe implements prometheus.Collector.
func (f *Fairness) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{inQueue, inQueueSeats, running, runningSeats, nominal, lower, upper, current, smoothed, highWater} {
		ch <- d
	}
	f.meter.rejected.Describe(ch)
	f.meter.dispatched.Describe(ch)
	f.meter.waited.Describe(ch)
	f.meter.executed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (f *Fairness) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	f.meter.mu.Lock()
	for key, c := range f.meter.known {
		gauge(inQueue, float64(c.queued.Load()), key[:]...)
		gauge(inQueueSeats, float64(c.queuedSeats.Load()), key[:]...)
		gauge(running, float64(c.running.Load()), key[:]...)
		gauge(runningSeats, float64(c.took.Load()), key[:]...)
	}
	f.meter.mu.Unlock()
	for name, l := range *f.meter.levels.Load() {
		l.mu.Lock()
		share, limit, demand, peak := l.share, l.limit, l.demand, l.peak
		l.mu.Unlock()
		gauge(nominal, float64(share.nominal), name)
		gauge(lower, float64(share.least), name)
		gauge(upper, float64(share.most), name)
		gauge(current, float64(limit), name)
		gauge(smoothed, demand, name)
		gauge(highWater, float64(peak), name)
	}
	f.meter.rejected.Collect(ch)
	f.meter.dispatched.Collect(ch)
	f.meter.waited.Collect(ch)
	f.meter.executed.Collect(ch)
}
