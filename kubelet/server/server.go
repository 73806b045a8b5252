// Package server is the kubelet's HTTPS server: what the API server, metrics collectors and curious operators ask of a
// node. It replaces upstream's kubelet/server.
//
//	GET      /healthz, /healthz/<check>
//	GET      /pods                                   the node's pods as a v1 PodList
//	GET      /containerLogs/<ns>/<pod>/<container>   follow, previous, tailLines, sinceSeconds, sinceTime, timestamps, limitBytes, stream
//	GET,POST /exec, /attach/<ns>/<pod>[/<uid>]/<container>, /portForward/<ns>/<pod>[/<uid>]
//	POST     /run/<ns>/<pod>[/<uid>]/<container>?cmd=
//	GET      /stats/summary, /metrics, /metrics/resource, /metrics/cadvisor, /metrics/probes, /metrics/slis, /configz
//
// Exec, attach and port-forward sessions are passed on to the URL that the runtime names, and the kubelet does not look
// into them, but for the protocols that package stream brings to runtimes which do not know them.
//
// Whoever asks must show a certificate of the cluster's CA or a bearer token that the API server knows; then the API server decides what he
// may (Reviews). Nobody is let in anonymously; Healthz is a server of its own. Sessions end with the server.
package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/client/reviews"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/run/healthz"
)

// Pods are the pods of this node.
type Pods interface {
	All() []*corev1.Pod
	Find(namespace, name string) *corev1.Pod
}

// Deps is what a Server works with.
type Deps struct {
	Pods Pods
	CRI  *cri.Client
	// TLS has the server's certificate and, as ClientCAs, whose clients are believed.
	TLS *tls.Config
	// Reviews say who asks and what he may; nil knows no tokens and allows the group system:masters alone.
	Reviews *reviews.Reviews
	// Node is this node's name.
	Node string
	// Health are the checks of /healthz, which /metrics/slis tells of; nil: that it answers.
	Health  *healthz.Endpoints
	Stats   func(ctx context.Context) (*statsapi.Summary, error)
	Metrics prometheus.Gatherer
	// Probes is what /metrics/probes shows; nil: nothing.
	Probes prometheus.Gatherer
	// Resource is what /metrics/resource shows.
	Resource func(ctx context.Context) (prometheus.Gatherer, error)
	// Cadvisor writes what /metrics/cadvisor shows, in Prometheus' text format.
	Cadvisor func(ctx context.Context, w io.Writer) error
	Configz  any
	Log      *slog.Logger
}

// Server serves one address.
type Server struct {
	address string
	Deps
	runtime *http.Transport // to the sessions that the runtime serves
}

// New returns a Server for a host:port address.
func New(address string, d Deps) (*Server, error) {
	if d.TLS == nil || d.TLS.ClientCAs == nil {
		return nil, errors.New("kubelet server needs a certificate and a client CA")
	}
	if d.Health == nil {
		d.Health = healthz.New(func(string) []healthz.Check { return []healthz.Check{{Name: "ping", OK: true}} }, "healthz")
	}
	if d.Probes == nil {
		d.Probes = prometheus.NewRegistry()
	}
	return &Server{address: address, Deps: d, runtime: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
	}}, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer s.runtime.CloseIdleConnections()
	config := s.TLS.Clone()
	config.ClientAuth = tls.RequestClientCert // checked by us, who say what is wrong
	config.NextProtos = []string{"http/1.1"}  // sessions take over their connection
	// Sessions hijack their connections; their contexts end them.
	sessions, end := context.WithCancel(context.WithoutCancel(ctx))
	h := &http.Server{
		Handler: s.Handler(), TLSConfig: config, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 90 * time.Second,
		BaseContext: func(net.Listener) context.Context { return sessions },
		ErrorLog:    slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- h.ServeTLS(l, "", "") }()
	ready()
	select {
	case err = <-failed:
		end()
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	end()
	err = h.Close()
	<-failed
	return err
}

// Healthz serves /healthz, and nothing else, to everybody who reaches the host:port address, until ctx ends.
func Healthz(ctx context.Context, address string, checks *healthz.Endpoints) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", health(checks))
	mux.HandleFunc("GET /healthz/{check}", health(checks))
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 90 * time.Second}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func health(checks *healthz.Endpoints) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { checks.Serve(w, r, "healthz", r.PathValue("check")) }
}

// Handler returns what is served, with the checks of who asks.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern, part string, f http.HandlerFunc) {
		mux.Handle(pattern, s.checked(f, part))
	}
	// Who may see one of these alone needs no right to everything.
	fine := func(pattern, part string, f http.HandlerFunc) {
		mux.Handle(pattern, s.checked(f, part, "proxy"))
	}
	fine("GET /healthz", "healthz", health(s.Health))
	fine("GET /healthz/{check}", "healthz", health(s.Health))
	fine("GET /pods", "pods", s.pods)
	handle("GET /containerLogs/{namespace}/{pod}/{container}", "proxy", s.logs)
	for _, verb := range []string{"GET", "POST"} {
		for _, path := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
			handle(verb+" /exec"+path, "proxy", s.exec)
			handle(verb+" /attach"+path, "proxy", s.attach)
		}
		handle(verb+" /portForward/{namespace}/{pod}", "proxy", s.portForward)
		handle(verb+" /portForward/{namespace}/{pod}/{uid}", "proxy", s.portForward)
	}
	handle("POST /run/{namespace}/{pod}/{container}", "proxy", s.run)
	handle("POST /run/{namespace}/{pod}/{uid}/{container}", "proxy", s.run)
	handle("GET /stats/summary", "stats", s.summary)
	handle("GET /metrics", "metrics", promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{}).ServeHTTP)
	handle("GET /metrics/resource", "metrics", s.resource)
	handle("GET /metrics/cadvisor", "metrics", s.cadvisor)
	handle("GET /metrics/probes", "metrics", promhttp.HandlerFor(s.Probes, promhttp.HandlerOpts{}).ServeHTTP)
	handle("GET /metrics/slis", "metrics", s.Health.Metrics().ServeHTTP)
	fine("GET /configz", "configz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"kubeletconfig": s.Configz})
	})
	return mux
}

// checked serves f to those who may use one of the parts.
func (s *Server) checked(f http.HandlerFunc, parts ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := s.Reviews.Identify(r, s.TLS.ClientCAs)
		if err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			s.Log.Debug("request of nobody known", "path", r.URL.Path, "err", err)
			return
		}
		r.Header.Del("Authorization") // for nobody behind us
		a := reviews.Access{User: *user, Verb: "get", Node: s.Node}
		if r.Method == http.MethodPost || r.Header.Get("Upgrade") != "" {
			a.Verb = "create" // also sessions that are opened by GET
		}
		for _, a.Part = range parts {
			allowed, err := s.Reviews.Allowed(r.Context(), a)
			if err != nil {
				s.Log.Warn("request cannot be authorized", "user", a.User.Username, "path", r.URL.Path, "err", err)
				http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", a.User.Username, a.Verb, parts), http.StatusInternalServerError)
				return
			}
			if allowed {
				f(w, r)
				return
			}
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", a.User.Username, a.Verb, parts), http.StatusForbidden)
	})
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, p := range s.Pods.All() {
		list.Items = append(list.Items, *p)
	}
	answer(w, list)
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	sum, err := s.Stats(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, sum)
}

func (s *Server) resource(w http.ResponseWriter, r *http.Request) {
	g, err := s.Resource(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	promhttp.HandlerFor(g, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// cadvisor sends thousands of lines that differ little: compressed they are a thirtieth. What cannot be sent is for nobody to see any more.
func (s *Server) cadvisor(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Vary", "Accept-Encoding")
	out := io.Writer(w)
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		w.Header().Set("Content-Encoding", "gzip")
		z := compressors.Get().(*gzip.Writer)
		z.Reset(w)
		defer func() {
			z.Close()
			compressors.Put(z)
		}()
		out = z
	}
	if err := s.Cadvisor(r.Context(), out); err != nil {
		s.Log.Debug("metrics are not sent", "err", err)
	}
}

// compressors take more than a megabyte each.
var compressors = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // there is such a level
	return z
}}

// acceptsGzip reads an Accept-Encoding: "gzip, deflate;q=0.5".
func acceptsGzip(header string) bool {
	for _, part := range strings.Split(header, ",") {
		name, q, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) == "gzip" {
			q = strings.ReplaceAll(q, " ", "")
			return q != "q=0" && strings.Trim(q, "0.") != "q="
		}
	}
	return false
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(b)
}

// find returns the pod and the container that the path names; it answers the request itself where there are none.
func (s *Server) find(w http.ResponseWriter, r *http.Request) (*corev1.Pod, *corev1.ContainerStatus, bool) {
	pod := s.Pods.Find(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil || r.PathValue("uid") != "" && string(pod.UID) != r.PathValue("uid") {
		http.Error(w, fmt.Sprintf("pod %q not found", r.PathValue("namespace")+"/"+r.PathValue("pod")), http.StatusNotFound)
		return nil, nil, false
	}
	name := r.PathValue("container")
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return pod, &list[i], true
			}
		}
	}
	http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
	return nil, nil, false
}

// id returns the runtime's ID of "runtime://id".
func id(containerID string) string {
	_, id, _ := strings.Cut(containerID, "://")
	return id
}
