package connect_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/connect"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// allow lets everybody do everything but "viewer" create.
type allow struct{}

func (allow) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	return a.User.Name != "viewer" || a.Verb != "create", "", nil
}

type byHeader struct{}

func (byHeader) Authenticate(r *http.Request) (*authn.User, error) {
	return &authn.User{Name: r.Header.Get("X-User")}, nil
}

// kubelet is the other end: it tells what it was asked, and echoes upgraded connections.
func kubelet(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Authorization") != "" || r.Header.Get("Impersonate-User") != "":
		http.Error(w, "credentials leaked", http.StatusTeapot)
	case strings.Contains(r.URL.Path, "missing"):
		http.Error(w, "container not found", http.StatusBadRequest)
	case strings.HasSuffix(r.URL.Path, "/away"):
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	case strings.HasSuffix(r.URL.Path, "/page"):
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<a href="/x">x</a><a href="y">y</a>`)
	case r.Header.Get("Upgrade") == "":
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.RequestURI())
	default:
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s\n", r.Header.Get("Upgrade"), r.URL.RequestURI())
		line, err := rw.ReadString('\n')
		if err == nil {
			fmt.Fprintf(conn, "echo %s", line)
		}
	}
}

// cluster returns the address of an API server with one node, whose kubelet is the one above, a pod on it, a pod on no
// node, and a service.
func cluster(t *testing.T, admission ...rest.Admission) string {
	t.Helper()
	node := httptest.NewTLSServer(http.HandlerFunc(kubelet))
	t.Cleanup(node.Close)
	pod := httptest.NewServer(http.HandlerFunc(kubelet))
	t.Cleanup(pod.Close)
	front, c := serve(t, &tls.Config{InsecureSkipVerify: true}, admission...)
	populate(t, c, node.URL, pod.URL)
	return front
}

// serve returns the address of an API server that shows kubelets the certificate of tls, and a client of it.
func serve(t *testing.T, kubelet *tls.Config, admission ...rest.Admission) (string, client.Client) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	st := store.New(memory.New(true), api.Stored(), store.Options{Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(ctx, func() { close(up) }) }()
	t.Cleanup(func() { cancel(); <-done })
	<-up
	d := connect.Deps{Store: st, Kubelet: kubelet, Reachable: func(ip net.IP) bool { return ip.IsLoopback() }}
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{
		Store: st, Log: log, Admission: admission, Authorizer: allow{}, Authenticators: []authn.Authenticator{byHeader{}},
		Resources: []rest.Any{
			rest.Register(api.PodKind, &rest.Resource[*corev1.Pod]{Sub: connect.Pods(d), Name: anyName}),
			rest.Register(api.NodeKind, &rest.Resource[*corev1.Node]{Sub: connect.Nodes(d), StatusAtCreate: true}),
			rest.Register(api.ServiceKind, &rest.Resource[*corev1.Service]{Sub: connect.Services(d)}),
			rest.Register(api.EndpointSliceKind, &rest.Resource[*discoveryv1.EndpointSlice]{}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(s)
	t.Cleanup(front.Close)
	return front.URL, s.ClientAs(&authn.User{Name: "admin"})
}

// What is opened is what admission makes of the query; a log, which is only read, is none of its business.
func TestAdmitted(t *testing.T) {
	var seen []string
	base := cluster(t, rest.Admission{Name: "a", Mutate: func(ctx context.Context, a *rest.Admitting) error {
		if a.Operation != rest.OpConnect {
			return nil
		}
		now := a.Opens.DeepCopyObject()
		switch o := now.(type) {
		case *corev1.PodExecOptions:
			seen = append(seen, fmt.Sprintf("%s %s %v %v %v", a.Sub, o.Kind, o.Command, o.Stdout, o.Container))
			o.Command, o.Container = []string{"y"}, "b"
		case *corev1.PodProxyOptions:
			seen = append(seen, a.Sub+" "+o.Kind+" "+o.Path)
			o.Path = "/other"
		case *corev1.ServiceProxyOptions:
			seen = append(seen, a.Sub+" "+o.Kind+" "+o.Path)
			return apierrors.NewForbidden(a.Kind.GroupResource(), a.Key.Name, errors.New("closed"))
		case *corev1.PodPortForwardOptions:
			seen = append(seen, fmt.Sprint(a.Sub, o.Ports))
			return nil
		}
		return a.Take(ctx, a.Form(), now)
	}})
	for path, want := range map[string]string{
		"pods/two/exec?command=x&stdout=1&container=a": "400 pod two does not have a host assigned",
		"pods/p/exec?command=x&stdout=1&container=c":   "400 container b is not valid for pod p",
		"pods/p/proxy/a/b?q=1":                         "200 GET /other?q=1",
		"services/s:web/proxy/x":                       `403 services "s" is forbidden: closed`,
		"pods/p/log?tailLines=5":                       "200 GET /containerLogs/ns/p/c?tailLines=5",
		"pods/two/portforward?ports=80,81&ports=82":    "400 pod two does not have a host assigned",
		"pods/two/portforward?ports=eighty":            `400 ports: "eighty" is no number`,
	} {
		if got := fetch(t, base+"/api/v1/namespaces/ns/"+path, "u"); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	slices.Sort(seen)
	want := []string{"exec PodExecOptions [x] true a", "exec PodExecOptions [x] true c", "portforward[80 81 82]", "proxy PodProxyOptions /a/b", "proxy ServiceProxyOptions /x"}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %q", seen)
	}
}

func anyName(string, bool) []string { return nil }

func port(t *testing.T, raw string) int32 {
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

func populate(t *testing.T, c client.Client, node, pod string) {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: "ns"} }
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "nowhere"}, {Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = port(t, node)
	p := &corev1.Pod{ObjectMeta: meta("p")}
	p.Spec = corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: port(t, pod)}}}}}
	named := p.DeepCopy() // names that begin like the subresource
	named.Namespace, named.Name = "proxy-1", "proxy"
	two := &corev1.Pod{ObjectMeta: meta("two"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}, {Name: "b"}}, InitContainers: []corev1.Container{{Name: "i"}}}}
	svc := &corev1.Service{ObjectMeta: meta("s"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}
	web, target := "web", port(t, pod)
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta("s-1"), Ports: []discoveryv1.EndpointPort{{Name: &web, Port: &target}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}}}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "s"}
	for _, o := range []api.Object{n, p, named, two, svc, slice} {
		if _, err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []api.Key{{Namespace: "ns", Name: "p"}, {Namespace: "proxy-1", Name: "proxy"}} {
		got, err := client.Get[*corev1.Pod](t.Context(), c, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Mutate(t.Context(), c, got, "status", func(p *corev1.Pod) { p.Status.PodIP = "127.0.0.1" }); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRequests(t *testing.T) {
	base := cluster(t)
	for _, tt := range []struct{ name, path, user, want string }{
		{"log", "pods/p/log?tailLines=5&follow=true&container=c&pretty=1", "u", "200 GET /containerLogs/ns/p/c?follow=true&tailLines=5"},
		{"log of the only container", "pods/p/log", "viewer", "200 GET /containerLogs/ns/p/c"},
		{"log of an unknown container", "pods/p/log?container=x", "u", "400 container x is not valid for pod p"},
		{"log without choice", "pods/two/log", "u", "400 a container name must be specified for pod two, choose one of: [a b] or one of the init containers: [i]"},
		{"log before it runs", "pods/two/log?container=a", "u", "200 "},
		{"log of no pod", "pods/none/log", "u", `404 pods "none" not found`},
		{"exec without command", "pods/p/exec?stdout=1", "u", "400 you must specify at least 1 command for the container"},
		{"exec without streams", "pods/p/exec?command=x&tty=1", "u", "400 you must specify at least one of stdin, stdout, stderr"},
		{"exec before it runs", "pods/two/exec?command=x&stdout=1&container=a", "u", "400 pod two does not have a host assigned"},
		{"exec over GET is a creation", "pods/p/exec?command=x&stdout=1", "viewer", `403 pods "p" is forbidden: User "viewer" cannot create resource "pods/exec" in API group "" in the namespace "ns"`},
		{"pod proxy", "pods/p/proxy/a/b?q=1", "u", "200 GET /a/b?q=1"},
		{"pod proxy without slash", "pods/p/proxy?q=1", "u", "301 /api/v1/namespaces/ns/pods/p/proxy/?q=1"},
		{"pod proxy to an unset address", "pods/two/proxy/", "u", "400 address not allowed"},
		{"service proxy by port name", "services/s:web/proxy/x", "u", "200 GET /x"},
		{"service proxy by number", "services/http:s:80/proxy/", "u", "200 GET /"},
		{"service proxy to no port", "services/s:81/proxy/", "u", `503 no service port "81" found for service "s"`},
		{"links of a page stay below the proxy", "pods/p/proxy/page", "u", `200 <a href="/api/v1/namespaces/ns/pods/p/proxy/x">x</a><a href="y">y</a>`},
		{"redirect stays below the proxy", "pods/p/proxy/away", "u", "302 /api/v1/namespaces/ns/pods/p/proxy/elsewhere"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fetch(t, base+"/api/v1/namespaces/ns/"+tt.path, tt.user); got != tt.want {
				t.Errorf("got %s", got)
			}
		})
	}
	if got := fetch(t, base+"/api/v1/namespaces/proxy-1/pods/proxy/proxy/proxy/x", "u"); got != "200 GET /proxy/x" {
		t.Errorf("names that begin like the subresource: %s", got)
	}
	if got := fetch(t, base+"/api/v1/nodes/n/proxy/stats?x=y", "u"); got != "200 GET /stats?x=y" {
		t.Error(got)
	}
}

// fetch returns the code with the body, the message of a Status, or the target of a redirect.
func fetch(t *testing.T, u, user string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-User", user)
	r.Header.Set("Authorization", "Bearer secret")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if loc := resp.Header.Get("Location"); loc != "" {
		text = loc
	}
	if st := new(metav1.Status); strings.HasPrefix(text, `{"kind":"Status"`) {
		if _, err := api.DecodeJSON(b, st); err != nil {
			t.Fatal(err)
		}
		text = st.Message
	}
	return fmt.Sprint(resp.StatusCode, " ", text)
}

// An upgraded connection carries bytes both ways and ends with either side.
func TestUpgrade(t *testing.T) {
	base := cluster(t)
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"exec?command=sh&command=-c&stdin=true&stdout=true&tty=false": "/exec/ns/p/c?command=sh&command=-c&input=1&output=1",
		"attach?stdout=true&container=c":                              "/attach/ns/p/c?output=1",
		"portforward?ports=80":                                        "/portForward/ns/p?port=80",
	} {
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /api/v1/namespaces/ns/pods/p/%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nAuthorization: Bearer x\r\nX-User: u\r\nContent-Length: 0\r\n\r\n", path)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "SPDY/3.1" {
			t.Fatal(resp, err)
		}
		fmt.Fprint(conn, "hello\n") // clients wait for the answer before they send
		all, err := io.ReadAll(in)
		if got := string(all); err != nil || got != want+"\necho hello\n" {
			t.Error(got, err)
		}
		conn.Close()
	}
}
