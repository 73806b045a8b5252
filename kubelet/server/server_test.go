package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/reviews"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/run/healthz"
)

type pods []*corev1.Pod

func (p pods) All() []*corev1.Pod { return p }
func (p pods) Find(namespace, name string) *corev1.Pod {
	for _, x := range p {
		if x.Namespace == namespace && x.Name == name {
			return x
		}
	}
	return nil
}

// authority signs certificates of the test's own.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(c *x509.Certificate) *x509.Certificate {
	c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour), true
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &a.key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	got, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

func (a *authority) client(use x509.ExtKeyUsage, user string, groups ...string) *x509.Certificate {
	return a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: user, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{use}})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func runningPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
		{Name: "app", ContainerID: "books://1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		{Name: "waits", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}},
	}}}
}

// reviewer is an API server that answers reviews and writes down what it was asked.
type reviewer struct {
	client.Writer
	tokens  map[string]authenticationv1.UserInfo
	allows  func(authorizationv1.SubjectAccessReviewSpec) bool
	down    bool
	reviews []string
}

func (a *reviewer) Create(_ context.Context, o api.Object) (api.Object, error) {
	if a.down {
		return nil, errors.New("connection refused")
	}
	switch r := o.(type) {
	case *authenticationv1.TokenReview:
		a.reviews = append(a.reviews, "token "+r.Spec.Token)
		r.Status.User, r.Status.Authenticated = a.tokens[r.Spec.Token], a.tokens[r.Spec.Token].Username != ""
	case *authorizationv1.SubjectAccessReview:
		at := r.Spec.ResourceAttributes
		a.reviews = append(a.reviews, fmt.Sprintf("%s %v may %s %s/%s %s", r.Spec.User, r.Spec.Groups, at.Verb, at.Resource, at.Subresource, at.Name))
		r.Status.Allowed = a.allows != nil && a.allows(r.Spec)
	}
	return o, nil
}

// asked returns the reviews so far and forgets them.
func (a *reviewer) asked() []string {
	r := a.reviews
	a.reviews = nil
	return r
}

// pinged are checks of which one fails.
func pinged() *healthz.Endpoints {
	return healthz.New(func(string) []healthz.Check {
		return []healthz.Check{{Name: "ping", OK: true}, {Name: "syncloop"}}
	}, "healthz")
}

func newServer(t *testing.T, ca *authority, api *reviewer) http.Handler {
	var asks *reviews.Reviews
	if api != nil {
		asks = reviews.New(api)
	}
	s, err := New("127.0.0.1:0", Deps{Pods: pods{runningPod("a")}, CRI: cri.InProcess(kubelettest.NewRuntime()), TLS: &tls.Config{ClientCAs: ca.pool()},
		Reviews: asks, Node: "n1", Health: pinged(), Metrics: prometheus.NewRegistry(), Probes: prometheus.NewRegistry(), Configz: map[string]string{"k": "v"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s.Handler()
}

func TestWhoMayAsk(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	h := newServer(t, ca, nil)
	admin := ca.client(x509.ExtKeyUsageClientAuth, "admin", "system:masters")
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		path string
		want int
	}{
		{"health of nobody's", nil, "/healthz", 401},
		{"health", admin, "/healthz", 500},
		{"health of a part", admin, "/healthz/ping", 200},
		{"health of no part", admin, "/healthz/none", 404},
		{"no certificate", nil, "/pods", 401},
		{"administrator", admin, "/pods", 200},
		{"somebody", ca.client(x509.ExtKeyUsageClientAuth, "joe", "dev"), "/pods", 403},
		{"of another CA", foreign.client(x509.ExtKeyUsageClientAuth, "admin", "system:masters"), "/pods", 401},
		{"a server's certificate", ca.client(x509.ExtKeyUsageServerAuth, "admin", "system:masters"), "/pods", 401},
		{"no such path", admin, "/nothing", 404},
		{"configuration", admin, "/configz", 200},
		{"no such pod", admin, "/containerLogs/ns/none/app", 404},
		{"no such container", admin, "/containerLogs/ns/a/none", 404},
		{"bad option", admin, "/containerLogs/ns/a/app?tailLines=-1", 400},
		{"waits for its image", admin, "/containerLogs/ns/a/waits", 400},
		{"no previous run", admin, "/containerLogs/ns/a/app?previous=true", 400},
		{"its container was removed", admin, "/containerLogs/ns/a/app", 400},
		{"exec in what does not run", admin, "/exec/ns/a/waits?command=x&output=1", 400},
		{"exec in another pod of the name", admin, "/exec/ns/a/other/app?command=x&output=1", 404},
		{"bad port", admin, "/portForward/ns/a?port=99999", 400},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.TLS = &tls.ConnectionState{}
		if c.cert != nil {
			r.TLS.PeerCertificates = []*x509.Certificate{c.cert}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			b, _ := io.ReadAll(w.Body)
			t.Errorf("%s: %d %s, want %d", c.name, w.Code, b, c.want)
		}
	}
}

// A session changes something, however it is asked for: exec over GET needs the right to create.
func TestSessionsNeedCreate(t *testing.T) {
	ca := newAuthority(t)
	reviewer := &reviewer{}
	h := newServer(t, ca, reviewer)
	cert := ca.client(x509.ExtKeyUsageClientAuth, "joe")
	for _, c := range []struct{ method, path, upgrade, want string }{
		{"GET", "/exec/ns/a/app", "websocket", "create nodes/proxy"}, {"POST", "/exec/ns/a/app", "", "create nodes/proxy"},
		{"GET", "/stats/summary", "", "get nodes/stats"}, {"GET", "/metrics", "", "get nodes/metrics"}, {"GET", "/metrics/cadvisor", "", "get nodes/metrics"}, {"GET", "/metrics/probes", "", "get nodes/metrics"},
		{"GET", "/metrics/slis", "", "get nodes/metrics"}, {"GET", "/containerLogs/ns/a/app", "", "get nodes/proxy"},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		r.Header.Set("Upgrade", c.upgrade)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		want := "joe [system:authenticated] may " + c.want + " n1"
		if seen := reviewer.asked(); w.Code != 403 || len(seen) > 1 || len(seen) == 1 && seen[0] != want {
			t.Errorf("%s %s: %d %v, want %s", c.method, c.path, w.Code, seen, want)
		}
	}
}

// What /healthz found is in /metrics/slis.
func TestHealthIsCounted(t *testing.T) {
	ca := newAuthority(t)
	h := newServer(t, ca, nil)
	get := func(path string) string {
		r := httptest.NewRequest("GET", path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.client(x509.ExtKeyUsageClientAuth, "admin", "system:masters")}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Body.String()
	}
	get("/healthz")
	get("/healthz")
	text := get("/metrics/slis")
	for _, want := range []string{`kubernetes_healthcheck{name="ping",type="healthz"} 1`, `kubernetes_healthcheck{name="syncloop",type="healthz"} 0`,
		`kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 2`, "process_start_time_seconds "} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
}

// Upstream's fine rights: who may see one thing needs no right to all, and who has that needs no other.
func TestFineRights(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.client(x509.ExtKeyUsageClientAuth, "joe")
	for path, fine := range map[string]string{"/healthz/ping": "healthz", "/pods": "pods", "/configz": "configz"} {
		for right, want := range map[string]int{fine: 200, "proxy": 200, "metrics": 403} {
			h := newServer(t, ca, &reviewer{allows: func(r authorizationv1.SubjectAccessReviewSpec) bool { return r.ResourceAttributes.Subresource == right }})
			r := httptest.NewRequest("GET", path, nil)
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s with the right to %s: %d, want %d", path, right, w.Code, want)
			}
		}
	}
}

// A token is asked about once in two minutes, what is allowed once in five and what is not twice a minute, as upstream.
func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &reviewer{tokens: map[string]authenticationv1.UserInfo{"good": {Username: "joe", UID: "7", Groups: []string{"dev"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}}}},
			allows: func(r authorizationv1.SubjectAccessReviewSpec) bool {
				return r.ResourceAttributes.Subresource == "metrics" && r.UID == "7" && r.Extra["k"][0] == "v"
			}}
		h := newServer(t, newAuthority(t), api)
		get := func(path, token string) int {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Authorization", token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		for _, c := range []struct {
			name        string
			after       time.Duration
			path, token string
			want        int
			asked       []string
		}{
			{"first", 0, "/metrics", "Bearer good", 200, []string{"token good", "joe [dev system:authenticated] may get nodes/metrics n1"}},
			{"kept", time.Minute, "/metrics", "bearer good", 200, nil},
			{"denied", 0, "/stats/summary", "Bearer good", 403, []string{"joe [dev system:authenticated] may get nodes/stats n1"}},
			{"denied again", 20 * time.Second, "/stats/summary", "Bearer good", 403, nil},
			{"denied later", 11 * time.Second, "/stats/summary", "Bearer good", 403, []string{"joe [dev system:authenticated] may get nodes/stats n1"}},
			{"the token later", time.Minute, "/metrics", "Bearer good", 200, []string{"token good"}},
			{"both later", 3 * time.Minute, "/metrics", "Bearer good", 200, []string{"token good", "joe [dev system:authenticated] may get nodes/metrics n1"}},
			{"another's", 0, "/metrics", "Bearer bad", 401, []string{"token bad"}},
			{"another's again", 0, "/metrics", "Bearer bad", 401, nil},
			{"none", 0, "/metrics", "", 401, nil},
			{"a password", 0, "/metrics", "Basic good", 401, nil},
		} {
			time.Sleep(c.after)
			if got := get(c.path, c.token); got != c.want {
				t.Errorf("%s: %d, want %d", c.name, got, c.want)
			}
			if asked := api.asked(); !slices.Equal(asked, c.asked) {
				t.Errorf("%s: asked %q, want %q", c.name, asked, c.asked)
			}
		}
		// Nothing is kept of an API server that does not answer.
		for _, c := range []struct {
			down bool
			path string
			want int
		}{{true, "/stats/summary", 500}, {false, "/stats/summary", 403}} {
			time.Sleep(time.Minute)
			if api.down = c.down; get(c.path, "Bearer good") != c.want {
				t.Errorf("API server down %v: want %d", c.down, c.want)
			}
		}
	})
}

// TestCadvisor: what Prometheus is sent is compressed if it can read that, and the same.
func TestCadvisor(t *testing.T) {
	const text = "container_last_seen 1\n"
	s := &Server{Deps: Deps{Cadvisor: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}}}
	for accepts, want := range map[string]bool{"": false, "gzip": true, "deflate, gzip;q=0.5": true, "gzip; q=0": false, "gzip;q=0.000": false, "identity, xgzip": false} {
		r, w := httptest.NewRequest("GET", "/metrics/cadvisor", nil), httptest.NewRecorder()
		r.Header.Set("Accept-Encoding", accepts)
		s.cadvisor(w, r)
		got := w.Result()
		if compressed := got.Header.Get("Content-Encoding") == "gzip"; compressed != want || got.Header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
			t.Errorf("%q: %v", accepts, got.Header)
		}
		body := io.Reader(w.Body)
		if want {
			z, err := gzip.NewReader(w.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		if b, err := io.ReadAll(body); err != nil || string(b) != text {
			t.Errorf("%q: %q, %v", accepts, b, err)
		}
	}
}

func TestHealthzNeedsNoCredentials(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := Healthz(ctx, l.Addr().String(), pinged()); err == nil {
		t.Error("served where another listens")
	}
	l.Close()
	done := make(chan error)
	go func() { done <- Healthz(ctx, l.Addr().String(), pinged()) }()
	for want, path := range map[string]string{"200 ok": "/healthz?exclude=syncloop", "404 404 page not found": "/pods"} {
		var got *http.Response
		for got == nil { // until it listens
			got, _ = http.Get("http://" + l.Addr().String() + path)
		}
		text, _ := io.ReadAll(got.Body)
		got.Body.Close()
		if have := fmt.Sprint(got.StatusCode, " ", strings.TrimSpace(string(text))); have != want {
			t.Errorf("%s: %s, want %s", path, have, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLogOf(t *testing.T) {
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "r://old"}}
	for _, c := range []struct {
		name     string
		status   corev1.ContainerStatus
		previous bool
		want     string
	}{
		{"running", corev1.ContainerStatus{ContainerID: "r://now", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, LastTerminationState: ended}, false, "now"},
		{"before that", corev1.ContainerStatus{ContainerID: "r://now", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, LastTerminationState: ended}, true, "old"},
		{"backing off", corev1.ContainerStatus{ContainerID: "r://old", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}, LastTerminationState: ended}, false, "old"},
		{"ended", corev1.ContainerStatus{ContainerID: "r://end", State: ended}, false, "end"},
		{"no image", corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}, false, "image can't be pulled"},
		{"creating", corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}, false, "waiting to start: ContainerCreating"},
	} {
		got, err := logOf(runningPod("a"), &c.status, c.previous)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
