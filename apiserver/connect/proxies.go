package connect

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Nodes returns the proxy subresource of nodes.
func Nodes(d Deps) map[string]*rest.Subresource {
	b := newBridge(d)
	return map[string]*rest.Subresource{"proxy": {
		Kind: "NodeProxyOptions", Opens: func() runtime.Object { return &corev1.NodeProxyOptions{} }, Methods: methods(),
		Connect: func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error {
			return b.toNode(ctx, parent.(*corev1.Node), w, r)
		},
	}}
}

// Services returns the proxy subresource of services.
func Services(d Deps) map[string]*rest.Subresource {
	b := newBridge(d)
	return map[string]*rest.Subresource{"proxy": {
		Kind: "ServiceProxyOptions", Opens: func() runtime.Object { return &corev1.ServiceProxyOptions{} }, Methods: methods(),
		Connect: func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error {
			return b.toService(ctx, parent.(*corev1.Service), w, r)
		},
	}}
}

// aim is what the URL of a proxy subresource names: [scheme:]name[:port]/proxy[/path].
type aim struct {
	scheme string // "http" when not given
	port   string
	path   string
	prefix string // up to and with "proxy"
}

// parseAim reads the URL. The word "proxy" counts only where the subresource stands: namespaces and objects may be
// called so, too.
func parseAim(r *http.Request) (aim, error) {
	segments := strings.Split(r.URL.Path, "/") // "", "api", "v1", ["namespaces", namespace,] plural, name, "proxy", ...
	at := 5
	if len(segments) > 3 && segments[3] == "namespaces" {
		at = 7
	}
	if len(segments) <= at || segments[at] != "proxy" {
		return aim{}, apierrors.NewBadRequest("the path has no /proxy")
	}
	scheme, _, port, ok := utilnet.SplitSchemeNamePort(segments[at-1])
	if !ok {
		return aim{}, apierrors.NewBadRequest(fmt.Sprintf("invalid proxy target %q", segments[at-1]))
	}
	a := aim{scheme: scheme, port: port, prefix: strings.Join(segments[:at+1], "/")}
	a.path = strings.TrimPrefix(r.URL.Path, a.prefix)
	return a, nil
}

// toSlash answers a request for the root without its slash: relative links of the answer would lead out of the proxy.
// Methods that a redirect would change go on to the root.
func (a *aim) toSlash(w http.ResponseWriter, r *http.Request) (answered bool) {
	if a.path != "" {
		return false
	}
	a.path = "/"
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Header.Get("Upgrade") != "" {
		return false
	}
	to := url.URL{Path: r.URL.Path + "/", RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", to.String())
	w.WriteHeader(http.StatusMovedPermanently)
	return true
}

func (a aim) url(host, port string, r *http.Request) *url.URL {
	scheme := a.scheme
	if scheme == "" {
		scheme = "http"
	}
	if port == "" {
		port = "80"
		if scheme == "https" {
			port = "443"
		}
	}
	return &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port), Path: a.path, RawQuery: r.URL.RawQuery}
}

// outside proxies to an address that is no kubelet's.
func (b *bridge) outside(ctx context.Context, u *url.URL, a aim, w http.ResponseWriter, r *http.Request) error {
	if ip := net.ParseIP(u.Hostname()); ip == nil || !b.d.Reachable(ip) {
		return apierrors.NewBadRequest("address not allowed")
	}
	return b.proxy(ctx, session{to: u, transport: b.plain, prefix: a.prefix}, w, r)
}

func (b *bridge) toNode(ctx context.Context, n *corev1.Node, w http.ResponseWriter, r *http.Request) error {
	a, err := parseAim(r)
	if err != nil || a.toSlash(w, r) {
		return err
	}
	kubelet, err := kubeletURL(n)
	if err != nil {
		return err
	}
	if a.port == "" || a.port == kubelet.Port() {
		kubelet.Path, kubelet.RawQuery = a.path, r.URL.RawQuery
		return b.proxy(ctx, session{to: kubelet, transport: b.kubelet, prefix: a.prefix}, w, r)
	}
	return b.outside(ctx, a.url(kubelet.Hostname(), a.port, r), a, w, r)
}

func (b *bridge) toPod(ctx context.Context, pod *corev1.Pod, w http.ResponseWriter, r *http.Request) error {
	a, err := parseAim(r)
	if err != nil || a.toSlash(w, r) {
		return err
	}
	if pod.Status.PodIP == "" {
		return apierrors.NewBadRequest("address not allowed")
	}
	port := a.port
	if port == "" { // the first that a container declares
		for i := range pod.Spec.Containers {
			if ps := pod.Spec.Containers[i].Ports; len(ps) > 0 {
				port = strconv.Itoa(int(ps[0].ContainerPort))
				break
			}
		}
	}
	return b.outside(ctx, a.url(pod.Status.PodIP, port, r), a, w, r)
}

func (b *bridge) toService(ctx context.Context, svc *corev1.Service, w http.ResponseWriter, r *http.Request) error {
	a, err := parseAim(r)
	if err != nil || a.toSlash(w, r) {
		return err
	}
	at, err := callout.Endpoint(b.d.Store, svc, a.port)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return b.outside(ctx, a.url(host, port, r), a, w, r)
}
