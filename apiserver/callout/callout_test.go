package callout_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/pki"
)

// extension answers what it was asked.
func extension(t *testing.T) (*httptest.Server, []byte) {
	t.Helper()
	p, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ca := p.CA
	key, cert, err := ca.Issue(pki.Request{User: "ext", Names: []string{"ext.ns.svc", "localhost"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "/echo", http.StatusFound)
		case "/fail":
			http.Error(w, "nobody home", http.StatusTeapot)
		case "/large":
			for range 33 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		case "/text":
			fmt.Fprint(w, "hello")
		default:
			var body map[string]any
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "path": r.URL.Path, "query": r.URL.RawQuery, "body": body, "shown": len(r.TLS.PeerCertificates)})
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, ca.PEM()
}

func service(name string, port int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}
	s.Spec.Ports = []corev1.ServicePort{{Name: "https", Port: port}}
	return s
}

// behind returns a slice of the service's endpoints, one at each port of this machine.
func behind(service, name string, ready bool, port int32) *discoveryv1.EndpointSlice {
	portName := "https"
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
}

func portOf(t *testing.T, s *httptest.Server) int32 {
	t.Helper()
	_, text, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

type answer struct {
	Host  string         `json:"host"`
	Path  string         `json:"path"`
	Query string         `json:"query"`
	Body  map[string]any `json:"body"`
	Shown int            `json:"shown"`
}

func TestService(t *testing.T) {
	s := servertest.Store(t)
	server, ca := extension(t)
	c := callout.New(callout.Deps{Store: s})
	target := callout.Target{Namespace: "ns", Name: "ext", Path: "/hook", CABundle: ca}
	post := func() (a answer, err error) {
		err = c.Post(t.Context(), target, url.Values{"timeout": {"3s"}}, map[string]any{"a": "b"}, &a)
		return a, err
	}
	refused := func(text string) {
		t.Helper()
		if _, err := post(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an error with %q", err, text)
		}
	}
	refused(`Post "https://ext.ns.svc:443/hook?timeout=3s": service "ext" not found`)
	servertest.Put(t, s, service("ext", 8443))
	refused(`no service port "443" found for service "ext"`)
	servertest.Put(t, s, service("ext", 443))
	refused(`no endpoints available for service "ext"`)
	servertest.Put(t, s, behind("ext", "a", false, portOf(t, server)), behind("other", "b", true, 1))
	refused(`no endpoints available for service "ext"`)

	servertest.Put(t, s, behind("ext", "a", true, portOf(t, server)))
	a, err := post()
	if err != nil {
		t.Fatal(err)
	}
	if a.Host != "ext.ns.svc:443" || a.Path != "/hook" || a.Query != "timeout=3s" || a.Body["a"] != "b" || a.Shown != 0 {
		t.Errorf("the server saw %+v", a)
	}

	// What is no longer ready is not asked, although a connection to it is open.
	servertest.Put(t, s, behind("ext", "a", false, portOf(t, server)))
	refused("no endpoints available")
	servertest.Put(t, s, behind("ext", "a", true, portOf(t, server)))

	target.CABundle = nil
	refused("certificate")
	target.CABundle = []byte("nonsense")
	refused("no certificate in PEM")
	target.CABundle, target.Insecure = nil, true
	if _, err := post(); err != nil {
		t.Error(err)
	}

	// The certificate is for ext.ns.svc alone.
	servertest.Put(t, s, service("stranger", 443), behind("stranger", "c", true, portOf(t, server)))
	target = callout.Target{Namespace: "ns", Name: "stranger", CABundle: ca}
	refused("stranger.ns.svc")

	external := service("outside", 443)
	external.Spec.Type, external.Spec.ExternalName = corev1.ServiceTypeExternalName, "localhost"
	servertest.Put(t, s, external)
	target = callout.Target{Namespace: "ns", Name: "outside", Port: portOf(t, server), Insecure: true}
	if _, err := post(); err != nil {
		t.Error(err)
	}
}

func TestURL(t *testing.T) {
	server, ca := extension(t)
	p, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := callout.New(callout.Deps{Store: servertest.Store(t), Certificate: func() (*tls.Certificate, error) { return p.KubeletClient.Certificate(), nil }})
	post := func(path string, out any) error {
		return c.Post(t.Context(), callout.Target{URL: server.URL + path, CABundle: ca}, nil, map[string]any{}, out)
	}
	var a answer
	if err := post("/echo", &a); err != nil || a.Path != "/echo" || a.Shown == 0 {
		t.Errorf("%+v, %v", a, err)
	}
	for path, want := range map[string]string{
		"/text":  "couldn't read the answer of " + server.URL + "/text",
		"/large": "is larger than",
		"/away":  "302",
	} {
		if err := post(path, &a); err == nil || !strings.Contains(fmt.Sprintf("%v %+v", err, err), want) {
			t.Errorf("%s: got %v, want an error with %q", path, err, want)
		}
	}
	var status apierrors.APIStatus
	if err := post("/fail", &a); !errors.As(err, &status) || status.Status().Code != 418 || status.Status().Details.Causes[0].Message != "nobody home" {
		t.Errorf("/fail: %v", err)
	}
	for _, bad := range []callout.Target{{}, {URL: "ftp://x"}, {URL: ":"}, {Name: "x"}} {
		if err := c.Post(t.Context(), bad, nil, nil, nil); err == nil {
			t.Errorf("%+v is taken for a target", bad)
		}
	}
}

// A target that is used again keeps its pool, however many others there are; what is not used goes.
func TestPools(t *testing.T) {
	c := callout.New(callout.Deps{Store: servertest.Store(t)})
	get := func(name string) http.RoundTripper {
		t.Helper()
		_, tr, err := c.Transport(callout.Target{Namespace: "ns", Name: name, Path: "/" + name})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	kept, dropped := get("kept"), get("dropped")
	for i := range 400 {
		get(strconv.Itoa(i))
		if get("kept") != kept {
			t.Fatal("the pool of a target in use was dropped")
		}
	}
	if get("dropped") == dropped {
		t.Error("400 targets later the pool of an unused one is still there")
	}
	_, a, err := c.Transport(callout.Target{Namespace: "ns", Name: "kept", Path: "/other"})
	if err != nil || a != kept {
		t.Errorf("another path of the target has a pool of its own: %v", err)
	}
}
