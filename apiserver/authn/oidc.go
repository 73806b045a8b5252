package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	config "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
)

const (
	// oidcTimeout bounds a request to an issuer.
	oidcTimeout = 30 * time.Second
	// oidcAgain is how long an issuer is left alone after it was asked for its keys.
	oidcAgain = 10 * time.Second
	// oidcDocument bounds what an issuer may answer.
	oidcDocument = 1 << 20
)

// oidcAlgorithms are the signatures that are accepted.
var oidcAlgorithms = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"}

// OIDC verifies tokens of OpenID Connect issuers. Their keys are fetched when the first token comes, and again when one
// comes that none of them signed.
type OIDC struct{ issuers map[string]*issuer }

// NewOIDC returns the verifier of the configured issuers.
func NewOIDC(configs []config.JWTAuthenticator) (*OIDC, error) {
	o := &OIDC{issuers: map[string]*issuer{}}
	for _, c := range configs {
		mapper, errs := validation.CompileAndValidateJWTAuthenticator(compiler(), c, []string{Issuer})
		if len(errs) > 0 {
			return nil, errs.ToAggregate()
		}
		i := &issuer{mapping: mapping{&c, mapper}, client: &http.Client{Timeout: oidcTimeout}}
		t := http.DefaultTransport.(*http.Transport).Clone()
		if ca := c.Issuer.CertificateAuthority; ca != "" {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(ca))
			t.TLSClientConfig = &tls.Config{RootCAs: pool}
		}
		i.client.Transport = t
		i.parser = jwt.NewParser(jwt.WithValidMethods(oidcAlgorithms), jwt.WithIssuer(c.Issuer.URL), jwt.WithExpirationRequired())
		o.issuers[c.Issuer.URL] = i
	}
	return o, nil
}

// issuer is one of them.
type issuer struct {
	mapping
	client *http.Client
	parser *jwt.Parser

	mu    sync.Mutex // held while fetching, so that it is done once
	keys  jose.JSONWebKeySet
	asked time.Time
	err   error
}

// Verify returns the user of a token, nil where it is of no configured issuer.
func (o *OIDC) Verify(ctx context.Context, token string) (*User, error) {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
		return nil, nil
	}
	name, _ := claims["iss"].(string)
	i := o.issuers[name]
	if i == nil {
		return nil, nil
	}
	u, err := i.verify(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("oidc: %w", err)
	}
	return u, nil
}

func (i *issuer) verify(ctx context.Context, token string) (*User, error) {
	claims := jwt.MapClaims{}
	_, err := i.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		return i.key(ctx, kid)
	})
	if err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	audiences, err := claims.GetAudience()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(i.config.Issuer.Audiences, a) }) {
		return nil, fmt.Errorf("verify token: expected audience in %q got %q", i.config.Issuer.Audiences, []string(audiences))
	}
	return i.user(ctx, claims)
}

// key returns the issuer's keys of that name, all where the token does not say.
func (i *issuer) key(ctx context.Context, kid string) (any, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	find := func() (set jwt.VerificationKeySet) {
		for _, k := range i.keys.Keys {
			if kid == "" || k.KeyID == kid {
				set.Keys = append(set.Keys, k.Key)
			}
		}
		return set
	}
	if set := find(); len(set.Keys) > 0 {
		return set, nil
	}
	if time.Since(i.asked) >= oidcAgain {
		i.err = i.fetch(ctx)
		i.asked = time.Now()
	}
	if i.err != nil {
		return nil, i.err
	}
	if set := find(); len(set.Keys) > 0 {
		return set, nil
	}
	return nil, errors.New("failed to verify id token signature: no key of that name")
}

func (i *issuer) fetch(ctx context.Context) error {
	address := strings.TrimSuffix(i.config.Issuer.URL, "/") + ConfigurationPath
	if d := i.config.Issuer.DiscoveryURL; d != "" {
		address = d
	}
	var about struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := i.read(ctx, address, &about); err != nil {
		return err
	}
	if about.Issuer != i.config.Issuer.URL {
		return fmt.Errorf("issuer did not match the issuer returned by provider, expected %q got %q", i.config.Issuer.URL, about.Issuer)
	}
	var keys jose.JSONWebKeySet
	if err := i.read(ctx, about.Keys, &keys); err != nil {
		return err
	}
	i.keys = keys
	return nil
}

func (i *issuer) read(ctx context.Context, address string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("ask issuer: %w", err)
	}
	w, err := i.client.Do(r)
	if err != nil {
		return fmt.Errorf("ask issuer: %w", err)
	}
	defer w.Body.Close()
	text, err := io.ReadAll(io.LimitReader(w.Body, oidcDocument))
	if err != nil {
		return fmt.Errorf("read %s: %w", address, err)
	}
	if w.StatusCode != http.StatusOK {
		return fmt.Errorf("read %s: %s", address, w.Status)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read %s: %w", address, err)
	}
	return nil
}
