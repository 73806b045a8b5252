package healthz

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// lines are the answer's without comments and without what differs between processes.
func lines(body string) (out []string) {
	for _, l := range strings.Split(strings.TrimSpace(body), "\n") {
		if !strings.HasPrefix(l, "#") && !strings.HasPrefix(l, "process_start_time_seconds ") {
			out = append(out, l)
		}
	}
	return out
}

func TestServe(t *testing.T) {
	e := New(func(kind string) []Check {
		return []Check{{"ping", true}, {"etcd", kind != "readyz"}}
	}, "livez", "readyz")
	if !e.Is("livez") || e.Is("healthz") {
		t.Error("kinds")
	}
	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{"/livez", 200, "ok"},
		{"/livez?verbose", 200, "[+]ping ok\n[+]etcd ok\nlivez check passed\n"},
		{"/livez/etcd", 200, "ok"},
		{"/livez/other", 404, "404 page not found\n"},
		{"/readyz", 500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"},
		{"/readyz/etcd", 500, "internal server error: not ready\n"},
		{"/readyz?exclude=etcd", 200, "ok"},
		{"/readyz?exclude=etcd&exclude=x&exclude=b&verbose", 200,
			"[+]ping ok\n[+]etcd excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"b\",\"x\"\nreadyz check passed\n"},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		w := httptest.NewRecorder()
		kind, part, _ := strings.Cut(r.URL.Path[1:], "/")
		e.Serve(w, r, kind, part)
		if w.Code != c.code || w.Body.String() != c.text {
			t.Errorf("%s: %d %q", c.path, w.Code, w.Body)
		}
	}
}

func TestMetrics(t *testing.T) {
	up := false
	e := New(func(string) []Check { return []Check{{"ping", true}, {"etcd", up}} }, "healthz", "readyz")
	ask := func(path string) {
		r := httptest.NewRequest("GET", path, nil)
		kind, part, _ := strings.Cut(r.URL.Path[1:], "/")
		e.Serve(httptest.NewRecorder(), r, kind, part)
	}
	read := func() string {
		w := httptest.NewRecorder()
		e.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics/slis", nil))
		return w.Body.String()
	}
	ask("/readyz")
	ask("/readyz?exclude=etcd")
	ask("/readyz/etcd") // a part alone is not counted
	up = true
	// Nobody has asked for /healthz: reading does.
	first := read()
	if want := []string{
		`kubernetes_healthcheck{name="etcd",type="healthz"} 1`,
		`kubernetes_healthcheck{name="etcd",type="readyz"} 0`,
		`kubernetes_healthcheck{name="ping",type="healthz"} 1`,
		`kubernetes_healthcheck{name="ping",type="readyz"} 1`,
		`kubernetes_healthchecks_total{name="etcd",status="error",type="readyz"} 1`,
		`kubernetes_healthchecks_total{name="etcd",status="success",type="healthz"} 1`,
		`kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 1`,
		`kubernetes_healthchecks_total{name="ping",status="success",type="readyz"} 2`,
	}; !slices.Equal(lines(first), want) {
		t.Errorf("%s", first)
	}
	for _, has := range []string{"\nprocess_start_time_seconds ", "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n",
		"# TYPE kubernetes_healthcheck gauge\n", "# HELP kubernetes_healthchecks_total [STABLE] ", "# TYPE kubernetes_healthchecks_total counter\n"} {
		if !strings.Contains(first, has) {
			t.Errorf("%q is not in\n%s", has, first)
		}
	}
	if second := read(); !strings.Contains(second, `kubernetes_healthcheck{name="etcd",type="readyz"} 1`) ||
		!strings.Contains(second, `kubernetes_healthchecks_total{name="etcd",status="success",type="healthz"} 2`) {
		t.Errorf("%s", second)
	}
}
