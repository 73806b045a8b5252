// Package callout reaches the servers that extend the API server: admission and conversion webhooks, aggregated API
// servers. It replaces k8s.io/apiserver's webhook client manager and the service resolvers of kube-apiserver.
//
// A Target is a URL, or a Service of the cluster. What a Service is called by is its name, to which its certificate has to
// be issued; what is dialled is an endpoint that is ready at the time of the request, so that no connection outlives the endpoint
// for another request. Targets that are the same but for their paths share a pool of connections.
//
// Invariants: no redirect is followed; what is read of an answer is bounded; of the pools, the most recently used are kept.
package callout

import (
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"

	"github.com/yare-dev/yare/store"
)

// Target is where an extension is served: at a URL, or where that is empty by a Service.
type Target struct {
	URL string // https://host[:port][/path]

	Namespace, Name string // of the Service
	Path            string // of the Service, with its slash; may be empty
	Port            int32  // of the Service; zero is 443

	// CABundle are the authorities, in PEM, that the server's certificate is checked against: the system's when it is empty.
	CABundle []byte
	// Insecure takes any certificate. It excludes a CABundle.
	Insecure bool
}

// Reference is a Service as the configurations of webhooks of all sorts name it: their ServiceReferences convert to it.
type Reference struct {
	Namespace, Name string
	Path            *string
	Port            *int32
}

// To is the target at the URL, or where that is nil at the Service; either may be nil, and a target of neither cannot be reached.
func To(url *string, service *Reference, authorities []byte) Target {
	t := Target{CABundle: authorities}
	if url != nil {
		t.URL = *url
	}
	if service == nil {
		return t
	}
	t.Namespace, t.Name = service.Namespace, service.Name
	if service.Path != nil {
		t.Path = *service.Path
	}
	if service.Port != nil {
		t.Port = *service.Port
	}
	return t
}

// String names the target in errors.
func (t Target) String() string {
	if t.URL != "" {
		return t.URL
	}
	return "service " + t.Namespace + "/" + t.Name
}

// host is the name that a Service is called by.
func (t Target) host() string { return t.Name + "." + t.Namespace + ".svc" }

// Deps are what a Callout needs.
type Deps struct {
	Store *store.Store
	// Certificate is what the API server shows who it is by; nil: nothing.
	Certificate func() (*tls.Certificate, error)
}

// Bounds of what is kept and read.
const (
	mostPools   = 200
	mostIdle    = 16 // connections to each endpoint
	idleTimeout = 90 * time.Second
	dialTimeout = 30 * time.Second
	maxAnswer   = 32 << 20 // bytes, of an answer that is as it should be
	maxProblem  = 2 << 10  // bytes, of one that says what is wrong
)

// Callout keeps the connections. Its methods may be called concurrently.
type Callout struct {
	d Deps

	mu    sync.Mutex
	pools map[poolKey]*list.Element
	used  list.List // of *pool, the one used last first
}

// poolKey is what connections depend on.
type poolKey struct {
	scheme, host    string // of a URL
	namespace, name string
	port            int32
	authorities     string
	insecure        bool
}

type pool struct {
	key       poolKey
	transport http.RoundTripper
	idle      func() // closes connections that are not in use
}

// New returns a Callout without connections.
func New(d Deps) *Callout { return &Callout{d: d, pools: map[poolKey]*list.Element{}} }

// Transport returns the URL that the target is called by and what connects to it. The transport refuses servers whose
// certificate is not for the URL's host, and knows HTTP/1.1 only, as upgrades and balancing need it.
func (c *Callout) Transport(t Target) (*url.URL, http.RoundTripper, error) {
	base, key, err := t.parse()
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.pools[key]; e != nil {
		c.used.MoveToFront(e)
		return base, e.Value.(*pool).transport, nil
	}
	p, err := c.pool(t, key, base)
	if err != nil {
		return nil, nil, err
	}
	c.pools[key] = c.used.PushFront(p)
	if len(c.pools) > mostPools {
		last := c.used.Remove(c.used.Back()).(*pool)
		delete(c.pools, last.key)
		last.idle()
	}
	return base, p.transport, nil
}

func (t Target) parse() (*url.URL, poolKey, error) {
	key := poolKey{authorities: string(t.CABundle), insecure: t.Insecure}
	if t.URL != "" {
		base, err := url.Parse(t.URL)
		if err != nil {
			return nil, key, fmt.Errorf("url: %w", err)
		}
		if base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
			return nil, key, fmt.Errorf("url %q: the desired format is https://host[/path]", t.URL)
		}
		key.scheme, key.host = base.Scheme, base.Host
		return base, key, nil
	}
	if t.Name == "" || t.Namespace == "" {
		return nil, key, errors.New("either a url or a service with name and namespace is required")
	}
	key.namespace, key.name, key.port = t.Namespace, t.Name, t.Port
	if key.port == 0 {
		key.port = 443
	}
	path := t.Path
	if path != "" && !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(t.host(), strconv.Itoa(int(key.port))), Path: path}, key, nil
}

func (c *Callout) pool(t Target, key poolKey, base *url.URL) (*pool, error) {
	secure := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: base.Hostname(), InsecureSkipVerify: t.Insecure}
	if len(t.CABundle) > 0 {
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, fmt.Errorf("%v: the caBundle has no certificate in PEM", t)
		}
	}
	if get := c.d.Certificate; get != nil {
		secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return get() }
	}
	h := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig: secure, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: mostIdle, MaxIdleConns: 8 * mostIdle, IdleConnTimeout: idleTimeout, DisableCompression: true,
	}
	p := &pool{key: key, transport: h, idle: h.CloseIdleConnections}
	if t.URL != "" {
		h.Proxy = http.ProxyFromEnvironment
		return p, nil
	}
	p.transport = &toEndpoint{store: c.d.Store, namespace: t.Namespace, name: t.Name, port: key.port, to: h}
	return p, nil
}

// Post sends body as JSON and reads the answer into out. Query is added to the URL; it may be nil. An answer that is not
// of success is an apierrors.APIStatus of its code; other errors name the URL.
func (c *Callout) Post(ctx context.Context, t Target, query url.Values, body, out any) error {
	base, transport, err := c.Transport(t)
	if err != nil {
		return err
	}
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode what is sent to %v: %w", t, err)
	}
	base.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base.String(), bytes.NewReader(data))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, */*")
	r.Header.Set("User-Agent", "kube-apiserver-admission")
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	a, err := client.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode < 200 || a.StatusCode > 299 {
		text, _ := io.ReadAll(io.LimitReader(a.Body, maxProblem)) // whatever came of it
		return apierrors.NewGenericServerResponse(a.StatusCode, http.MethodPost, schema.GroupResource{}, "", strings.TrimSpace(string(text)), 0, true)
	}
	text, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", base, err)
	}
	if len(text) > maxAnswer {
		return fmt.Errorf("the answer of %s is larger than %d bytes", base, maxAnswer)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, out); err != nil {
		return fmt.Errorf("couldn't read the answer of %s: %w", base, err)
	}
	return nil
}
