package authn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/yare-dev/yare/apiserver/authn"
)

// proxyAuthority issues certificates of clients.
type proxyAuthority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newProxyAuthority(t *testing.T) *proxyAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &proxyAuthority{t: t, key: key}
	a.cert = a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true}, nil)
	return a
}

func (a *proxyAuthority) issue(c, parent *x509.Certificate) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, a.key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	got, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

func (a *proxyAuthority) client(name string) *x509.Certificate {
	return a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, a.cert)
}

// Headers are believed that a proxy sends, and nobody else's.
func TestFrontProxies(t *testing.T) {
	t.Parallel()
	ca, other := newProxyAuthority(t), newProxyAuthority(t)
	f := authn.FrontProxy{AllowedNames: []string{"front"}, UsernameHeaders: []string{"X-Remote-User", "X-Other-User"}, UIDHeaders: []string{"X-Remote-Uid"},
		GroupHeaders: []string{"X-Remote-Group"}, ExtraHeaderPrefixes: []string{"X-Remote-Extra-"}}
	a, err := authn.FrontProxies(f, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	named := []string{"X-Remote-User", "jane", "X-Remote-Uid", "u1", "X-Remote-Group", "a", "X-Remote-Group", "b", "X-Remote-Extra-Example.org%2fscope", "x"}
	for name, tc := range map[string]struct {
		cert    *x509.Certificate
		headers []string
		want    string // of the user; empty: nobody's
		err     bool
	}{
		"all":             {ca.client("front"), named, "jane u1 [a b] map[example.org/scope:[x]]", false},
		"second name":     {ca.client("front"), []string{"X-Other-User", "joe"}, "joe  [] map[]", false},
		"no name":         {ca.client("front"), []string{"X-Remote-Group", "a"}, "", false},
		"another proxy":   {ca.client("back"), named, "", true},
		"another's":       {other.client("front"), named, "", false},
		"no certificate":  {nil, named, "", false},
		"no headers":      {ca.client("front"), nil, "", false},
		"not of a client": {ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "front"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca.cert), named, "", false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/api", nil)
		if tc.cert != nil {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{tc.cert}}
		}
		for i := 0; i < len(tc.headers); i += 2 {
			r.Header.Add(tc.headers[i], tc.headers[i+1])
		}
		u, err := a.Authenticate(r)
		if (err != nil) != tc.err || (u != nil) != (tc.want != "") || u != nil && fmt.Sprint(u.Name, " ", u.UID, " ", u.Groups, " ", u.Extra) != tc.want {
			t.Errorf("%s: %+v %v", name, u, err)
		}
		if u != nil && len(r.Header) != 0 {
			t.Errorf("%s: headers are left: %v", name, r.Header)
		}
	}
}
