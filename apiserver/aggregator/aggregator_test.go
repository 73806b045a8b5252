package aggregator_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/store"
)

type service = apiregistrationv1.APIService

// world is an API server with an aggregator, and another API server.
type world struct {
	t          *testing.T
	store      *store.Store
	client     client.Client
	server     *apiserver.Server
	aggregator *aggregator.Aggregator
	pki        *pki.PKI
	other      *httptest.Server
	// legacy has the other server know no aggregated discovery.
	legacy atomic.Bool
	broken atomic.Bool
}

type late struct{ client.Client }

type asHeader struct{}

func (asHeader) Authenticate(r *http.Request) (*authn.User, error) {
	return &authn.User{Name: "jane", UID: "7", Groups: []string{authn.Masters, "b"}, Extra: map[string][]string{"scopes": {"x"}}}, nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: servertest.Store(t)}
	var err error
	if w.pki, err = pki.Ensure(t.TempDir(), pki.Config{}); err != nil {
		t.Fatal(err)
	}
	w.startOther()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	rbac := authz.NewRBAC(w.store)
	self := &late{}
	proxy := callout.New(callout.Deps{Store: w.store, Certificate: func() (*tls.Certificate, error) { return w.pki.ProxyClient.Certificate(), nil }})
	a := aggregator.New(aggregator.Deps{Store: w.store, Client: self, Callout: proxy, Log: log})
	w.aggregator = a
	w.server, err = apiserver.New(apiserver.Config{}, apiserver.Deps{Store: w.store, Log: log, Authorizer: rbac, Aggregator: a,
		Authenticators: []authn.Authenticator{asHeader{}},
		FrontProxy:     authn.FrontProxy{UsernameHeaders: []string{"X-Front-User"}, UIDHeaders: []string{"x-front-uid"}, GroupHeaders: []string{"X-Front-Group"}, ExtraHeaderPrefixes: []string{"x-front-extra-"}},
		Resources:      builtin.All(builtin.Deps{Store: w.store, Client: self, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}})})
	if err != nil {
		t.Fatal(err)
	}
	self.Client = w.server.ClientAs(&authn.User{Name: "system:apiserver", Groups: []string{authn.Masters}})
	w.client = self.Client
	for _, s := range builtin.LocalAPIServices() {
		if _, err := client.Create(t.Context(), w.client, s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	<-ready
	return w
}

// startOther starts the other server, which is called api.ns.svc.
func (w *world) startOther() {
	key, cert, err := w.pki.CA.Issue(pki.Request{User: "api", Names: []string{"api.ns.svc"}, Server: true})
	if err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.other = httptest.NewUnstartedServer(http.HandlerFunc(w.serveOther))
	w.other.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: w.pki.FrontProxy.Pool()}
	w.other.StartTLS()
	w.t.Cleanup(w.other.Close)
}

func (w *world) serveOther(rw http.ResponseWriter, r *http.Request) {
	answer := func(typ string, v any) {
		rw.Header().Set("Content-Type", typ)
		_ = json.NewEncoder(rw).Encode(v)
	}
	flunders := metav1.APIResource{Name: "flunders", SingularName: "flunder", Namespaced: true, Kind: "Flunder", Verbs: metav1.Verbs{"get", "list"}}
	switch path := r.URL.Path; {
	case w.broken.Load():
		http.Error(rw, "broken", http.StatusInternalServerError)
	case path == "/apis" && !w.legacy.Load():
		rw.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		answer("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", apidiscoveryv2.APIGroupDiscoveryList{Items: []apidiscoveryv2.APIGroupDiscovery{{
			ObjectMeta: metav1.ObjectMeta{Name: "wardle.io"},
			Versions: []apidiscoveryv2.APIVersionDiscovery{{Version: "v1", Freshness: "Current", Resources: []apidiscoveryv2.APIResourceDiscovery{
				{Resource: "flunders", SingularResource: "flunder", Scope: "Namespaced", Verbs: []string{"get", "list"}, ResponseKind: &metav1.GroupVersionKind{Kind: "Flunder"}}}}}}}})
	case path == "/apis/wardle.io/v1":
		answer("application/json", metav1.APIResourceList{GroupVersion: "wardle.io/v1", APIResources: []metav1.APIResource{flunders}})
	case path == "/openapi/v2":
		answer("application/json", json.RawMessage(`{"swagger": "2.0", "info": {"title": "x", "version": "y"}, "paths": {"/apis/wardle.io/v1/flunders": {"get": {"responses":
			{"200": {"description": "OK", "schema": {"$ref": "#/definitions/io.wardle.v1.Flunder"}}}}}}, "definitions": {"io.wardle.v1.Flunder": {"type": "object"}}}`))
	case path == "/openapi/v3":
		answer("application/json", json.RawMessage(`{"paths": {"apis/wardle.io/v1": {"serverRelativeURL": "/openapi/v3/apis/wardle.io/v1?hash=A"}, "version": {"serverRelativeURL": "/openapi/v3/version?hash=B"}}}`))
	case r.URL.Query().Get("moved") != "":
		http.Redirect(rw, r, "https://elsewhere.example/", http.StatusTemporaryRedirect)
	case r.Header.Get("Upgrade") == "echo":
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	case r.URL.Query().Get("watch") != "":
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(rw, `{"type":"ADDED"}`)
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	default:
		rw.Header().Set("Cache-Control", "theirs")
		answer("application/json", map[string]any{"uri": r.RequestURI, "host": r.Host, "method": r.Method, "header": r.Header, "client": r.TLS.PeerCertificates[0].Subject.CommonName})
	}
}

func (w *world) apiService(name string) *service {
	w.t.Helper()
	s, err := client.Get[*service](w.t.Context(), w.client, api.Key{Name: name})
	if err != nil {
		return nil
	}
	return s
}

// until waits for what the aggregator does in time of its own.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not after 20 s", what)
		}
	}
}

// condition waits for the reason of the APIService's condition.
func (w *world) condition(status apiregistrationv1.ConditionStatus, reason string) {
	w.t.Helper()
	w.until(reason, func() bool {
		s := w.apiService("v1.wardle.io")
		return s != nil && len(s.Status.Conditions) == 1 && s.Status.Conditions[0].Reason == reason && s.Status.Conditions[0].Status == status
	})
}

func (w *world) get(path string, header ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	r := httptest.NewRequest("GET", path, http.NoBody)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, r)
	return rec
}

// register creates the APIService.
func (w *world) register() {
	w.t.Helper()
	port := int32(443)
	_, err := client.Create(w.t.Context(), w.client, &service{ObjectMeta: metav1.ObjectMeta{Name: "v1.wardle.io"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "wardle.io", Version: "v1", GroupPriorityMinimum: 17250, VersionPriority: 15, CABundle: w.pki.CA.PEM(),
		Service: &apiregistrationv1.ServiceReference{Namespace: "ns", Name: "api", Port: &port}}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// behind puts the Service and its endpoints there.
func (w *world) behind(ready bool) {
	_, text, _ := net.SplitHostPort(w.other.Listener.Addr().String())
	var port int32
	if _, err := fmt.Sscan(text, &port); err != nil {
		w.t.Fatal(err)
	}
	name := ""
	servertest.Put(w.t, w.store,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "api"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Port: 443}}}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "api-1", Labels: map[string]string{discoveryv1.LabelServiceName: "api"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}})
}

const whole = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

func (w *world) discovered() (l apidiscoveryv2.APIGroupDiscoveryList, tag string) {
	w.t.Helper()
	rec := w.get("/apis", "Accept", whole)
	if err := json.Unmarshal(rec.Body.Bytes(), &l); err != nil {
		w.t.Fatal(err)
	}
	return l, rec.Header().Get("ETag")
}

func group(l apidiscoveryv2.APIGroupDiscoveryList, name string) *apidiscoveryv2.APIGroupDiscovery {
	for i := range l.Items {
		if l.Items[i].Name == name {
			return &l.Items[i]
		}
	}
	return nil
}

// TestLife follows an APIService from its registration to its end.
func TestLife(t *testing.T) {
	w := newWorld(t)
	before, tag := w.discovered()
	w.register()
	if rec := w.get("/apis/wardle.io/v1/flunders"); rec.Code != 503 || rec.Body.String() != "service unavailable\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	w.condition("False", "ServiceNotFound")
	w.behind(false)
	w.condition("False", "MissingEndpoints")
	if l, _ := w.discovered(); group(l, "wardle.io") == nil || group(l, "wardle.io").Versions[0].Freshness != "Stale" {
		t.Errorf("%v", group(l, "wardle.io"))
	}
	w.behind(true)
	w.condition("True", "Passed")
	l, now := w.discovered()
	g := group(l, "wardle.io")
	if g == nil || len(g.Versions) != 1 || g.Versions[0].Freshness != "Current" || len(g.Versions[0].Resources) != 1 || now == tag || len(l.Items) != len(before.Items)+1 {
		t.Fatalf("%v", g)
	}
	names := func(of func(int) string, n int) (all []string) {
		for i := range n {
			all = append(all, of(i))
		}
		return all
	}
	place := func(all []string) {
		t.Helper()
		i := slices.Index(all, "wardle.io")
		if i < 1 || i+1 >= len(all) || all[i-1] != "certificates.k8s.io" || all[i+1] != "networking.k8s.io" || all[0] != "apiregistration.k8s.io" {
			t.Errorf("not in the order of priorities: %v", all)
		}
	}
	place(names(func(i int) string { return l.Items[i].Name }, len(l.Items)))
	var old metav1.APIGroupList
	if err := json.Unmarshal(w.get("/apis").Body.Bytes(), &old); err != nil {
		t.Fatal(err)
	}
	place(names(func(i int) string { return old.Groups[i].Name }, len(old.Groups)))
	if rec := w.get("/apis/wardle.io"); rec.Code != 200 || !strings.Contains(rec.Body.String(), `"preferredVersion":{"groupVersion":"wardle.io/v1","version":"v1"}`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := w.get("/apis/wardle.io/v1"); rec.Code != 200 || !strings.Contains(rec.Body.String(), "flunders") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	w.broken.Store(true)
	w.behind(true)
	w.condition("False", "FailedDiscoveryCheck")
	if l, _ := w.discovered(); group(l, "wardle.io").Versions[0].Freshness != "Stale" || len(group(l, "wardle.io").Versions[0].Resources) != 1 {
		t.Errorf("%v", group(l, "wardle.io"))
	}
	w.broken.Store(false)
	w.legacy.Store(true)
	w.behind(true)
	w.condition("True", "Passed")
	if l, _ := w.discovered(); group(l, "wardle.io").Versions[0].Resources[0].ResponseKind.Kind != "Flunder" {
		t.Errorf("%v", group(l, "wardle.io"))
	}
	if err := w.client.Delete(t.Context(), w.apiService("v1.wardle.io"), client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if rec := w.get("/apis/wardle.io/v1/flunders"); rec.Code != 404 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if _, last := w.discovered(); last != tag {
		t.Error("discovery is not what it was before")
	}
}

// TestProxy sees what the other server is told.
func TestProxy(t *testing.T) {
	w := newWorld(t)
	w.register()
	w.behind(true)
	w.condition("True", "Passed")
	rec := w.get("/apis/wardle.io/v1/namespaces/x/flunders/a%2Fb?limit=3", "Authorization", "Bearer secret", "X-Remote-User", "root", "X-Remote-Group", "system:masters", "X-Remote-Extra-A", "b", "Accept", "application/yaml",
		"Sec-WebSocket-Protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0,v5.channel.k8s.io", "X-Front-User", "root", "X-Front-Uid", "0", "X-Front-Group", "system:masters", "X-Front-Extra-A", "b", "X-Front", "stays")
	var got struct {
		URI, Host, Method, Client string
		Header                    http.Header
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err, rec.Body)
	}
	if got.URI != "/apis/wardle.io/v1/namespaces/x/flunders/a/b?limit=3" || got.Client != pki.ProxyClientName || !strings.HasPrefix(got.Host, "api.ns.svc") {
		t.Errorf("%+v", got)
	}
	for k, want := range map[string][]string{"X-Remote-User": {"jane"}, "X-Remote-Uid": {"7"}, "X-Remote-Group": {authn.Masters, "b", authn.Authenticated}, "X-Remote-Extra-Scopes": {"x"},
		"Sec-Websocket-Protocol": {"v5.channel.k8s.io"}, "X-Front-User": nil, "X-Front-Uid": nil, "X-Front-Group": nil, "X-Front-Extra-A": nil, "X-Front": {"stays"},
		"X-Remote-Extra-A": nil, "Authorization": nil, "Accept": {"application/yaml"}} {
		if !slices.Equal(got.Header[k], want) {
			t.Errorf("%s: got %v, want %v", k, got.Header[k], want)
		}
	}
	if c := rec.Header()["Cache-Control"]; !slices.Equal(c, []string{"theirs"}) {
		t.Errorf("Cache-Control %v", c)
	}
	// It sends nobody to a third one.
	for _, headers := range [][]string{nil, {"Connection", "Upgrade", "Upgrade", "echo"}} {
		rec := w.get("/apis/wardle.io/v1/flunders?moved=1", headers...)
		if rec.Code != 502 || rec.Header().Get("Location") != "" || rec.Body.String() != "the backend attempted to redirect this request, which is not permitted" {
			t.Errorf("a redirect: %d %v %s", rec.Code, rec.Header(), rec.Body)
		}
	}
	s := httptest.NewServer(w.server)
	defer s.Close()
	// A watch's first event comes at once.
	answer, err := http.Get(s.URL + "/apis/wardle.io/v1/flunders?watch=1")
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(answer.Body).ReadString('\n'); err != nil || !strings.Contains(line, "ADDED") {
		t.Errorf("%q %v", line, err)
	}
	answer.Body.Close()
	// An upgraded connection carries what both ends say.
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// No timeout bounds it, whatever its subresource is called.
	fmt.Fprint(conn, "GET /apis/wardle.io/v1/flunders/a/shell?timeout=1ns HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	switched, err := http.ReadResponse(r, nil)
	if err != nil || switched.StatusCode != 101 {
		t.Fatal(switched, err)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("%q %v", line, err)
	}
	// Who is not there any more is told of, with the reason.
	w.other.CloseClientConnections()
	w.other.Listener.Close()
	if rec := w.get("/apis/wardle.io/v1/flunders"); rec.Code != 503 || !strings.HasPrefix(rec.Body.String(), "error trying to reach service: ") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestOpenAPI finds what the other server publishes in this one's documents.
func TestOpenAPI(t *testing.T) {
	w := newWorld(t)
	plain := w.get("/openapi/v2")
	w.register()
	w.behind(true)
	w.condition("True", "Passed")
	// A client that has hung up keeps nothing from the others.
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for _, path := range []string{"/openapi/v2", "/openapi/v3"} {
		w.server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", path, http.NoBody))
	}
	rec := w.get("/openapi/v2")
	for _, text := range []string{`"/apis/wardle.io/v1/flunders"`, `"io.wardle.v1.Flunder"`, `"/apis/apps/v1/namespaces/{namespace}/deployments"`} {
		if !strings.Contains(rec.Body.String(), text) {
			t.Errorf("v2 has no %s", text)
		}
	}
	if a, b := plain.Header().Get("ETag"), rec.Header().Get("ETag"); a == "" || a == b {
		t.Errorf("ETags %s and %s", a, b)
	}
	if rec := w.get("/openapi/v2", "If-None-Match", rec.Header().Get("ETag")); rec.Code != http.StatusNotModified {
		t.Errorf("%d for what is known", rec.Code)
	}
	if rec := w.get("/openapi/v2", "If-Modified-Since", rec.Header().Get("Last-Modified")); rec.Code != http.StatusNotModified {
		t.Errorf("%d for what is known", rec.Code)
	}
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(w.get("/openapi/v3").Body.Bytes(), &index); err != nil {
		t.Fatal(err)
	}
	if got := index.Paths["apis/wardle.io/v1"].ServerRelativeURL; got != "/openapi/v3/apis/wardle.io/v1?hash=A" {
		t.Errorf("%q", got)
	}
	if _, there := index.Paths["version"]; there || index.Paths["apis/apps/v1"].ServerRelativeURL == "" {
		t.Errorf("%v", index.Paths)
	}
	if rec := w.get("/openapi/v3/apis/wardle.io/v1?hash=A"); !strings.Contains(rec.Body.String(), `"uri":"/openapi/v3/apis/wardle.io/v1?hash=A"`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	// Who may read documents is not led to what else is there.
	for _, path := range []string{"/openapi/v3/apis/wardle.io/v1/namespaces/default/flunders"} {
		if rec := w.get(path); rec.Code != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

// TestRegistration follows the APIServices of definitions.
func TestRegistration(t *testing.T) {
	w := newWorld(t)
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "as.g.io"}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "g.io",
		Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true}, {Name: "v2", Served: true}}}}
	servertest.Put(t, w.store, crd.DeepCopy())
	there := func(name string) func() bool {
		return func() bool { return w.apiService(name) != nil }
	}
	w.until("registered", there("v1.g.io"))
	w.until("registered", there("v2.g.io"))
	first := w.apiService("v1.g.io")
	if c := first.Status.Conditions; len(c) != 1 || c[0].Reason != "Local" {
		t.Errorf("%v", c)
	}
	// Somebody else's is left alone, ours is mended.
	own := w.apiService("v2.g.io")
	if _, err := client.Mutate(t.Context(), w.client, own, "", func(s *service) { s.Labels, s.Spec.VersionPriority = nil, 7 }); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Mutate(t.Context(), w.client, first, "", func(s *service) { s.Spec.VersionPriority = 7 }); err != nil {
		t.Fatal(err)
	}
	w.until("mended", func() bool { return w.apiService("v1.g.io").Spec.VersionPriority == 100 })
	if err := w.client.Delete(t.Context(), w.apiService("v1.g.io"), client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("made again", there("v1.g.io"))
	crd.Spec.Versions = crd.Spec.Versions[:1]
	crd.Spec.Versions[0].Served = false
	servertest.Put(t, w.store, crd)
	w.until("gone", func() bool { return w.apiService("v1.g.io") == nil })
	if s := w.apiService("v2.g.io"); s == nil || s.Spec.VersionPriority != 7 {
		t.Errorf("somebody else's: %v", s)
	}
	if w.apiService("v1.apps") == nil {
		t.Error("a built-in version's is gone")
	}
}
