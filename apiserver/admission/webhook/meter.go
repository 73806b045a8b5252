package webhook

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meter is what is counted, by upstream's names.
type meter struct {
	took     *prometheus.HistogramVec
	rejected *prometheus.CounterVec
	open     *prometheus.CounterVec
	asked    *prometheus.CounterVec
}

func newMeter(r prometheus.Registerer) *meter {
	const prefix = "apiserver_admission_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets}, labels)
	}
	m := &meter{
		took: histogram("webhook_admission_duration_seconds", "Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
			[]float64{0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10, 25}, "name", "type", "operation", "rejected"),
		rejected: counter("webhook_rejection_count", "Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.",
			"name", "type", "operation", "error_type", "rejection_code"),
		open: counter("webhook_fail_open_count", "Admission webhook fail open count, identified by name and broken out for each admission type (validating or admit).", "name", "type"),
		asked: counter("webhook_request_total", "Admission webhook request total, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify whether the request was rejected or not and an HTTP status code. Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.",
			"name", "type", "operation", "code", "rejected"),
	}
	r.MustRegister(m.took, m.rejected, m.open, m.asked)
	return m
}

// mostCode is the largest code that is told apart.
const mostCode = 600

// called counts a call of a webhook.
func (m *meter) called(h *hook, step, operation string, took time.Duration, err error) {
	var (
		failed   *failure
		rejected *rejection
	)
	code, no, kind := 200, true, "apiserver_internal_error"
	switch {
	case err == nil:
		no = false
	case errors.As(err, &failed):
		code, no, kind = failed.code, !h.ignore, "calling_webhook_error"
	case errors.As(err, &rejected):
		code, kind = int(rejected.ErrStatus.Code), "no_error"
	default:
		code = 0
	}
	code = min(code, mostCode)
	if no && !(failed != nil && errors.Is(failed.cause, context.Canceled)) {
		m.rejected.WithLabelValues(h.name, step, operation, kind, strconv.Itoa(code)).Inc()
	}
	m.asked.WithLabelValues(h.name, step, operation, strconv.Itoa(code), strconv.FormatBool(no)).Inc()
	m.took.WithLabelValues(h.name, step, operation, strconv.FormatBool(no)).Observe(took.Seconds())
}
