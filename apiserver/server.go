package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/run/healthz"
	"github.com/yare-dev/yare/store"
)

// Config adjusts the server.
type Config struct {
	// Listeners are where to serve. The Server owns and closes them. TLS is laid over them unless it is nil.
	Listeners []net.Listener
	// TLS has the serving certificate, and asks for client certificates where an Authenticator reads them, which verifies
	// them itself.
	TLS *tls.Config
	// Version is what /version answers.
	Version version.Info
	// InFlight bounds the requests that are served at once, watches and streams excepted. Zero: 400 that read and 200
	// that write, as upstream.
	ReadsInFlight, WritesInFlight int
	// Grace is how long requests may go on when the server stops. Zero: 2 seconds.
	Grace time.Duration
	// Debug serves profiles of the process below /debug/pprof, to users who may get that path.
	Debug bool
	// Logs are served below /logs; nil: nothing is.
	Logs fs.FS
}

// Deps are what the server is built on.
type Deps struct {
	Store          *store.Store
	Resources      []rest.Any
	Authenticators []authn.Authenticator // asked in order; a request that none knows is anonymous
	// Anonymous says whether requests without credentials may be about a path; they may be about all when nil. What they may do
	// there is the Authorizer's.
	Anonymous func(path string) bool
	// FrontProxy has the headers by which proxies before this server name users. Servers behind it may believe them: requests go on without.
	FrontProxy authn.FrontProxy
	Authorizer authz.Authorizer
	Audit      *audit.Log // may be nil
	Admission  []rest.Admission
	// Aggregator passes on requests for what other servers serve; nil: nothing is.
	Aggregator *aggregator.Aggregator
	// Fairness decides when a request is served; nil: at once, or refused when ReadsInFlight and WritesInFlight are.
	Fairness *fairness.Fairness
	Health   *run.Health // may be nil
	// Paths are served beside the API, by exact path, after authorization: /openid/v1/jwks and its kin. May be nil.
	Paths map[string]http.Handler
	// Led says whether the database has a majority; answers say where it has none. May be nil: it always has.
	Led func() bool
	// Open are served by exact path to anybody, before authentication: what they are asked must prove itself. May be nil.
	Open map[string]http.Handler
	Log  *slog.Logger
	// Metrics are served at /metrics, those of other components in this process among them. nil: our own alone.
	Metrics *prometheus.Registry
}

// NoMajority is a header of answers of a server whose database has no majority: clients do better elsewhere.
const NoMajority = "Yare-No-Majority"

// Server is the API server, a run.Component.
type Server struct {
	cfg  Config
	deps Deps
	pipe *rest.Pipeline
	// catalog is replaced whole when what is served changes; changing is held meanwhile.
	catalog  atomic.Pointer[catalog]
	changing sync.Mutex
	docs     *documents
	// naming are the headers that name users, to this server or to those behind it.
	naming  []authn.FrontProxy
	paths   map[string]http.Handler
	healthz *healthz.Endpoints
	meter   *meter
	reads   *limit
	writes  *limit
	opens   *limit // of requests to Deps.Open that are being read
	// gathering is how many watchers wait for what else there is to tell them.
	gathering atomic.Int64
}

// New returns a Server that serves the resources, or says which one is given twice.
func New(cfg Config, d Deps) (*Server, error) {
	if cfg.ReadsInFlight == 0 {
		cfg.ReadsInFlight = 400
	}
	if cfg.WritesInFlight == 0 {
		cfg.WritesInFlight = 200
	}
	if cfg.Grace == 0 {
		cfg.Grace = 2 * time.Second
	}
	if d.Log == nil || d.Store == nil || d.Authorizer == nil {
		return nil, errors.New("the API server needs a log, a store and an authorizer")
	}
	s := &Server{
		cfg: cfg, deps: d,
		pipe:   rest.NewPipeline(d.Store, d.Admission),
		reads:  newLimit(cfg.ReadsInFlight),
		writes: newLimit(cfg.WritesInFlight),
		opens:  newLimit(openPlaces),
		naming: []authn.FrontProxy{aggregator.Headers(), d.FrontProxy},
	}
	if d.Metrics == nil {
		d.Metrics = prometheus.NewRegistry()
	}
	c, err := newCatalog(d.Resources, extensions{})
	if err != nil {
		return nil, err
	}
	s.catalog.Store(c)
	s.meter = newMeter(d.Metrics, cfg.Version, d.Store, func() []rest.Any { return s.catalog.Load().all }, s.reads, s.writes)
	s.pipe.Observe = s.meter.gate.admitted
	if d.Fairness != nil {
		d.Metrics.MustRegister(d.Fairness)
	}
	if d.Audit != nil {
		d.Metrics.MustRegister(d.Audit)
	}
	s.docs = newDocuments(d.Resources, cfg.Version, d.Store, d.Aggregator)
	s.healthz = healthz.New(s.health, "healthz", "livez", "readyz")
	s.paths = s.plainPaths()
	return s, nil
}

// Warm does early what the first write would have to wait for, some 50 ms. Call it beside something that waits, such
// as the start of the database; it is optional.
func (s *Server) Warm() { s.pipe.Warm() }

// Name is the component's name.
func (s *Server) Name() string { return "apiserver" }

// Run serves until ctx ends. It is ready at once: listeners accept before.
func (s *Server) Run(ctx context.Context, ready func()) error {
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	open, end := context.WithCancel(base)
	defer end()
	base = context.WithValue(base, streams{}, open)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	srv := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withCork,
		ReadHeaderTimeout: 32 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 20,
		Protocols:         protocols,
		// A deadline of a stream does not end what is being written to the connection, so that has its own.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReceiveBufferPerStream: 1 << 18, MaxReceiveBufferPerConnection: 1 << 22, WriteByteTimeout: requestTimeout},
		ErrorLog: log.New(handshakeLog{slog.NewLogLogger(s.deps.Log.With("component", "apiserver").Handler(), slog.LevelDebug), s.meter.gate.handshakes}, "", 0),
	}
	if s.cfg.TLS != nil {
		srv.TLSConfig = s.cfg.TLS.Clone()
	}
	var wg sync.WaitGroup
	failed := make(chan error, len(s.cfg.Listeners))
	for _, l := range s.cfg.Listeners {
		wg.Go(func() {
			var err error
			if srv.TLSConfig != nil {
				err = srv.ServeTLS(corks{l}, "", "")
			} else {
				err = srv.Serve(l)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
		})
	}
	wg.Go(func() {
		if err := s.deps.Audit.Run(base); err != nil {
			s.deps.Log.Error("audit log closed", "err", err)
		}
	})
	ready()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	// Watches and streams end first, since they would go on for ever; other requests may finish.
	quit, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Grace)
	defer cancel()
	end()
	if srv.Shutdown(quit) != nil {
		stop()
		if cerr := srv.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}
	stop() // the audit log ends when no request can add to it any more
	wg.Wait()
	return err
}
