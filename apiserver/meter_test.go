package apiserver_test

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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// gathered is what a registry has of a metric: its value, or its count, by its labels "a=b,c=d", empty ones left out.
func gathered(t *testing.T, r *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if v > 0 {
				var ls []string
				for _, l := range m.GetLabel() {
					if l.GetValue() != "" {
						ls = append(ls, l.GetName()+"="+l.GetValue())
					}
				}
				slices.Sort(ls)
				out[strings.Join(ls, ",")] = v
			}
		}
	}
	return out
}

// TestMetrics has each of the metrics that dashboards ask for, with upstream's labels.
func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\nomitStages: [RequestReceived]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Metrics = registry
		servertest.PutAs(t, d.Store, api.FlowSchemaKind, bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy())
		d.Fairness = fairness.New(d.Store, 100)
		log, err := audit.New(audit.Config{PolicyFile: policy}, d.Log)
		if err != nil {
			t.Fatal(err)
		}
		d.Audit = log
		d.Resources = append(d.Resources, rest.Register(api.EndpointsKind, &rest.Resource[*corev1.Endpoints]{Deprecated: "of old"}))
		d.Admission = []rest.Admission{{Name: "Own", Validate: func(_ context.Context, a *rest.Admitting) error {
			if a.Key.Name == "bad" {
				return errors.New("bad")
			}
			return nil
		}}}
	})
	const maps = "/api/v1/namespaces/default/configmaps"
	for _, r := range []struct {
		method, path, body, user string
		code                     int
	}{
		{"POST", maps, `{"metadata":{"name":"a"}}`, "admin", 201},
		{"POST", maps, `{"metadata":{"name":"bad"}}`, "admin", 403},
		{"GET", maps + "/a", "", "jane@example.com", 200},
		{"GET", maps, "", "nobody", 403},
		{"GET", maps, "", "broken", 401},
		{"GET", "/api/v1/namespaces/default/endpoints", "", "admin", 200},
		{"POST", maps + "?timeout=1ns", `{"metadata":{"name":"c"}}`, "admin", 504},
	} {
		if w := do(t, s, r.method, r.path, r.body, "X-User", r.user); w.Code != r.code {
			t.Errorf("%s %s: %d %s", r.method, r.path, w.Code, w.Body)
		}
	}
	const of = "component=apiserver,resource=configmaps,scope="
	for _, tt := range []struct {
		name   string
		labels string
		value  float64
	}{
		{"apiserver_request_total", "code=201," + of + "resource,verb=POST,version=v1", 1},
		{"apiserver_request_duration_seconds", of + "resource,verb=GET,version=v1", 1},
		{"apiserver_request_sli_duration_seconds", of + "resource,verb=POST,version=v1", 3},
		{"apiserver_request_terminations_total", "code=504," + of + "resource,verb=POST,version=v1", 1},
		{"apiserver_response_sizes", of + "resource,verb=GET,version=v1", 1},
		{"apiserver_resource_objects", "resource=configmaps", 1},
		{"apiserver_storage_objects", "resource=configmaps", 1},
		{"authentication_attempts", "result=success", 6},
		{"authentication_attempts", "result=error", 1},
		{"authentication_duration_seconds", "result=success", 6},
		{"authenticated_user_requests", "username=admin", 4},
		{"authenticated_user_requests", "username=email_id", 1},
		{"authenticated_user_requests", "username=other", 1},
		{"authorization_attempts_total", "result=allowed", 5},
		{"authorization_attempts_total", "result=no-opinion", 1},
		{"authorization_duration_seconds", "result=allowed", 5},
		{"apiserver_admission_step_admission_duration_seconds", "operation=CREATE,rejected=false,type=validate", 2}, // one could not be written in time

		{"apiserver_admission_step_admission_duration_seconds", "operation=CREATE,rejected=true,type=validate", 1},
		{"apiserver_admission_controller_admission_duration_seconds", "name=Own,operation=CREATE,rejected=true,type=validate", 1},
		{"apiserver_audit_event_total", "", 7},
		{"apiserver_audit_level_total", "level=Metadata", 7},
		{"apiserver_flowcontrol_dispatched_requests_total", "flow_schema=catch-all,priority_level=catch-all", 6},
		{"apiserver_requested_deprecated_apis", "resource=endpoints,version=v1", 1},
		{"kubernetes_build_info", "git_version=v1.37.2+yare,major=1,minor=37", 1},
		{"etcd_request_duration_seconds", "", 0}, // the store's, which this server was given without metrics
	} {
		if got := gathered(t, registry, tt.name)[tt.labels]; got != tt.value {
			t.Errorf("%s{%s} is %v, not %v, of %v", tt.name, tt.labels, got, tt.value, gathered(t, registry, tt.name))
		}
	}
	for _, name := range []string{"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total", "go_goroutines"} {
		if len(gathered(t, registry, name)) == 0 {
			t.Errorf("no %s", name)
		}
	}
}

// certificate is one for 127.0.0.1 that is its own authority, for both sides.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A handshake that fails is counted, and a client certificate by how long it lasts.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert := certificate(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	registry := prometheus.NewRegistry()
	s := serve(t, func(c *apiserver.Config, d *apiserver.Deps) {
		c.Listeners, d.Metrics = []net.Listener{l}, registry
		c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, ClientCAs: pool} // the authenticator verifies
		d.Authenticators = []authn.Authenticator{authn.Certificates(pool)}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	<-up
	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprint(plain, "no handshake at all\r\n\r\n")
	if _, err := io.ReadAll(plain); err != nil { // the server closes it after it has told the log
		t.Log(err)
	}
	secure, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	fmt.Fprint(secure, "GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if _, err := io.ReadAll(secure); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for name, want := range map[string]float64{"apiserver_tls_handshake_errors_total": 1, "apiserver_client_certificate_expiration_seconds": 1} {
		if got := gathered(t, registry, name)[""]; got != want {
			t.Errorf("%s is %v", name, got)
		}
	}
}
