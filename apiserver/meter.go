package apiserver

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// meter counts requests, under upstream's names.
type meter struct {
	registry *prometheus.Registry
	total    *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	long     prometheus.Gauge
}

func newMeter() *meter {
	m := &meter{
		registry: prometheus.NewRegistry(),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "scope", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_duration_seconds",
			Help:    "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"verb", "group", "version", "resource", "subresource", "scope"}),
		long: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests",
			Help: "Gauge of all active long-running apiserver requests.",
		}),
	}
	m.registry.MustRegister(m.total, m.latency, m.long,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe counts a finished request. Only kinds that are served become labels: others would be the client's choice.
func (m *meter) observe(c *call, took time.Duration) {
	t := c.t
	if c.w.code == 0 || !t.isObject {
		return
	}
	group, version, resource, sub := t.group, t.version, t.plural, t.sub
	if !c.known() {
		group, version, resource, sub = "", "", "", ""
	}
	scope := "cluster"
	switch {
	case t.name != "":
		scope = "resource"
	case t.namespace != "":
		scope = "namespace"
	}
	verb := metricVerb(t.verb)
	m.total.WithLabelValues(verb, group, version, resource, sub, scope, strconv.Itoa(c.w.code)).Inc()
	if !c.long() {
		m.latency.WithLabelValues(verb, group, version, resource, sub, scope).Observe(took.Seconds())
	}
}

// metricVerb is upstream's spelling.
func metricVerb(v string) string {
	switch v {
	case "create":
		return "POST"
	case "update":
		return "PUT"
	case "get", "list", "watch", "patch", "delete", "deletecollection":
		return strings.ToUpper(v)
	}
	return "OTHER"
}

// streams is the context key of a context that ends before the server does: streams and watches have to end for
// other requests to be the last.
type streams struct{}

// stream returns ctx, ended also when the server stops, and counts it as a long request until cancel is called.
func (m *meter) stream(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	m.long.Inc()
	stop := func() bool { return true }
	if open, ok := ctx.Value(streams{}).(context.Context); ok {
		stop = context.AfterFunc(open, cancel)
	}
	return ctx, func() {
		m.long.Dec()
		stop()
		cancel()
	}
}
