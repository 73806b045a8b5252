// Package connect joins API clients with what runs on the nodes: log, exec, attach and port-forward
// through kubelets, and the proxy subresources of nodes, pods and services. It replaces kube-apiserver's streaming
// registries and k8s.io/apiserver's upgrade-aware proxy.
//
//	client ── SPDY, WebSocket or HTTP ──> API server ── the same, with its own certificate ──> kubelet, pod
//
// Bytes are passed on as they are: who speaks which stream protocol is settled between the two ends. Only where a kubelet
// does not declare that it knows the newer protocols over WebSocket, package stream brings them to it. A session ends when
// either end closes, or the request's context ends.
//
// Invariant: credentials of the client never leave the API server.
package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/proxy"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Deps are what the subresources need.
type Deps struct {
	Store *store.Store
	// Kubelet is the API server's side of TLS towards kubelets: its client certificate and their authority.
	Kubelet *tls.Config
	// Reachable says whether pods, and ports of nodes other than the kubelet's, may be proxied to at this address. Nil
	// refuses addresses of the machine itself and of its link, which a client must not reach through the API server.
	Reachable func(ip net.IP) bool
}

// dialTimeout bounds how long an unreachable node holds a request up.
const dialTimeout = 10 * time.Second

// bridge is the proxying half that the subresources share. It is read-only once made.
type bridge struct {
	d       Deps
	kubelet *http.Transport // to kubelets
	plain   *http.Transport // to pods and services; their certificates are their own affair
}

func newBridge(d Deps) *bridge {
	if d.Reachable == nil {
		d.Reachable = net.IP.IsGlobalUnicast
	}
	dial := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	// Upgrades need HTTP/1.1.
	transport := func(c *tls.Config) *http.Transport {
		return &http.Transport{DialContext: dial, TLSClientConfig: c, TLSHandshakeTimeout: dialTimeout,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second, DisableCompression: true}
	}
	return &bridge{
		d:       d,
		kubelet: transport(d.Kubelet),
		plain:   transport(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}),
	}
}

// Kubelet asks kubelets for documents, as the API server.
type Kubelet struct{ b *bridge }

// NewKubelet returns a Kubelet.
func NewKubelet(d Deps) Kubelet { return Kubelet{newBridge(d)} }

// maxDocument bounds a document: of a node full of pods it is some hundred kilobytes.
const maxDocument = 32 << 20

// Get asks the kubelet of n. The path may have a query.
func (k Kubelet) Get(ctx context.Context, n *corev1.Node, path string) ([]byte, error) {
	to, err := kubeletURL(n)
	if err != nil {
		return nil, err
	}
	to.Path, to.RawQuery, _ = strings.Cut(path, "?")
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, err
	}
	answer, err := k.b.kubelet.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, explain(answer)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return text, nil
}

// node returns a Node.
func (b *bridge) node(name string) (*corev1.Node, error) {
	e := b.d.Store.Snapshot(api.NodeKind).Get(api.Key{Name: name})
	if e == nil || e.Err() != nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return e.Object.(*corev1.Node), nil
}

// kubeletURL returns where the kubelet of a node listens.
func kubeletURL(n *corev1.Node) (*url.URL, error) {
	host, err := address(n)
	if err != nil {
		return nil, err
	}
	port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 {
		port = 10250
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(int(port)))}, nil
}

// address picks the address of a node by which the API server reaches it.
func address(n *corev1.Node) (string, error) {
	for _, want := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeInternalDNS, corev1.NodeHostName} {
		for _, a := range n.Status.Addresses {
			if a.Type == want && a.Address != "" {
				return a.Address, nil
			}
		}
	}
	return "", apierrors.NewInternalError(fmt.Errorf("node %s has no address", n.Name))
}

// dropCredentials removes what the client shows to the API server only.
func dropCredentials(h http.Header) {
	for k := range h {
		if k == "Authorization" || strings.HasPrefix(k, "Impersonate-") || strings.HasPrefix(k, "X-Remote-") {
			delete(h, k)
		}
	}
}

// session is one proxied request.
type session struct {
	to        *url.URL
	transport http.RoundTripper
	// explain turns error answers of the other end into the API's.
	explain bool
	// prefix is the path of the proxy subresource, put before the absolute paths in the other end's redirects and pages.
	prefix string
}

// proxy passes the request on and its answer back. It returns an error only while nothing was answered.
func (b *bridge) proxy(ctx context.Context, s session, w http.ResponseWriter, r *http.Request) error {
	var failed error
	transport := s.transport
	if s.prefix != "" {
		transport = &proxy.Transport{PathPrepend: s.prefix, RoundTripper: transport}
	}
	p := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL = s.to
			pr.Out.Host = s.to.Host
			pr.SetXForwarded()
			dropCredentials(pr.Out.Header)
		},
		FlushInterval: -1,
		ModifyResponse: func(resp *http.Response) error {
			if s.explain && resp.StatusCode >= http.StatusBadRequest {
				return explain(resp)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			var st apierrors.APIStatus
			if !errors.As(err, &st) {
				err = apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
			}
			failed = err
		},
	}
	p.ServeHTTP(w, r.WithContext(ctx))
	return failed
}

// maxText bounds an error text that is read from the other end.
const maxText = 50 << 10

func explain(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxText))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", resp.Request.URL.Host, err)
	}
	text := strings.TrimSpace(string(b))
	switch resp.StatusCode {
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(text))
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(text)
	}
	return apierrors.NewGenericServerResponse(resp.StatusCode, "", schema.GroupResource{}, "", text, 0, false)
}
