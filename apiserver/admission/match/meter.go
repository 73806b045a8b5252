package match

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Meter counts evaluations of match conditions, by upstream's names. Webhooks and policies share one.
type Meter struct {
	failed, excluded *prometheus.CounterVec
	took             *prometheus.HistogramVec
}

// NewMeter returns a Meter whose metrics are registered with r.
func NewMeter(r prometheus.Registerer) *Meter {
	labels := []string{"name", "kind", "type", "operation"}
	m := &Meter{
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_admission_match_condition_evaluation_errors_total",
			Help: "Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit)."}, labels),
		excluded: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_admission_match_condition_exclusions_total",
			Help: "Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit)."}, labels),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_match_condition_evaluation_seconds",
			Help:    "Admission match condition evaluation time in seconds, identified by name and broken out for each kind containing matchConditions (webhook or policy), operation and type (validate or admit).",
			Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25}}, labels),
	}
	r.MustRegister(m.failed, m.excluded, m.took)
	return m
}

// owner is whose conditions they are, as metrics are told.
type owner struct{ name, kind, step string }

// evaluated counts an evaluation, after which the request may be none of the owner's; failed is how many expressions could not be evaluated.
func (m *Meter) evaluated(o owner, r *Request, took time.Duration, excluded bool, failed int) {
	if m == nil {
		return
	}
	labels := []string{o.name, o.kind, o.step, string(r.Operation)}
	m.took.WithLabelValues(labels...).Observe(took.Seconds())
	m.failed.WithLabelValues(labels...).Add(float64(failed))
	if excluded && o.kind == Webhook {
		m.excluded.WithLabelValues(labels...).Inc()
	}
}
