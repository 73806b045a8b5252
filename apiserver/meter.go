package apiserver

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// meter counts requests, under upstream's names.
type meter struct {
	registry *prometheus.Registry
	total    *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	sli      *prometheus.HistogramVec
	sizes    *prometheus.HistogramVec
	long     *prometheus.GaugeVec
	told     *prometheus.CounterVec
	gate     *gate

	// found keeps what a label set was resolved to, since that costs as much as a small request.
	found sync.Map // labelled -> *counters
}

// labelled are the labels of a request's metrics.
type labelled struct {
	verb, dryRun, group, version, resource, sub, scope string
	code                                               int
}

type counters struct {
	total               prometheus.Counter
	latency, sli, sizes prometheus.Observer // sizes is nil for what writes
}

// served is the component that all requests are served by.
const served = "apiserver"

func newMeter(r *prometheus.Registry, v version.Info, s *store.Store, kinds func() []rest.Any, reads, writes *limit) *meter {
	of := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	dry := []string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"}
	m := &meter{
		registry: r,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total",
			Help: "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
		}, append(dry[:len(dry):len(dry)], "code")),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds",
			Help: "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3,
				4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, dry),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_request_sli_duration_seconds",
			Help:    "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.",
			Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, of),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "apiserver_response_sizes",
			Help:    "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.",
			Buckets: prometheus.ExponentialBuckets(1000, 10.0, 7),
		}, of),
		long: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests",
			Help: "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
		}, of),
		told: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_watch_events_total",
			Help: "Number of events sent in watch clients",
		}, []string{"group", "version", "resource"}),
		gate: newGate(r, v),
	}
	m.registry.MustRegister(m.total, m.latency, m.sli, m.sizes, m.long, m.told,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		inflight("readOnly", reads), inflight("mutating", writes), &amounts{s, kinds})
	return m
}

// inflight tells how many requests of a kind are being served.
func inflight(kind string, l *limit) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "apiserver_current_inflight_requests",
		Help:        "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
		ConstLabels: prometheus.Labels{"request_kind": kind},
	}, func() float64 { return float64(l.served.Load()) })
}

// amounts tells how many objects are stored, when it is asked.
type amounts struct {
	store *store.Store
	kinds func() []rest.Any
}

// The metric's name of today, and the one that older dashboards know.
var (
	resourceObjects = prometheus.NewDesc("apiserver_resource_objects", "Number of stored objects at the time of last check split by kind.", []string{"group", "resource"}, nil)
	storageObjects  = prometheus.NewDesc("apiserver_storage_objects", "Number of stored objects at the time of last check split by kind.", []string{"resource"}, nil)
)

// Describe is part of prometheus.Collector.
func (a *amounts) Describe(ch chan<- *prometheus.Desc) { ch <- resourceObjects; ch <- storageObjects }

// Collect is part of prometheus.Collector.
func (a *amounts) Collect(ch chan<- prometheus.Metric) {
	seen := map[schema.GroupResource]bool{} // a kind may be served in several versions
	for _, k := range a.kinds() {
		if !k.Stored() || k.Kind.Of() != nil || seen[k.Kind.GroupResource()] {
			continue
		}
		seen[k.Kind.GroupResource()] = true
		n := float64(a.store.Snapshot(k.Kept()).Len())
		ch <- prometheus.MustNewConstMetric(resourceObjects, prometheus.GaugeValue, n, k.Kind.Group, k.Kind.Plural)
		ch <- prometheus.MustNewConstMetric(storageObjects, prometheus.GaugeValue, n, k.Kind.String())
	}
}

// labels are the call's. Only kinds that are served become labels: others would be the client's choice.
func (c *call) labels() labelled {
	t := c.t
	l := labelled{verb: metricVerb(t.verb), group: t.group, version: t.version, resource: t.plural, sub: t.sub, scope: "cluster"}
	if !c.known() {
		l.group, l.version, l.resource, l.sub = "", "", "", ""
	}
	switch {
	case t.name != "" || t.verb == "create":
		l.scope = "resource"
	case t.namespace != "":
		l.scope = "namespace"
	}
	if strings.Contains(c.r.URL.RawQuery, "dryRun") {
		if c.r.URL.Query().Get("dryRun") == "All" {
			l.dryRun = "All"
		}
	}
	if t.verb == "patch" && strings.HasPrefix(c.r.Header.Get("Content-Type"), "application/apply-patch") {
		l.verb = "APPLY"
	}
	return l
}

// observe counts a finished request.
func (m *meter) observe(c *call, took time.Duration) {
	if c.w.code == 0 || !c.t.isObject {
		return
	}
	l := c.labels()
	l.code = c.w.code
	f := m.find(l)
	f.total.Inc()
	if !c.long() {
		f.latency.Observe(took.Seconds())
		f.sli.Observe((took - c.queued).Seconds())
	}
	if l.code == http.StatusGatewayTimeout && c.r.Context().Err() != nil {
		m.gate.terminate(l, l.code)
	}
	if f.sizes != nil {
		f.sizes.Observe(float64(c.w.bytes))
	}
}

func (m *meter) find(l labelled) *counters {
	if f, ok := m.found.Load(l); ok {
		return f.(*counters)
	}
	f := &counters{
		total:   m.total.WithLabelValues(l.verb, l.dryRun, l.group, l.version, l.resource, l.sub, l.scope, served, strconv.Itoa(l.code)),
		latency: m.latency.WithLabelValues(l.verb, l.dryRun, l.group, l.version, l.resource, l.sub, l.scope, served),
		sli:     m.sli.WithLabelValues(l.verb, l.group, l.version, l.resource, l.sub, l.scope, served),
	}
	if l.verb == "GET" || l.verb == "LIST" {
		f.sizes = m.sizes.WithLabelValues(l.verb, l.group, l.version, l.resource, l.sub, l.scope, served)
	}
	kept, _ := m.found.LoadOrStore(l, f)
	return kept.(*counters)
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
	return "other"
}

// streams is the context key of a context that ends before the server does: streams and watches have to end for
// other requests to be the last.
type streams struct{}

// stream returns the call's context, ended also when the server stops, and counts it as a long request until cancel is
// called.
func (c *call) stream() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.r.Context())
	l := c.labels()
	long := c.s.meter.long.WithLabelValues(l.verb, l.group, l.version, l.resource, l.sub, l.scope, served)
	long.Inc()
	stop := func() bool { return true }
	if open, ok := ctx.Value(streams{}).(context.Context); ok {
		stop = context.AfterFunc(open, cancel)
	}
	return ctx, func() {
		long.Dec()
		stop()
		cancel()
	}
}
