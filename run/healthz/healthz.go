// Package healthz serves health checks over HTTP, /healthz, /livez and /readyz with their parts below them, and counts what they found for
// /metrics/slis. It replaces component-base's metrics/prometheus/slis and the server's healthz, whose counters belong to the process: here
// several components with servers of their own are one process.
//
// A request for a whole (/livez, not /livez/ping) counts the result of each check that it does not exclude, as upstream's do. Where nobody has
// asked for one since the metrics were read last, reading them asks: they are never older than two readings.
package healthz

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is the result of one check.
type Check struct {
	Name string
	OK   bool
}

// Endpoints are the checks of one server. Methods may be called concurrently.
type Endpoints struct {
	kinds  []string
	checks func(kind string) []Check

	last  *prometheus.GaugeVec
	total *prometheus.CounterVec

	mu    sync.Mutex
	asked map[string]bool // kinds, since the metrics were read
}

// New returns the endpoints of the kinds, of healthz, livez and readyz. checks makes the checks of a kind anew.
func New(checks func(kind string) []Check, kinds ...string) *Endpoints {
	return &Endpoints{
		kinds: kinds, checks: checks, asked: map[string]bool{},
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubernetes", Name: "healthcheck",
			Help: "[STABLE] This metric records the result of a single healthcheck."}, []string{"name", "type"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubernetes", Name: "healthchecks_total",
			Help: "[STABLE] This metric records the results of all healthcheck."}, []string{"name", "type", "status"}),
	}
}

// Is says whether there is such a kind.
func (e *Endpoints) Is(kind string) bool { return slices.Contains(e.kinds, kind) }

// Serve answers a request for a kind, or for the part of it that is one check.
func (e *Endpoints) Serve(w http.ResponseWriter, r *http.Request, kind, part string) {
	if part != "" {
		e.servePart(w, r, kind, part)
		return
	}
	q := r.URL.Query()
	excluded := slices.Clone(q["exclude"])
	var text strings.Builder
	failed := false
	for _, c := range e.look(kind, excluded) {
		switch {
		case slices.Contains(excluded, c.Name):
			excluded = slices.DeleteFunc(excluded, func(x string) bool { return x == c.Name })
			fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.Name)
		case c.OK:
			fmt.Fprintf(&text, "[+]%s ok\n", c.Name)
		default:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.Name)
		}
	}
	if len(excluded) > 0 {
		slices.Sort(excluded)
		fmt.Fprintf(&text, "warn: some health checks cannot be excluded: no matches for \"%s\"\n", strings.Join(slices.Compact(excluded), `","`))
	}
	if failed {
		http.Error(w, text.String()+kind+" check failed", http.StatusInternalServerError)
		return
	}
	if _, verbose := q["verbose"]; verbose {
		answer(w, text.String()+kind+" check passed\n")
		return
	}
	answer(w, "ok")
}

func (e *Endpoints) servePart(w http.ResponseWriter, r *http.Request, kind, part string) {
	checks := e.checks(kind)
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == part })
	switch {
	case i < 0:
		http.NotFound(w, r)
	case !checks[i].OK:
		http.Error(w, "internal server error: not ready", http.StatusInternalServerError)
	default:
		answer(w, "ok")
	}
}

// answer writes to a client that may have gone away.
func answer(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(text))
}

// look makes the checks of a kind and counts those that are not excluded.
func (e *Endpoints) look(kind string, excluded []string) []Check {
	checks := e.checks(kind)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked[kind] = true
	for _, c := range checks {
		if slices.Contains(excluded, c.Name) {
			continue
		}
		status, value := "error", 0.0
		if c.OK {
			status, value = "success", 1
		}
		e.last.WithLabelValues(c.Name, kind).Set(value)
		e.total.WithLabelValues(c.Name, kind, status).Inc()
	}
	return checks
}

// Metrics serves /metrics/slis.
func (e *Endpoints) Metrics() http.Handler {
	read := promhttp.HandlerFor(Gatherer(e.last, e.total), promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, k := range e.unasked() {
			e.look(k, nil)
		}
		e.mu.Lock()
		clear(e.asked)
		e.mu.Unlock()
		read.ServeHTTP(w, r)
	})
}

func (e *Endpoints) unasked() (kinds []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range e.kinds {
		if !e.asked[k] {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// Gatherer gathers the collectors' metrics and when the process was started, as upstream's small endpoints (/metrics/slis,
// /metrics/probes) have it: without that, a counter's fall to nought cannot be told from a new process.
func Gatherer(cs ...prometheus.Collector) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(append(cs, started{collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})})...)
	return r
}

// started is process_start_time_seconds out of what there is of a process.
type started struct{ process prometheus.Collector }

func (started) is(d *prometheus.Desc) bool {
	return strings.Contains(d.String(), `fqName: "process_start_time_seconds"`)
}

// Describe is part of prometheus.Collector.
func (s started) Describe(to chan<- *prometheus.Desc) {
	pass(s.process.Describe, s.is, to)
}

// Collect is part of prometheus.Collector.
func (s started) Collect(to chan<- prometheus.Metric) {
	pass(s.process.Collect, func(m prometheus.Metric) bool { return s.is(m.Desc()) }, to)
}

// pass hands on what is wanted of what from sends.
func pass[T any](from func(chan<- T), wanted func(T) bool, to chan<- T) {
	all := make(chan T)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(all)
		from(all)
	})
	for x := range all {
		if wanted(x) {
			to <- x
		}
	}
	wg.Wait()
}
