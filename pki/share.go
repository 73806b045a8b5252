package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// sharedFiles are what every server of a cluster has alike.
var sharedFiles = []string{"ca.pem", "front-proxy-ca.pem", "etcd-ca.pem", "sa.pem"}

// Shared returns the files that every server of the cluster has alike: who has them is the cluster.
func (p *PKI) Shared() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range sharedFiles {
		b, err := os.ReadFile(filepath.Join(p.Dir, name))
		if err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		out[name] = b
	}
	return out, nil
}

// Share puts into dir what another server's Shared has returned, so that Ensure makes the rest of it. Other files of dir are left alone; one
// that is there with another content is an error.
func Share(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make certificate folder: %w", err)
	}
	for _, name := range sharedFiles {
		b, path := files[name], filepath.Join(dir, name)
		if len(b) == 0 {
			return fmt.Errorf("keys of the cluster: %s is missing", name)
		}
		if old, err := os.ReadFile(path); err == nil && string(old) != string(b) {
			return fmt.Errorf("%s is another cluster's: remove the folder to begin anew", path)
		}
		if err := writeIfChanged(path, b, 0o600); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// Tokens are of the form PREFIX.CLAIMS.SIGNATURE. The signature is over text that is no certificate's.
const (
	tokenPrefix = "yare-server"
	tokenDomain = "yare server token\x00"
)

// claims are what a token says.
type claims struct {
	Authority string `json:"ca"` // SHA-256 of the certificate
	Ends      int64  `json:"exp"`
	ID        string `json:"id"` // tells tokens apart
}

// Token returns a text that proves until it ends that whoever has it was given it by a holder of the authority's key.
func (a *Authority) Token(life time.Duration) (string, error) {
	c, err := json.Marshal(claims{a.hash(), time.Now().Add(life).Unix(), rand.Text()[:8]})
	if err != nil {
		return "", err
	}
	said := tokenPrefix + "." + base64.RawURLEncoding.EncodeToString(c)
	sum := sha256.Sum256([]byte(tokenDomain + said))
	sig, err := ecdsa.SignASN1(rand.Reader, a.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign the token: %w", err)
	}
	return said + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// hash names the authority.
func (a *Authority) hash() string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// CheckToken says why a text is no token of a's that holds now.
func (a *Authority) CheckToken(text string, now time.Time) error {
	c, err := readToken(text)
	if err != nil {
		return err
	}
	cut := strings.LastIndexByte(text, '.')
	sig, err := base64.RawURLEncoding.DecodeString(text[cut+1:])
	sum := sha256.Sum256([]byte(tokenDomain + text[:cut]))
	if err != nil || c.Authority != a.hash() || !ecdsa.VerifyASN1(&a.key.PublicKey, sum[:], sig) {
		return errors.New("the token is of another cluster, or not whole")
	}
	if ends := time.Unix(c.Ends, 0); !now.Before(ends) {
		return fmt.Errorf("the token ended at %s: make a new one with 'yare server-token'", ends.UTC().Format(time.RFC3339))
	}
	return nil
}

func readToken(text string) (c claims, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[0] != tokenPrefix {
		return c, errors.New("not a token of 'yare server-token'")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return c, errors.New("the token is not whole")
	}
	return c, nil
}

// TokenPool returns the pool that holds the authority that a token names alone, or an error when the PEM text is another's. So the one who
// has a token need believe nobody about whom to believe.
func TokenPool(token string, authority []byte) (*x509.CertPool, error) {
	c, err := readToken(token)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(authority)
	if block == nil || block.Type != certBlock {
		return nil, errors.New("the server shows no certificate authority")
	}
	sum := sha256.Sum256(block.Bytes)
	if hex.EncodeToString(sum[:]) != c.Authority {
		return nil, errors.New("the server's certificate authority is not the one of the token: another cluster's server, or somebody between here and there")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool, nil
}
