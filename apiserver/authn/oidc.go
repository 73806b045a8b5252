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

	mu       sync.Mutex
	keys     jose.JSONWebKeySet
	asked    time.Time     // when the keys were fetched last
	err      error         // of that
	fetching chan struct{} // closed when the fetch that goes on is over; nil where none does
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

// key returns the issuer's keys of that name, all where the token does not say. Who names one that is known does not wait for those who
// do not.
func (i *issuer) key(ctx context.Context, kid string) (any, error) {
	i.mu.Lock()
	set, fetching := i.find(kid), i.fetching
	ours := len(set.Keys) == 0 && fetching == nil && time.Since(i.asked) >= oidcAgain
	if ours {
		i.fetching = make(chan struct{})
	}
	i.mu.Unlock()
	switch {
	case len(set.Keys) > 0:
		return set, nil
	case ours:
		i.refresh(context.WithoutCancel(ctx))
	case fetching != nil:
		select {
		case <-fetching:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if set := i.find(kid); len(set.Keys) > 0 {
		return set, nil
	}
	if i.err != nil {
		return nil, i.err
	}
	return nil, errors.New("failed to verify id token signature: no key of that name")
}

// find returns the known keys of that name.
// Preconditions: i.mu is held.
func (i *issuer) find(kid string) (set jwt.VerificationKeySet) {
	for _, k := range i.keys.Keys {
		if kid == "" || k.KeyID == kid {
			set.Keys = append(set.Keys, k.Key)
		}
	}
	return set
}

// refresh fetches the keys for all who wait. The context is nobody's who could end it by going away: who sends tokens that nobody signed
// could keep new keys from being known.
func (i *issuer) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, oidcTimeout)
	defer cancel()
	keys, err := i.fetch(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		i.keys = *keys
	}
	close(i.fetching)
	i.asked, i.err, i.fetching = time.Now(), err, nil
}

func (i *issuer) fetch(ctx context.Context) (*jose.JSONWebKeySet, error) {
	address := strings.TrimSuffix(i.config.Issuer.URL, "/") + ConfigurationPath
	if d := i.config.Issuer.DiscoveryURL; d != "" {
		address = d
	}
	var about struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := i.read(ctx, address, &about); err != nil {
		return nil, err
	}
	if about.Issuer != i.config.Issuer.URL {
		return nil, fmt.Errorf("issuer did not match the issuer returned by provider, expected %q got %q", i.config.Issuer.URL, about.Issuer)
	}
	keys := &jose.JSONWebKeySet{}
	if err := i.read(ctx, about.Keys, keys); err != nil {
		return nil, err
	}
	return keys, nil
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
