package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"

	"github.com/yare-dev/yare/client/reviews"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/run/healthz"
)

// secure is where a component that runs alone tells how it is, as upstream's do on the same ports: /healthz, /livez and /readyz to
// everybody, /metrics and /metrics/slis to those who may get these paths. In `yare up` the API server tells it of all.
type secure struct {
	port                        int
	certFile, keyFile, clientCA string
}

func (s *secure) add(c *cobra.Command, port int) {
	l := c.Flags()
	l.IntVar(&s.port, "secure-port", port, "port to serve /healthz, /livez, /readyz, /metrics and /metrics/slis on by HTTPS; 0: none")
	l.StringVar(&s.certFile, "tls-cert-file", "", "certificate to serve them with (default: one that nobody has signed)")
	l.StringVar(&s.keyFile, "tls-private-key-file", "", "its key")
	l.StringVar(&s.clientCA, "client-ca-file", "", "authority of those who ask for metrics with a certificate (default: the kubeconfig's); others bring a token")
}

// serveOf returns c beside a server that tells how it is. That the port is taken keeps no component from its work.
func (p *peer) serveOf(s secure, cfg *rest.Config, c run.Component, metrics *prometheus.Registry) (run.Component, error) {
	switch {
	case s.port == 0:
		return c, nil
	case s.port < 0 || s.port > 65535:
		return nil, fmt.Errorf("--secure-port: %d is not a port", s.port)
	case (s.certFile == "") != (s.keyFile == ""):
		return nil, errors.New("--tls-cert-file and --tls-private-key-file belong together: give both or neither")
	}
	config, err := s.tls(cfg, c.Name())
	if err != nil {
		return nil, err
	}
	access, err := p.dial(cfg, c.Name())
	if err != nil {
		return nil, err
	}
	health := run.NewHealth()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h := &told{health: health, reviews: reviews.New(access), metrics: metrics, clients: config.ClientCAs, log: p.log}
	server := run.Func("server", func(ctx context.Context, ready func()) error {
		l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(s.port)))
		ready()
		if err != nil {
			p.log.Warn("health and metrics are not served: end what listens there, or choose another --secure-port", "port", s.port, "err", err)
			<-ctx.Done()
			return nil
		}
		return h.serve(ctx, l, config)
	})
	return run.Together(c.Name(), health.Watch(c), server), nil
}

// tls is what the server serves with and whose certificates it believes.
func (s *secure) tls(cfg *rest.Config, name string) (*tls.Config, error) {
	var cert tls.Certificate
	var err error
	if s.certFile != "" {
		cert, err = tls.LoadX509KeyPair(s.certFile, s.keyFile)
	} else {
		var host string
		if host, err = os.Hostname(); err == nil {
			var crt, key []byte
			if crt, key, err = certutil.GenerateSelfSignedCertKey(host, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, []string{name, "localhost"}); err == nil {
				cert, err = tls.X509KeyPair(crt, key)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate to serve with: %w", err)
	}
	if s.clientCA == "" && len(cfg.CAData) == 0 && cfg.CAFile == "" {
		// Nobody's certificate is believed; the pool must not be nil, which would be the host's authorities.
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: x509.NewCertPool()}, nil
	}
	ca, err := authority(cfg, s.clientCA)
	if err != nil {
		return nil, err
	}
	return serveWith(cert, ca)
}

// told is what is served.
type told struct {
	health  *run.Health
	reviews *reviews.Reviews
	metrics *prometheus.Registry
	clients *x509.CertPool
	log     *slog.Logger
}

func (h *told) serve(ctx context.Context, l net.Listener, config *tls.Config) error {
	config = config.Clone()
	config.ClientAuth = tls.RequestClientCert // checked by Reviews
	srv := &http.Server{Handler: h.handler(), TLSConfig: config, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 90 * time.Second,
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { srv.Close(); close(closed) })
	err := srv.ServeTLS(l, "", "")
	if !stop() {
		<-closed
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

func (h *told) handler() http.Handler {
	mux := http.NewServeMux()
	kinds := []string{"healthz", "livez", "readyz"}
	health := healthz.New(h.checks, kinds...)
	for _, kind := range kinds {
		serve := func(w http.ResponseWriter, r *http.Request) { health.Serve(w, r, kind, r.PathValue("check")) }
		mux.HandleFunc("GET /"+kind, serve)
		mux.HandleFunc("GET /"+kind+"/{check}", serve)
	}
	mux.Handle("GET /metrics", h.checked(promhttp.HandlerFor(h.metrics, promhttp.HandlerOpts{})))
	mux.Handle("GET /metrics/slis", h.checked(health.Metrics()))
	return mux
}

// checks are that it answers and, to be ready, that the component is.
func (h *told) checks(kind string) []healthz.Check {
	checks := []healthz.Check{{Name: "ping", OK: true}}
	for _, c := range h.health.Checks() {
		checks = append(checks, healthz.Check{Name: c.Name, OK: c.Ready || kind != "readyz"})
	}
	return checks
}

// checked serves next to those who may get the path.
func (h *told) checked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := h.reviews.Identify(r, h.clients)
		if err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		switch allowed, err := h.reviews.Allowed(r.Context(), reviews.Access{User: *user, Verb: "get", Path: r.URL.Path}); {
		case err != nil:
			h.log.Warn("request cannot be authorized", "user", user.Username, "path", r.URL.Path, "err", err)
			http.Error(w, fmt.Sprintf("Internal Server Error: %q: the API server does not say whether %q may get it", r.URL.Path, user.Username), http.StatusInternalServerError)
		case !allowed:
			http.Error(w, fmt.Sprintf("forbidden: User %q cannot get path %q", user.Username, r.URL.Path), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
