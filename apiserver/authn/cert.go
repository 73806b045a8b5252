package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// CredentialID is the extra key that names the credential that a user came with.
const CredentialID = "authentication.kubernetes.io/credential-id"

// Certificates accepts client certificates that a CA of pool signed: the common name is the user, the organisations
// are the groups.
func Certificates(pool *x509.CertPool) Authenticator {
	return &certificates{pool: pool}
}

type certificates struct {
	pool *x509.CertPool
	// verified are certificates whose signatures were found right, while the whole chain is valid.
	verified Remembered[[sha256.Size]byte, holder]
}

// holder is the user of a certificate that is valid from a time on.
type holder struct {
	user *User
	from time.Time
}

// byCertificate opens the name of a credential that is a certificate.
const byCertificate = "X509SHA256="

// ByCertificate says that it is the client's certificate by which u was found.
func (u *User) ByCertificate() bool {
	ids := u.Extra[CredentialID]
	return len(ids) > 0 && strings.HasPrefix(ids[0], byCertificate)
}

// Authenticate is part of Authenticator. The User that it returns is shared.
func (c *certificates) Authenticate(r *http.Request) (*User, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	if leaf.Subject.CommonName == "" {
		return nil, nil
	}
	sum := sha256.Sum256(leaf.Raw)
	if h, ok := c.verified.Get(sum); ok && !time.Now().Before(h.from) {
		return h.user, nil
	}
	between := x509.NewCertPool()
	for _, cert := range r.TLS.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: c.pool, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	h, until := holder{from: leaf.NotBefore, user: &User{
		Name:   leaf.Subject.CommonName,
		Groups: slices.Clip(append(slices.Clone(leaf.Subject.Organization), Authenticated)),
		Extra:  map[string][]string{CredentialID: {byCertificate + hex.EncodeToString(sum[:])}},
	}}, leaf.NotAfter
	for _, cert := range chains[0] {
		if cert.NotBefore.After(h.from) {
			h.from = cert.NotBefore
		}
		if cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	c.verified.Put(sum, h, until)
	return h.user, nil
}
