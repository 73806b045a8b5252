package apiserver

import (
	"bytes"
	"errors"
	"log"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// gate counts what happens to requests before they are served, under upstream's names: who they come from, whether that one
// may, what admission says, and what is refused for the server's own sake.
type gate struct {
	attempts, decisions map[string]prometheus.Counter
	asked, decided      map[string]prometheus.Observer
	users               map[string]prometheus.Counter
	certificates        prometheus.Histogram
	handshakes          prometheus.Counter
	terminated          *prometheus.CounterVec
	deprecated          *prometheus.GaugeVec
	steps, plugins      *prometheus.HistogramVec

	// found keeps what a verdict was resolved to: every write has some twenty.
	found sync.Map // verdict -> prometheus.Observer
}

// verdict is what admission said.
type verdict struct {
	plugin, step string
	op           rest.Operation
	rejected     bool
}

// Results that are counted. A user's name is told only where it is one of upstream's list.
const (
	succeeded, failed, broken = "success", "failure", "error"
	allowed, denied, unknown  = "allowed", "denied", "no-opinion"
	byMail, byOther           = "email_id", "other"
)

var knownUsers = []string{"admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default"}

func newGate(r *prometheus.Registry, v version.Info) *gate {
	milliseconds := prometheus.ExponentialBuckets(0.001, 2, 15)
	attempts := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authentication_attempts", Help: "Counter of authenticated attempts."}, []string{"result"})
	asked := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "authentication_duration_seconds",
		Help: "Authentication duration in seconds broken out by result.", Buckets: milliseconds}, []string{"result"})
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authorization_attempts_total", Help: "Counter of authorization attempts broken down by result."}, []string{"result"})
	decided := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "authorization_duration_seconds",
		Help: "Authorization duration in seconds broken out by result.", Buckets: milliseconds}, []string{"result"})
	users := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authenticated_user_requests", Help: "Counter of authenticated requests broken out by username."}, []string{"username"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_build_info",
		Help: "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running."},
		[]string{"major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler", "platform"})
	build.WithLabelValues(v.Major, v.Minor, v.GitVersion, v.GitCommit, v.GitTreeState, v.BuildDate, v.GoVersion, v.Compiler, v.Platform).Set(1)
	seconds := []float64{0.005, 0.025, 0.1, 0.5, 1.0, 2.5}
	g := &gate{
		attempts: byName(attempts.WithLabelValues, succeeded, failed, broken), asked: byName(asked.WithLabelValues, succeeded, failed, broken),
		decisions: byName(decisions.WithLabelValues, allowed, denied, unknown, broken), decided: byName(decided.WithLabelValues, allowed, denied, unknown, broken),
		users: byName(users.WithLabelValues, append(knownUsers[:len(knownUsers):len(knownUsers)], byMail, byOther)...),
		certificates: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "apiserver_client_certificate_expiration_seconds",
			Help:    "Distribution of the remaining lifetime on the certificate used to authenticate a request.",
			Buckets: []float64{0, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 345600, 604800, 2592000, 7776000, 15552000, 31104000}}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_tls_handshake_errors_total", Help: "Number of requests dropped with 'TLS handshake error from' error"}),
		terminated: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_request_terminations_total", Help: "Number of requests which apiserver terminated in self-defense."},
			[]string{"verb", "group", "version", "resource", "subresource", "scope", "component", "code"}),
		deprecated: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_requested_deprecated_apis",
			Help: "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release."},
			[]string{"group", "version", "resource", "subresource", "removed_release"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_step_admission_duration_seconds",
			Help: "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).", Buckets: seconds},
			[]string{"type", "operation", "rejected"}),
		plugins: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_controller_admission_duration_seconds",
			Help: "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).", Buckets: seconds},
			[]string{"name", "type", "operation", "rejected"}),
	}
	r.MustRegister(attempts, asked, decisions, decided, users, build, g.certificates, g.handshakes, g.terminated, g.deprecated, g.steps, g.plugins)
	return g
}

// byName makes the metrics of all names at once, since finding one by its label costs more than counting.
func byName[M any](of func(labels ...string) M, names ...string) map[string]M {
	ms := make(map[string]M, len(names))
	for _, n := range names {
		ms[n] = of(n)
	}
	return ms
}

// authenticated counts that a request was found to be u's.
func (g *gate) authenticated(r *http.Request, u *authn.User, err error, took time.Duration) {
	result := succeeded
	if err != nil {
		result = broken
	}
	g.attempts[result].Inc()
	g.asked[result].Observe(took.Seconds())
	if err != nil {
		return
	}
	name := byOther
	switch _, known := g.users[u.Name]; {
	case known:
		name = u.Name
	case strings.Contains(u.Name, "@"):
		name = byMail
	}
	g.users[name].Inc()
	if u.ByCertificate() && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		g.certificates.Observe(time.Until(r.TLS.PeerCertificates[0].NotAfter).Seconds())
	}
}

// authorized counts a decision.
func (g *gate) authorized(err error, cause error, took time.Duration) {
	result := allowed
	switch {
	case err == nil:
	case errors.Is(cause, authz.ErrDenied):
		result = denied
	case cause != nil:
		result = broken
	default:
		result = unknown
	}
	g.decisions[result].Inc()
	g.decided[result].Observe(took.Seconds())
}

// admitted counts what admission said: one plug-in, or all of a step where there is no name.
func (g *gate) admitted(plugin, step string, op rest.Operation, took time.Duration, rejected bool) {
	v := verdict{plugin, step, op, rejected}
	o, ok := g.found.Load(v)
	if !ok {
		if plugin == "" {
			o = g.steps.WithLabelValues(step, string(op), strconv.FormatBool(rejected))
		} else {
			o = g.plugins.WithLabelValues(plugin, step, string(op), strconv.FormatBool(rejected))
		}
		g.found.Store(v, o)
	}
	o.(prometheus.Observer).Observe(took.Seconds())
}

// terminate counts a request that is refused or ended for the server's own sake.
func (g *gate) terminate(l labelled, code int) {
	g.terminated.WithLabelValues(l.verb, l.group, l.version, l.resource, l.sub, l.scope, served, strconv.Itoa(code)).Inc()
}

// handshakeLog is what net/http's server logs to: failed handshakes, of which it tells in no other way, are counted.
type handshakeLog struct {
	*log.Logger
	failed prometheus.Counter
}

// Write implements io.Writer.
func (l handshakeLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("TLS handshake error from")) {
		l.failed.Inc()
	}
	return l.Logger.Writer().Write(line)
}
