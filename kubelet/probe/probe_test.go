package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func portOf(t *testing.T, raw string) int {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHTTP(t *testing.T) {
	h := http.NewServeMux()
	h.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-A") != "1" || r.Host != "name" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	h.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("a") != "b" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	h.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	h.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	})
	h.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	h.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	for _, c := range []struct {
		path   string
		server string
		ok     bool
		text   string
	}{
		{"/ok", plain.URL, true, ""}, {"/ok", secure.URL, true, ""}, {"query?a=b", plain.URL, true, ""},
		{"/bad", plain.URL, false, "statuscode: 503"}, {"/none", plain.URL, false, "404"},
		{"/away", plain.URL, true, ""}, // a redirect elsewhere is an answer
		{"/here", plain.URL, false, "503"}, {"/slow", plain.URL, false, "deadline exceeded"},
	} {
		get := &corev1.HTTPGetAction{Path: c.path, Port: intstr.FromInt(portOf(t, c.server)), HTTPHeaders: []corev1.HTTPHeader{{Name: "X-A", Value: "1"}, {Name: "Host", Value: "name"}}}
		if strings.HasPrefix(c.server, "https") {
			get.Scheme = corev1.URISchemeHTTPS
		}
		ok, text, err := Runner{}.Run(t.Context(), corev1.ProbeHandler{HTTPGet: get}, 300*time.Millisecond, Subject{Container: &corev1.Container{}, IP: "127.0.0.1"})
		if err != nil || ok != c.ok || !strings.Contains(text, c.text) {
			t.Errorf("%s: %v %q %v", c.path, ok, text, err)
		}
	}
}

func TestTCPAndGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	checks := health.NewServer()
	checks.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, checks)
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	port := l.Addr().(*net.TCPAddr).Port
	bare := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(bare.Close)
	c := &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
	tcp := func(p intstr.IntOrString) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: p}}
	}
	rpc := func(service string, port int) corev1.ProbeHandler {
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port), Service: &service}}
	}
	for _, one := range []struct {
		name string
		h    corev1.ProbeHandler
		ok   bool
		bad  bool
	}{
		{"tcp", tcp(intstr.FromInt(port)), true, false}, {"by name", tcp(intstr.FromString("web")), true, false}, {"unknown name", tcp(intstr.FromString("none")), false, true},
		{"refused", tcp(intstr.FromInt(1)), false, false}, {"out of range", tcp(intstr.FromInt(70000)), false, true},
		{"serving", rpc("", port), true, false}, {"not serving", rpc("down", port), false, false}, {"unknown service", rpc("x", port), false, false},
		{"not gRPC", rpc("", portOf(t, bare.URL)), false, false}, {"none", corev1.ProbeHandler{}, false, true},
	} {
		ok, text, err := Runner{}.Run(t.Context(), one.h, 2*time.Second, Subject{Container: c, IP: "127.0.0.1"})
		if ok != one.ok || (err != nil) != one.bad {
			t.Errorf("%s: %v %q %v", one.name, ok, text, err)
		}
	}
}

func TestExec(t *testing.T) {
	for _, c := range []struct {
		exit int
		err  error
		ok   bool
		bad  bool
	}{{0, nil, true, false}, {1, nil, false, false}, {0, context.DeadlineExceeded, false, false}, {0, errors.New("no runtime"), false, true}} {
		r := Runner{Exec: func(context.Context, string, []string, time.Duration) (int, string, error) {
			return c.exit, "out", c.err
		}}
		ok, _, err := r.Run(t.Context(), corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, time.Second, Subject{})
		if ok != c.ok || (err != nil) != c.bad {
			t.Errorf("%v: %v %v", c, ok, err)
		}
	}
}

// set is a Set whose probes answer what the test says, in a bubble.
type set struct {
	*Set
	mu      sync.Mutex
	answers map[string]bool
	runs    map[string]int
}

func newSet() *set { return newCountedSet(nil) }

func newCountedSet(metrics *Metrics) *set {
	s := &set{answers: map[string]bool{}, runs: map[string]int{}}
	r := Runner{Exec: func(_ context.Context, _ string, cmd []string, _ time.Duration) (int, string, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.runs[cmd[0]]++
		if s.answers[cmd[0]] {
			return 0, "", nil
		}
		return 1, "", nil
	}}
	s.Set = NewSet(r, metrics.Of(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1"}}), func() {}, func(*corev1.Container, string, string) {})
	return s
}

func (s *set) say(what string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[what] = ok
}

func (s *set) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[what]
}

func exec(what string, delay, period, success, failure int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{what}}},
		InitialDelaySeconds: delay, PeriodSeconds: period, SuccessThreshold: success, FailureThreshold: failure}
}

func (s *set) want(t *testing.T, want Health) {
	t.Helper()
	synctest.Wait()
	if got, _ := s.Health("c1"); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestThresholdsAndDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet()
		defer s.Close()
		c := &corev1.Container{Name: "c", ReadinessProbe: exec("ready", 5, 2, 2, 3), LivenessProbe: exec("live", 0, 10, 1, 2)}
		s.say("ready", true)
		s.say("live", true)
		s.Sync(t.Context(), []Target{{Subject: Subject{Container: c, ID: "c1"}, Since: time.Now()}}, false)
		s.want(t, Health{Started: true})
		time.Sleep(5 * time.Second) // initial delay: the first of two successes
		s.want(t, Health{Started: true})
		time.Sleep(2 * time.Second)
		s.want(t, Health{Started: true, Ready: true})
		s.say("ready", false)
		time.Sleep(4 * time.Second)
		s.want(t, Health{Started: true, Ready: true})
		time.Sleep(2 * time.Second)
		s.want(t, Health{Started: true})
		s.say("live", false)
		time.Sleep(20 * time.Second)
		s.want(t, Health{Started: true, Unwell: "liveness"})
		before := s.count("live")
		time.Sleep(time.Minute)
		if s.count("live") != before {
			t.Error("a container that is given up is still probed")
		}
	})
}

func TestStartupHoldsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet()
		defer s.Close()
		c := &corev1.Container{Name: "c", StartupProbe: exec("start", 0, 1, 1, 10), ReadinessProbe: exec("ready", 0, 1, 1, 1), LivenessProbe: exec("live", 0, 1, 1, 1)}
		target := []Target{{Subject: Subject{Container: c, ID: "c1"}, Since: time.Now()}}
		s.say("ready", true)
		s.say("live", true)
		s.Sync(t.Context(), target, false)
		time.Sleep(5 * time.Second)
		s.want(t, Health{})
		if s.count("ready")+s.count("live") > 0 {
			t.Error("probed before it started")
		}
		s.say("start", true)
		time.Sleep(time.Second)
		s.want(t, Health{Started: true, Ready: true})
		// When the pod ends, only readiness goes on.
		s.Sync(t.Context(), target, true)
		synctest.Wait()
		live, ready := s.count("live"), s.count("ready")
		time.Sleep(5 * time.Second)
		if s.count("live") != live || s.count("ready") == ready {
			t.Error("probes of an ending pod:", s.runs)
		}
		s.Sync(t.Context(), nil, true)
		if _, known := s.Health("c1"); known {
			t.Error("a container that is gone is still watched")
		}
	})
}

func TestStartupGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet()
		defer s.Close()
		c := &corev1.Container{Name: "c", StartupProbe: exec("start", 0, 1, 1, 3)}
		s.Sync(t.Context(), []Target{{Subject: Subject{Container: c, ID: "c1"}, Since: time.Now()}}, false)
		time.Sleep(3 * time.Second)
		s.want(t, Health{Ready: true, Unwell: "startup"})
	})
}

func TestAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet()
		defer s.Close()
		c := &corev1.Container{Name: "c", StartupProbe: exec("start", 0, 1, 1, 3), ReadinessProbe: exec("ready", 0, 1, 1, 3)}
		s.Sync(t.Context(), []Target{{Subject: Subject{Container: c, ID: "c1"}, Adopted: true, Ready: true, Started: true}}, false)
		s.want(t, Health{Ready: true, Started: true})
		time.Sleep(3 * time.Second)
		s.want(t, Health{Started: true})
		if s.count("start") > 0 {
			t.Error("a container that had started was asked again")
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics()
		read := func() (lines []string) {
			r := prometheus.NewRegistry()
			r.MustRegister(m.Collectors()...)
			w := httptest.NewRecorder()
			promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics/probes", nil))
			for _, l := range strings.Split(strings.TrimSpace(w.Body.String()), "\n") {
				if l != "" && !strings.Contains(l, "_bucket{") && !strings.HasPrefix(l, "# TYPE") {
					lines = append(lines, l)
				}
			}
			return lines
		}
		want := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got := read(); !slices.Equal(got, want) {
				t.Errorf("%s:\n%s", what, strings.Join(got, "\n"))
			}
		}
		s := newCountedSet(m)
		c := &corev1.Container{Name: "c", ReadinessProbe: exec("ready", 0, 2, 1, 1), LivenessProbe: exec("live", 0, 10, 1, 9), StartupProbe: exec("start", 0, 1, 1, 9)}
		s.say("live", true)
		target := []Target{{Subject: Subject{Container: c, ID: "c1"}, Since: time.Now()}}
		s.Sync(t.Context(), target, false)
		time.Sleep(1500 * time.Millisecond)
		s.say("start", true)
		time.Sleep(1*time.Second + 2*time.Second)
		want("probed",
			"# HELP prober_probe_duration_seconds [ALPHA] Duration in seconds for a probe response.",
			`prober_probe_duration_seconds_sum{container="c",namespace="ns",pod="p",probe_type="Liveness"} 0`,
			`prober_probe_duration_seconds_count{container="c",namespace="ns",pod="p",probe_type="Liveness"} 1`,
			`prober_probe_duration_seconds_sum{container="c",namespace="ns",pod="p",probe_type="Startup"} 0`,
			`prober_probe_duration_seconds_count{container="c",namespace="ns",pod="p",probe_type="Startup"} 1`,
			"# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
			`prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u1",probe_type="Liveness",result="successful"} 1`,
			`prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u1",probe_type="Readiness",result="failed"} 2`,
			`prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u1",probe_type="Startup",result="failed"} 2`,
			`prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u1",probe_type="Startup",result="successful"} 1`,
		)
		// The next pod of the name is probed before the last one is forgotten: its durations stay.
		next := m.Of(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u2"}})
		next.observe("Readiness", "c", true, time.Second)
		s.Sync(t.Context(), target, true)
		s.Sync(t.Context(), nil, true)
		if got := strings.Join(read(), "\n"); strings.Contains(got, `"u1"`) || !strings.Contains(got, `"u2"`) || !strings.Contains(got, `_count{container="c",namespace="ns",pod="p",probe_type="Readiness"} 1`) {
			t.Error(got)
		}
		next.drop()
		next.drop()
		s.Close()
		want("forgotten")
	})
}
