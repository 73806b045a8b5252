package connect_test

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/kubelet/server"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/stream"
	"github.com/yare-dev/yare/stream/streamtest"
)

// onePod is what runs on the node.
type onePod struct{ *corev1.Pod }

func (p onePod) All() []*corev1.Pod              { return []*corev1.Pod{p.Pod} }
func (p onePod) Find(_, name string) *corev1.Pod { return p.Pod }

// node serves our kubelet's sessions. One of a release that does not know the newer protocols refuses them.
func node(t *testing.T, p *pki.PKI, pod *corev1.Pod, old bool) string {
	t.Helper()
	runtime := kubelettest.NewRuntime()
	runtime.Sessions = streamtest.New(t)
	if _, err := runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns", Uid: "u"}, Labels: map[string]string{spec.PodUIDLabel: "u"}}}); err != nil {
		t.Fatal(err)
	}
	s, err := server.New("127.0.0.1:0", server.Deps{Pods: onePod{pod}, CRI: cri.InProcess(runtime), TLS: &tls.Config{ClientCAs: p.Pool()},
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	h := s.Handler()
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if old && (stream.Translated(r) || stream.Tunnelled(r)) {
			http.Error(w, "unknown protocol", http.StatusBadRequest)
			return
		}
		h.ServeHTTP(w, r)
	}))
	front.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	front.StartTLS()
	t.Cleanup(front.Close)
	return front.URL
}

func TestSessions(t *testing.T) {
	p, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		declared []string
	}{{"ours", []string{stream.NodeFeature}}, {"of an older release", nil}} {
		t.Run(tt.name, func(t *testing.T) {
			front, c := serve(t, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: p.KubeletClient.GetClientCertificate})
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}, Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}}}
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
			n.Status.DeclaredFeatures = tt.declared
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
			running := pod.DeepCopy()
			running.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", ContainerID: "books://1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			n.Status.DaemonEndpoints.KubeletEndpoint.Port = port(t, node(t, p, running, tt.declared == nil))
			if _, err := c.Create(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			at := func(sub string, q url.Values) *url.URL {
				u, err := url.Parse(front + "/api/v1/namespaces/ns/pods/p/" + sub + "?" + q.Encode())
				if err != nil {
					t.Fatal(err)
				}
				return u
			}
			streamtest.Target{
				Config: &rest.Config{Host: front},
				Command: func(cmd []string, in, errs, tty bool) *url.URL {
					q := url.Values{"stdout": {"true"}, "container": {"c"}}
					for name, is := range map[string]bool{"stdin": in, "stderr": errs, "tty": tty} {
						if is {
							q.Set(name, "true")
						}
					}
					if cmd == nil {
						return at("attach", q)
					}
					q["command"] = cmd
					return at("exec", q)
				},
				Forward: func(ports ...string) *url.URL { return at("portforward", url.Values{"ports": ports}) },
			}.Suite(t)
		})
	}
}
