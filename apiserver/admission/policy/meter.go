package policy

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meter is what is counted, by upstream's names.
type meter struct {
	checks, mutations        *prometheus.CounterVec
	checkTook, mutationsTook *prometheus.HistogramVec
}

func newMeter(r prometheus.Registerer) *meter {
	seconds := []float64{0.0000005, 0.001, 0.01, 0.1, 1.0}
	m := &meter{
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_validating_admission_policy_check_total",
			Help: "Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken."},
			[]string{"policy", "policy_binding", "error_type", "enforcement_action"}),
		checkTook: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_validating_admission_policy_check_duration_seconds",
			Help: "Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.", Buckets: seconds},
			[]string{"policy", "policy_binding", "error_type", "enforcement_action"}),
		mutations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_mutating_admission_policy_check_total",
			Help: "Mutation admission policy check total, labeled by policy and further identified by binding."},
			[]string{"policy", "policy_binding", "error_type"}),
		mutationsTook: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_mutating_admission_policy_check_duration_seconds",
			Help: "Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.", Buckets: seconds},
			[]string{"policy", "policy_binding", "error_type"}),
	}
	r.MustRegister(m.checks, m.checkTook, m.mutations, m.mutationsTook)
	return m
}

// errorType is what upstream calls the reason of a message.
func errorType(message string) string {
	switch {
	case strings.HasPrefix(message, "compilation"):
		return "compile_error"
	case strings.HasPrefix(message, "validation failed due to running out of cost budget"):
		return "out_of_budget"
	}
	return "invalid_error"
}

// checked counts a verdict and what it came to.
func (m *meter) checked(d *definition, b *binding, t *verdict, action string) {
	labels := []string{d.name, b.name, errorType(t.message), action}
	m.checks.WithLabelValues(labels...).Inc()
	m.checkTook.WithLabelValues(labels...).Observe(t.took.Seconds())
}

// mutated counts a mutation.
func (m *meter) mutated(d *definition, b *binding, took time.Duration, err error) {
	kind := "no_error"
	if err != nil {
		kind = errorType(err.Error())
	}
	m.mutations.WithLabelValues(d.name, b.name, kind).Inc()
	m.mutationsTook.WithLabelValues(d.name, b.name, kind).Observe(took.Seconds())
}
