package server

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/stream/streamtest"
)

// Who has the right certificate may open sessions here without an API server, over each protocol that upstream's kubelet
// serves.
func TestSessions(t *testing.T) {
	ca := newAuthority(t)
	runtime := kubelettest.NewRuntime()
	runtime.Sessions = streamtest.New(t)
	if _, err := runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "ns", Uid: "u"}, Labels: map[string]string{spec.PodUIDLabel: "u"}}}); err != nil {
		t.Fatal(err)
	}
	s, err := New("127.0.0.1:0", Deps{Pods: pods{runningPod("a")}, CRI: cri.InProcess(runtime), TLS: &tls.Config{ClientCAs: ca.pool()},
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(s.Handler())
	front.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	front.StartTLS()
	t.Cleanup(front.Close)
	t.Cleanup(s.runtime.CloseIdleConnections)
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert := ca.client(x509.ExtKeyUsageClientAuth, "admin", "system:masters")
	at := func(path string, q url.Values) *url.URL {
		u, err := url.Parse(front.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		u.RawQuery = q.Encode()
		return u
	}
	streamtest.Target{
		Config: &rest.Config{Host: front.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true,
			CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
			KeyData:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})}},
		Command: func(cmd []string, in, errs, tty bool) *url.URL {
			q := url.Values{"output": {"1"}}
			for name, is := range map[string]bool{"input": in, "error": errs, "tty": tty} {
				if is {
					q.Set(name, "1")
				}
			}
			if cmd == nil {
				return at("/attach/ns/a/app", q)
			}
			q["command"] = cmd
			return at("/exec/ns/a/u/app", q)
		},
		Forward: func(ports ...string) *url.URL { return at("/portForward/ns/a", url.Values{"port": ports}) },
	}.Suite(t)
}
