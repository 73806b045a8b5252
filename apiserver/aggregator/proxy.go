package aggregator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"k8s.io/client-go/transport"

	"github.com/yare-dev/yare/apiserver/authn"
)

// Headers are those by which aggregated servers learn for whom this server asks.
func Headers() authn.FrontProxy {
	return authn.FrontProxy{UsernameHeaders: []string{"X-Remote-User"}, UIDHeaders: []string{"X-Remote-Uid"},
		GroupHeaders: []string{"X-Remote-Group"}, ExtraHeaderPrefixes: []string{"X-Remote-Extra-"}}
}

// speakFor drops what the client said of itself, and says who it is.
func speakFor(r *http.Request, u *authn.User) {
	for k := range r.Header {
		if k == "Authorization" || strings.HasPrefix(k, "Impersonate-") {
			delete(r.Header, k)
		}
	}
	own := Headers()
	own.Drop(r.Header)
	transport.SetAuthProxyHeaders(r, u.Name, u.UID, u.Groups, u.Extra)
}

// Serve passes a request, with streams and upgrades, on to the server of a remote APIService, and its answer back. The request's
// context bounds it.
func (a *Aggregator) Serve(svc *Service, u *authn.User, w http.ResponseWriter, r *http.Request) {
	if !available(svc) {
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	base, to, err := a.d.Callout.Transport(target(svc))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	p := &httputil.ReverseProxy{
		Transport: to,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = base.Scheme, base.Host, base.Host
			pr.Out.URL.RawPath = "" // what was authorized is the path itself, not how the client wrote it
			pr.SetXForwarded()
			speakFor(pr.Out, u)
		},
		ModifyResponse: stay,
		FlushInterval:  -1, // a watch's events do not wait for the next
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				a.d.Log.Warn("aggregated API server not reached", "apiservice", svc.Name, "err", err)
			}
			http.Error(w, fmt.Sprintf("error trying to reach service: %v", err), http.StatusServiceUnavailable)
		},
		ErrorLog: slog.NewLogLogger(a.d.Log.Handler(), slog.LevelDebug),
	}
	w.Header().Del("Cache-Control") // the other server says that
	p.ServeHTTP(w, r)
}

// stay puts an error in the place of a redirect: it would have clients repeat their requests, credentials and all, wherever the other server
// likes.
func stay(answer *http.Response) error {
	if answer.StatusCode < 300 || answer.StatusCode > 399 || answer.Header.Get("Location") == "" {
		return nil
	}
	answer.Body.Close()
	const text = "the backend attempted to redirect this request, which is not permitted"
	*answer = http.Response{StatusCode: http.StatusBadGateway, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text))}
	return nil
}

// aggregatorUser is who this server is when it asks for itself.
var aggregatorUser = &authn.User{Name: "system:kube-aggregator", Groups: []string{authn.Masters}}

// get asks the server of an APIService for a document of its own. The answer's body is the caller's to close.
func (a *Aggregator) get(ctx context.Context, svc *Service, path string, header http.Header) (*http.Response, *url.URL, error) {
	base, to, err := a.d.Callout.Transport(target(svc))
	if err != nil {
		return nil, nil, err
	}
	base.Path = path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String(), nil)
	if err != nil {
		return nil, base, err
	}
	for k, v := range header {
		r.Header[k] = v
	}
	speakFor(r, aggregatorUser)
	r.Header.Set("User-Agent", "kube-apiserver-aggregator")
	c := http.Client{Transport: to, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := c.Do(r)
	return answer, base, err
}
