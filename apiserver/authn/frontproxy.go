package authn

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
)

// FrontProxy is who may speak for others, by headers: a proxy before the API server that knows its users itself. The fields are
// upstream's flags --requestheader-*.
type FrontProxy struct {
	// ClientCAFile has the authorities, PEM, whose client certificates are proxies'. Without it there are none.
	ClientCAFile string `json:"clientCAFile,omitempty"`
	// AllowedNames are the common names that proxies have. Default: any.
	AllowedNames []string `json:"allowedNames,omitempty"`
	// Headers with the user's name (of which the first that is there counts), UID, groups, and what those with extras begin with.
	UsernameHeaders     []string `json:"usernameHeaders,omitempty"`
	UIDHeaders          []string `json:"uidHeaders,omitempty"`
	GroupHeaders        []string `json:"groupHeaders,omitempty"`
	ExtraHeaderPrefixes []string `json:"extraHeaderPrefixes,omitempty"`
}

// Authorities reads the file of authorities.
func (f *FrontProxy) Authorities() ([]byte, error) {
	text, err := os.ReadFile(f.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("authorities of front proxies: %w", err)
	}
	if len(f.UsernameHeaders) == 0 {
		return nil, errors.New("front proxies: no header has the user's name")
	}
	return text, nil
}

// Drop deletes the headers that name a user: those who read them further on must not take a client's for a proxy's.
func (f *FrontProxy) Drop(h http.Header) {
	for _, names := range [][]string{f.UsernameHeaders, f.UIDHeaders, f.GroupHeaders} {
		for _, name := range names {
			h.Del(name)
		}
	}
	for _, prefix := range f.ExtraHeaderPrefixes {
		for name := range h {
			if begins(name, prefix) {
				delete(h, name)
			}
		}
	}
}

// begins says whether the name of a header does so with prefix, in whatever case.
func begins(name, prefix string) bool {
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// FrontProxies accepts the users that proxies name whose certificates those authorities signed.
func FrontProxies(f FrontProxy, authorities []byte) (Authenticator, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("authorities of front proxies: %s holds no certificates", f.ClientCAFile)
	}
	return &frontProxies{f, Certificates(pool)}, nil
}

type frontProxies struct {
	FrontProxy
	proxies Authenticator
}

// Authenticate is part of Authenticator. Requests without a proxy's certificate are others' to judge. The headers that were believed go:
// what is behind this server must not read them again.
func (f *frontProxies) Authenticate(r *http.Request) (*User, error) {
	proxy, err := f.proxies.Authenticate(r)
	if err != nil || proxy == nil {
		return nil, nil
	}
	if len(f.AllowedNames) > 0 && !slices.Contains(f.AllowedNames, proxy.Name) {
		return nil, fmt.Errorf("x509: subject with cn=%s is not in the allowed list", proxy.Name)
	}
	u := &User{}
	for _, h := range f.UsernameHeaders {
		if u.Name = r.Header.Get(h); u.Name != "" {
			break
		}
	}
	if u.Name == "" {
		return nil, nil
	}
	for _, h := range f.UIDHeaders {
		if u.UID = r.Header.Get(h); u.UID != "" {
			break
		}
	}
	for _, h := range f.GroupHeaders {
		for _, g := range r.Header.Values(h) {
			if g != "" {
				u.Groups = append(u.Groups, g)
			}
		}
	}
	for _, prefix := range f.ExtraHeaderPrefixes {
		for h, values := range r.Header {
			if !begins(h, prefix) {
				continue
			}
			key := strings.ToLower(h[len(prefix):])
			if plain, err := url.PathUnescape(key); err == nil {
				key = plain
			}
			if u.Extra == nil {
				u.Extra = map[string][]string{}
			}
			u.Extra[key] = append(u.Extra[key], values...)
		}
	}
	f.Drop(r.Header)
	return u, nil
}
