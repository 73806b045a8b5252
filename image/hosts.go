package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// hostConfig is a registry's host.yaml. It lives in a folder named like the
// host with its port ("registry.example:5000", "docker.io") below
// Config.Registries, beside
//
//	*.crt                    certificate authorities to trust for this host
//	client.cert, client.key  the client's certificate
//
// The folder "_default" speaks for hosts without one. All files are optional.
type hostConfig struct {
	// Mirrors are hosts that are asked first, in this order, under the same
	// repository names, or below a path of theirs ("mirror.example/proxy"). Each
	// has a folder of its own for its certificates and credentials.
	Mirrors []string `json:"mirrors,omitempty"`
	// MirrorsOnly leaves the registry itself alone.
	MirrorsOnly bool `json:"mirrorsOnly,omitempty"`
	// SkipVerify accepts any certificate of this host.
	SkipVerify bool `json:"skipVerify,omitempty"`
	// PlainHTTP allows HTTP where HTTPS does not answer, and so allows everyone
	// on the way to read credentials. Loopback hosts may always do so.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// Username and Password, or IdentityToken, which is exchanged for an access
	// token, are for this host where a pull brings no credentials of its own.
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
}

// host is one registry host with what is configured for it.
type host struct {
	name   string
	below  string // path before repository names, with a slash at its end, or empty
	config hostConfig
	tls    *tls.Config
	stall  time.Duration
	pause  time.Duration
}

func (s *Store) host(name string) (host, error) {
	h := host{name: name, tls: &tls.Config{MinVersion: tls.VersionTLS12}, stall: s.stall, pause: s.pause}
	if s.registries == "" {
		return h, nil
	}
	dir := filepath.Join(s.registries, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Join(s.registries, "_default")
	}
	if err := h.read(dir); err != nil {
		return h, fmt.Errorf("configure registry %s: %w", name, err)
	}
	return h, nil
}

func (h *host) read(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "host.yaml"))
	if err == nil {
		err = yaml.UnmarshalStrict(raw, &h.config)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s/host.yaml: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "hosts.toml")); err == nil {
		return fmt.Errorf("%s/hosts.toml is containerd's format and is not read: write host.yaml: %w", dir, ErrInvalid)
	}
	h.tls.InsecureSkipVerify = h.config.SkipVerify
	authorities, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil {
		return err
	}
	for _, file := range authorities {
		if err := h.trust(file); err != nil {
			return err
		}
	}
	cert, key := filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")
	if _, err := os.Stat(cert); err == nil {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("load client certificate: %w", err)
		}
		h.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

func (h *host) trust(file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if h.tls.RootCAs == nil {
		if h.tls.RootCAs, err = x509.SystemCertPool(); err != nil {
			h.tls.RootCAs = x509.NewCertPool()
		}
	}
	if !h.tls.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate: %w", file, ErrInvalid)
	}
	return nil
}

// endpoints are the hosts to ask for a registry's images, in order.
func (s *Store) endpoints(registry string) ([]host, error) {
	origin, err := s.host(registry)
	if err != nil {
		return nil, err
	}
	var hosts []host
	for _, m := range origin.config.Mirrors {
		name, path, under := strings.Cut(m, "/")
		if !references().host.MatchString(name) || under && !references().path.MatchString(path) {
			return nil, fmt.Errorf("configure registry %s: mirror %q is no host name, with a path perhaps: %w", registry, m, ErrInvalid)
		}
		h, err := s.host(name)
		if err != nil {
			return nil, err
		}
		if under {
			h.below = path + "/"
		}
		hosts = append(hosts, h)
	}
	if !origin.config.MirrorsOnly {
		hosts = append(hosts, origin)
	}
	return hosts, nil
}

// auth is what the host is told: what the pull brings for the registry that the
// image names, else what is configured.
func (h host) auth(given Auth, registry string) Auth {
	if h.name == registry && h.below == "" && given != (Auth{}) {
		return given
	}
	return Auth{Username: h.config.Username, Password: h.config.Password, IdentityToken: h.config.IdentityToken}
}

// transport makes the connections to a host and to where it redirects to.
func (h host) transport() *wire {
	return &wire{host: h, Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       h.tls,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: h.stall,
		IdleConnTimeout:       10 * time.Second,
		DisableCompression:    true, // digests are of what is sent
	}}
}

// wire is a transport that speaks plain HTTP only where that is allowed, and
// bears no answer that comes to a stop.
type wire struct {
	*http.Transport
	host host
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !w.host.config.PlainHTTP && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed (plainHTTP in host.yaml)", r.URL.Host)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	resp, err := w.Transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = newFlow(ctx, cancel, resp.Body, w.host.stall)
	if strings.HasSuffix(r.URL.Path, "/v2/") || resp.StatusCode >= 300 {
		// Read to their ends, but of no use beyond a message.
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxMessage), resp.Body}
	}
	return resp, nil
}

const (
	// defaultStall is how long a registry may bring less than stallBytes.
	defaultStall = time.Minute
	stallBytes   = 4 << 10
	// maxMessage bounds answers that are not what was asked for, in bytes.
	maxMessage = 64 << 10
)

// errStalled may pass, as a time-out.
type errStalled struct{ after time.Duration }

func (e errStalled) Error() string { return fmt.Sprintf("nothing came for %v", e.after) }
func (errStalled) Timeout() bool   { return true }

// flow is a body that ends with an error when it stalls.
type flow struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	since  int // bytes since the timer was set
}

func newFlow(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, stall time.Duration) *flow {
	f := &flow{ReadCloser: body, ctx: ctx, cancel: cancel, stall: stall}
	f.timer = time.AfterFunc(stall, func() { cancel(errStalled{stall}) })
	return f
}

func (f *flow) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.since += n; f.since >= stallBytes {
		f.since = 0
		f.timer.Reset(f.stall)
	}
	if cause := context.Cause(f.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

func (f *flow) Close() error {
	f.timer.Stop()
	err := f.ReadCloser.Close()
	f.cancel(nil)
	return err
}

func isLoopback(hostname string) bool {
	a, err := netip.ParseAddr(strings.Trim(hostname, "[]"))
	return hostname == "localhost" || err == nil && a.IsLoopback()
}

// checkRedirect keeps a registry from sending us to the machine's own network:
// an address that is not public is followed only from a host that is one too.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	to, err := netip.ParseAddr(r.URL.Hostname())
	if err != nil || !isInner(to) {
		return nil
	}
	from := via[0].URL.Hostname()
	if a, err := netip.ParseAddr(from); from == "localhost" || err == nil && isInner(a) {
		return nil
	}
	return fmt.Errorf("redirect from %s to the inner address %s refused", from, to)
}

func isInner(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified()
}
