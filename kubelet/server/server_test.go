package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
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

func newServer(t *testing.T, ca *authority, authorize func(context.Context, Access) error) http.Handler {
	s, err := New("127.0.0.1:0", Deps{Pods: pods{runningPod("a")}, CRI: cri.InProcess(kubelettest.NewRuntime()), TLS: &tls.Config{ClientCAs: ca.pool()},
		Authorize: authorize, Metrics: prometheus.NewRegistry(), Configz: map[string]string{"k": "v"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
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
		{"health", admin, "/healthz", 200},
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
	var seen []string
	h := newServer(t, ca, func(_ context.Context, a Access) error {
		seen = append(seen, a.User+" "+a.Verb+" "+a.Part)
		return http.ErrNotSupported
	})
	cert := ca.client(x509.ExtKeyUsageClientAuth, "joe")
	for _, c := range []struct{ method, path, upgrade, want string }{
		{"GET", "/exec/ns/a/app", "websocket", "joe create proxy"}, {"POST", "/exec/ns/a/app", "", "joe create proxy"},
		{"GET", "/stats/summary", "", "joe get stats"}, {"GET", "/metrics", "", "joe get metrics"}, {"GET", "/containerLogs/ns/a/app", "", "joe get proxy"},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		r.Header.Set("Upgrade", c.upgrade)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 403 || seen[len(seen)-1] != c.want {
			t.Errorf("%s %s: %d %v", c.method, c.path, w.Code, seen)
		}
	}
}

// Upstream's fine rights: who may see one thing needs no right to all, and who has that needs no other.
func TestFineRights(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.client(x509.ExtKeyUsageClientAuth, "joe")
	for path, fine := range map[string]string{"/healthz": "healthz", "/pods": "pods", "/configz": "configz"} {
		for right, want := range map[string]int{fine: 200, "proxy": 200, "metrics": 403} {
			h := newServer(t, ca, func(_ context.Context, a Access) error {
				if a.Part == right {
					return nil
				}
				return http.ErrNotSupported
			})
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
