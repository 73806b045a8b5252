package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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
	// repository names. Each has a folder of its own for its certificates.
	Mirrors []string `json:"mirrors,omitempty"`
	// MirrorsOnly leaves the registry itself alone.
	MirrorsOnly bool `json:"mirrorsOnly,omitempty"`
	// SkipVerify accepts any certificate of this host.
	SkipVerify bool `json:"skipVerify,omitempty"`
	// PlainHTTP allows HTTP where HTTPS does not answer, and so allows everyone
	// on the way to read credentials. Loopback hosts may always do so.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
}

// host is one registry host with what is configured for it.
type host struct {
	name   string
	config hostConfig
	tls    *tls.Config
}

func (s *Store) host(name string) (host, error) {
	h := host{name: name, tls: &tls.Config{MinVersion: tls.VersionTLS12}}
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
		if !references().host.MatchString(m) {
			return nil, fmt.Errorf("configure registry %s: mirror %q is no host name: %w", registry, m, ErrInvalid)
		}
		h, err := s.host(m)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	if !origin.config.MirrorsOnly {
		hosts = append(hosts, origin)
	}
	return hosts, nil
}

// transport makes the connections to a host and to where it redirects to.
func (h host) transport() *wire {
	return &wire{host: h, Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       h.tls,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       10 * time.Second,
	}}
}

// wire is a transport that speaks plain HTTP only where that is allowed.
type wire struct {
	*http.Transport
	host host
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !w.host.config.PlainHTTP && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed (plainHTTP in host.yaml)", r.URL.Host)
	}
	return w.Transport.RoundTrip(r)
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
