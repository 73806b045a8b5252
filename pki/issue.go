package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// PEM block types.
const (
	keyBlock    = "EC PRIVATE KEY"
	certBlock   = "CERTIFICATE"
	publicBlock = "PUBLIC KEY"
)

// Request says whom a certificate is for.
type Request struct {
	User      string   // common name: the user's name in the API
	Groups    []string // organisations: the user's groups in the API
	Server    bool     // serves TLS; otherwise a client
	Client    bool     // of a server that is also a client
	Names     []string
	Addresses []netip.Addr
}

// usages are what the certificate is for.
func (r Request) usages() (us []x509.ExtKeyUsage) {
	if r.Server {
		us = append(us, x509.ExtKeyUsageServerAuth)
	}
	if r.Client || !r.Server {
		us = append(us, x509.ExtKeyUsageClientAuth)
	}
	return us
}

// Authority signs certificates.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// PEM returns the certificate.
func (a *Authority) PEM() []byte { return encode(certBlock, a.cert.Raw) }

// Pool returns a pool that holds this CA alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Issue makes a key and a certificate for r, in PEM. It is valid for a year, or as long as the CA.
func (a *Authority) Issue(r Request) (key, cert []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		PublicKey:             private.Public(),
		Subject:               pkix.Name{CommonName: r.User, Organization: r.Groups},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           r.usages(),
		BasicConstraintsValid: true,
		DNSNames:              r.Names,
	}
	for _, ip := range r.Addresses {
		template.IPAddresses = append(template.IPAddresses, ip.Unmap().AsSlice())
	}
	if cert, err = a.Sign(template); err != nil {
		return nil, nil, err
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, err
	}
	return key, cert, nil
}

// Sign returns the certificate, in PEM, that the template describes, for the template's public key. It ends when the CA does at the
// latest. Its serial number is made here.
func (a *Authority) Sign(template *x509.Certificate) ([]byte, error) {
	var err error
	if template.SerialNumber, err = serialNumber(); err != nil {
		return nil, err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, template.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return encode(certBlock, der), nil
}

// valid reads data and says whether it answers r for some time to come.
func (a *Authority) valid(data []byte, r Request, now time.Time) (*pair, bool) {
	p, err := parsePair(data)
	if err != nil {
		return nil, false
	}
	c := p.cert.Leaf
	var addresses []netip.Addr
	for _, ip := range c.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		addresses = append(addresses, addr.Unmap())
	}
	// A CA that ends soon cannot give more than its own life.
	limit := now.Add(renewBefore)
	if limit.After(a.cert.NotAfter) {
		limit = a.cert.NotAfter.Add(-time.Second)
	}
	ok := c.CheckSignatureFrom(a.cert) == nil &&
		c.Subject.CommonName == r.User && sameSet(c.Subject.Organization, r.Groups) &&
		!slices.ContainsFunc(r.usages(), func(u x509.ExtKeyUsage) bool { return !slices.Contains(c.ExtKeyUsage, u) }) &&
		sameSet(c.DNSNames, r.Names) && sameSet(addresses, unmapped(r.Addresses)) &&
		!now.Before(c.NotBefore) && c.NotAfter.After(limit)
	return p, ok
}

func unmapped(as []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, len(as))
	for i, a := range as {
		out[i] = a.Unmap()
	}
	return out
}

// sameSet compares without regard to order and repetition.
func sameSet[T comparable](a, b []T) bool {
	in := func(x, y []T) bool {
		return !slices.ContainsFunc(x, func(v T) bool { return !slices.Contains(y, v) })
	}
	return in(a, b) && in(b, a)
}

// ensureAuthority loads the authority in the file name+".pem", or makes one called commonName where there is none.
func ensureAuthority(dir, name, commonName string) (*Authority, error) {
	path := filepath.Join(dir, name+".pem")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if data, err = newAuthority(commonName); err == nil {
			err = writeFile(path, data, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return parseAuthority(path, data)
}

// LoadAuthority returns the authority of a folder that Ensure has made.
func LoadAuthority(dir string) (*Authority, error) {
	path := filepath.Join(dir, "ca.pem")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return parseAuthority(path, data)
}

func parseAuthority(path string, data []byte) (*Authority, error) {
	p, err := parsePair(data)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s is damaged: restore it, or remove the folder to begin anew: %w", path, err)
	}
	key, ok := p.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !p.cert.Leaf.IsCA {
		return nil, fmt.Errorf("certificate authority %s: not an ECDSA authority", path)
	}
	if now := time.Now(); !now.Before(p.cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate authority %s expired at %s", path, p.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &Authority{key: key, cert: p.cert.Leaf}, nil
}

func newAuthority(commonName string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		IsCA:                  true,
		DNSNames:              []string{commonName},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	private, err := keyPEM(key)
	return append(private, encode(certBlock, der)...), err
}

// ensureSigner loads the key that signs service account tokens, or makes one.
func ensureSigner(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, "sa.pem")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make service account key: %w", err)
		}
		if data, err = keyPEM(key); err == nil {
			err = writeFile(path, data, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("service account key %s is damaged: restore it, or remove it and every token with it", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("service account key %s: %w", path, err)
	}
	return key, nil
}

func parsePair(data []byte) (*pair, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &pair{pem: data, cert: cert}, nil
}

// splitPEM separates the private key from what follows it.
func splitPEM(data []byte) (key, cert []byte) {
	_, rest := pem.Decode(data)
	return data[:len(data)-len(rest)], rest
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encode(keyBlock, der), nil
}

func publicPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return encode(publicBlock, der), nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
