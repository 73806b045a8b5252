package aggregator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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

// maxAnswer bounds what a server may answer to Ask.
const maxAnswer = 32 << 20

// Ask gets a document below the path of a group's version, /apis/GROUP/VERSION/PATH, as u. It is not served where no other server is
// registered for the version; a nil Aggregator knows of none.
func (a *Aggregator) Ask(ctx context.Context, u *authn.User, gv schema.GroupVersion, path string, query url.Values) (body []byte, served bool, err error) {
	svc := a.State().At(gv)
	if svc == nil {
		return nil, false, nil
	}
	if !available(svc) {
		return nil, true, apierrors.NewServiceUnavailable("the server is currently unable to handle the request")
	}
	path = "/apis/" + gv.String() + "/" + path
	answer, _, err := a.getAs(ctx, u, svc, path+"?"+query.Encode(), http.Header{"Accept": {"application/json"}})
	if err != nil {
		return nil, true, apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err))
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return nil, true, fmt.Errorf("read the answer of %s: %w", svc.Name, err)
	}
	if answer.StatusCode == http.StatusOK {
		return body, true, nil
	}
	var status metav1.Status
	if err := json.Unmarshal(body, &status); err == nil && status.Kind == "Status" {
		return nil, true, &apierrors.StatusError{ErrStatus: status}
	}
	return nil, true, apierrors.NewGenericServerResponse(answer.StatusCode, "get", schema.GroupResource{Group: gv.Group}, "", string(body), 0, true)
}

// get is getAs of what the server itself wants to know.
func (a *Aggregator) get(ctx context.Context, svc *Service, path string, header http.Header) (*http.Response, *url.URL, error) {
	return a.getAs(ctx, aggregatorUser, svc, path, header)
}

// getAs asks the server of an APIService for a document, as u; the path may have a query. The answer's body is the caller's to close.
func (a *Aggregator) getAs(ctx context.Context, u *authn.User, svc *Service, path string, header http.Header) (*http.Response, *url.URL, error) {
	base, to, err := a.d.Callout.Transport(target(svc))
	if err != nil {
		return nil, nil, err
	}
	base.Path, base.RawQuery, _ = strings.Cut(path, "?")
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String(), nil)
	if err != nil {
		return nil, base, err
	}
	for k, v := range header {
		r.Header[k] = v
	}
	speakFor(r, u)
	r.Header.Set("User-Agent", "kube-apiserver-aggregator")
	c := http.Client{Transport: to, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := c.Do(r)
	return answer, base, err
}
