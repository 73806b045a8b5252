package apiserver

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/run/healthz"
)

// known says that the call is for a kind that is served.
func (c *call) known() bool {
	a, ok := c.catalog.at(c.t)
	return ok && a.Has(c.t.sub)
}

// nothing answers a path at which nothing is, as upstream does: with a Status below the versions of groups that are served.
func (c *call) nothing() error {
	for at := range c.catalog.kinds {
		if c.t.isObject && at.Group == c.t.group && at.Version == c.t.version {
			return apierrors.NewGenericServerResponse(http.StatusNotFound, c.t.verb, schema.GroupResource{}, "", "", 0, false)
		}
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(http.StatusNotFound)
	_, err := io.WriteString(c.w, "404 page not found\n")
	return ignore(err)
}

// plainPaths are the paths that are served whole. /apis/..., /openapi/v3/... and health checks are found by prefix.
func (s *Server) plainPaths() map[string]http.Handler {
	ps := map[string]http.Handler{
		"/version": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			b, err := json.MarshalIndent(s.cfg.Version, "", "  ")
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", typeJSON)
			writeAll(w, b)
		}),
		"/metrics":      promhttp.HandlerFor(s.meter.registry, promhttp.HandlerOpts{}),
		"/metrics/slis": s.healthz.Metrics(),
	}
	for p, h := range s.deps.Paths {
		ps[p] = h
	}
	return ps
}

// writeAll writes to a client that may have gone away.
func writeAll(w io.Writer, b []byte) {
	_, err := w.Write(b)
	_ = ignore(err)
}

// plain serves everything that is no API object.
func (c *call) plain() error {
	path := strings.TrimSuffix(c.t.path, "/")
	if path == "" {
		path = "/"
	}
	if h := c.s.paths[path]; h != nil {
		if path == "/version" && c.r.Method != http.MethodGet {
			return c.notAllowed()
		}
		h.ServeHTTP(c.w, c.r)
		return nil
	}
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		if strings.HasPrefix(path, "/api") && slices.Contains(c.s.listPaths(), path) {
			return c.notAllowed()
		}
		return c.nothing()
	}
	first, rest, _ := strings.Cut(path[1:], "/")
	switch first {
	case "":
		b, err := json.MarshalIndent(metav1.RootPaths{Paths: c.s.listPaths()}, "", "  ")
		if err != nil {
			return err
		}
		c.send(format{}, http.StatusOK, b)
		return nil
	case "healthz", "livez", "readyz":
		c.s.healthz.Serve(c.w, c.r, first, rest)
		return nil
	case "api", "apis":
		return c.catalog.disco.serve(c, first, rest)
	case "openapi":
		return c.s.docs.serve(c, rest)
	case "debug":
		return c.debug(rest)
	case "logs":
		return c.logs()
	}
	return c.nothing()
}

func (s *Server) listPaths() []string {
	ps := []string{"/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz"}
	for p := range s.paths {
		ps = append(ps, p)
	}
	for _, a := range s.catalog.Load().all {
		gv := "/apis/" + a.Kind.APIVersion()
		if a.Kind.Group == "" {
			gv = "/api/" + a.Kind.Version
		}
		ps = append(ps, gv)
	}
	if elsewhere := s.deps.Aggregator.State(); elsewhere != nil {
		for _, svc := range elsewhere.Remote() {
			ps = append(ps, "/apis/"+svc.Spec.Group+"/"+svc.Spec.Version)
		}
	}
	slices.Sort(ps)
	return slices.Compact(ps)
}

// health makes the checks of /healthz, /livez and /readyz. A process that answers lives; it is ready when all its components are, and
// healthy when what it depends on elsewhere answers.
func (s *Server) health(which string) []healthz.Check {
	checks := []healthz.Check{{Name: "ping", OK: true}}
	if s.deps.Health == nil {
		return checks
	}
	for _, h := range s.deps.Health.Checks() {
		if !h.Probe || which != "livez" {
			checks = append(checks, healthz.Check{Name: h.Name, OK: h.Ready || which != "readyz" && !h.Probe})
		}
	}
	return checks
}
