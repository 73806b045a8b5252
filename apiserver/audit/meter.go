package audit

import "github.com/prometheus/client_golang/prometheus"

// meter counts events, under upstream's names.
type meter struct {
	events       prometheus.Counter
	levels, lost *prometheus.CounterVec
}

func newMeter() *meter {
	return &meter{
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_audit_event_total", Help: "Counter of audit events generated and sent to the audit backend."}),
		levels: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_level_total", Help: "Counter of policy levels for audit events (1 per request)."}, []string{"level"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_error_total",
			Help: "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error."}, []string{"plugin"}),
	}
}

// Describe implements prometheus.Collector.
func (l *Log) Describe(ch chan<- *prometheus.Desc) {
	l.meter.events.Describe(ch)
	l.meter.levels.Describe(ch)
	l.meter.lost.Describe(ch)
}

// Collect implements prometheus.Collector.
func (l *Log) Collect(ch chan<- prometheus.Metric) {
	l.meter.events.Collect(ch)
	l.meter.levels.Collect(ch)
	l.meter.lost.Collect(ch)
}
