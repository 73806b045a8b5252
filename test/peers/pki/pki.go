// Package pki makes the keys and certificates of a cluster of upstream's programs, as upstream's documentation asks for
// them: one authority for servers and clients, and one key for the tokens of service accounts.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Authority issues certificates into a folder.
type Authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// Files are the paths of a certificate and its key.
type Files struct{ Cert, Key string }

// New makes an authority, ca.crt and ca.key in dir, and sa.key and sa.pub beside them.
func New(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "peers"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}}
	files, err := a.issue("ca", a.cert)
	if err != nil {
		return nil, err
	}
	if a.pem, err = os.ReadFile(files.Cert); err != nil {
		return nil, err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&accounts.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := write(a.path("sa.pub"), "PUBLIC KEY", public); err != nil {
		return nil, err
	}
	return a, a.writeKey("sa.key", accounts)
}

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return a.pem }

// Files are the authority's own.
func (a *Authority) Files() Files { return Files{a.path("ca.crt"), a.path("ca.key")} }

// Accounts is the key of service accounts' tokens, and its public half.
func (a *Authority) Accounts() (key, public string) { return a.path("sa.key"), a.path("sa.pub") }

// Client issues a certificate by which a user is known.
func (a *Authority) Client(file, user string, groups ...string) (Files, error) {
	return a.issue(file, &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Server issues a certificate for names and addresses.
func (a *Authority) Server(file, name string, addresses []netip.Addr, names ...string) (Files, error) {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, ip := range addresses {
		c.IPAddresses = append(c.IPAddresses, net.IP(ip.AsSlice()))
	}
	return a.issue(file, c)
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *Authority) issue(name string, c *x509.Certificate) (Files, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, err
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return Files{}, err
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().AddDate(0, 1, 0)
	signer := a.key
	if signer == nil { // the authority itself
		signer, a.key = key, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, signer)
	if err != nil {
		return Files{}, fmt.Errorf("issue %s: %w", name, err)
	}
	f := Files{a.path(name + ".crt"), a.path(name + ".key")}
	if err := write(f.Cert, "CERTIFICATE", der); err != nil {
		return Files{}, err
	}
	return f, a.writeKey(name+".key", key)
}

func (a *Authority) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return write(a.path(name), "EC PRIVATE KEY", der)
}

func write(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
