package reconcile

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yare-dev/yare/api"
)

// A key that is added twice is queued once, and leaves the queue when it is taken.
func TestQueueMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { queueMetricsTest(t) })
}

func queueMetricsTest(t *testing.T) {
	r := prometheus.NewRegistry()
	m := NewMetrics(r)
	m.of("c") // one of that name that is no more
	q := newQueue(m.of("c"))
	q.add(api.Key{Name: "a"})
	q.add(api.Key{Name: "a"})
	q.add(api.Key{Name: "b"})
	if _, ok := q.next(); !ok {
		t.Fatal("closed")
	}
	q.counts.working()(true)
	q.counts.working()
	time.Sleep(time.Second)
	q.counts.working()
	time.Sleep(2 * time.Second)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	want := map[string]float64{"workqueue_depth": 1, "workqueue_adds_total": 2, "workqueue_retries_total": 1,
		"workqueue_queue_duration_seconds": 1, "workqueue_work_duration_seconds": 1,
		"workqueue_unfinished_work_seconds": 5, "workqueue_longest_running_processor_seconds": 3}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
}
