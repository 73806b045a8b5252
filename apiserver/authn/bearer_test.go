package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	config "k8s.io/apiserver/pkg/apis/apiserver"

	"github.com/yare-dev/yare/apiserver/authn"
)

func TestBootstrapTokens(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*corev1.Secret)
		token  string
		groups string // empty: nobody
	}{
		"good": {groups: "system:bootstrappers"},
		"groups": {change: func(s *corev1.Secret) {
			s.Data["auth-extra-groups"] = []byte("system:bootstrappers:a,system:bootstrappers:b")
		}, groups: "system:bootstrappers system:bootstrappers:a system:bootstrappers:b"},
		"foreign group":  {change: func(s *corev1.Secret) { s.Data["auth-extra-groups"] = []byte("system:masters") }},
		"lasting":        {change: func(s *corev1.Secret) { s.Data["expiration"] = []byte("2999-01-01T00:00:00Z") }, groups: "system:bootstrappers"},
		"expired":        {change: func(s *corev1.Secret) { s.Data["expiration"] = []byte("2001-01-01T00:00:00Z") }},
		"odd expiry":     {change: func(s *corev1.Secret) { s.Data["expiration"] = []byte("soon") }},
		"another type":   {change: func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }},
		"not for this":   {change: func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-authentication") }},
		"another id":     {change: func(s *corev1.Secret) { s.Data["token-id"] = []byte("zzzzzz") }},
		"wrong secret":   {token: "abcdef.0123456789abcdeg"},
		"unknown":        {token: "abcdeg.0123456789abcdef"},
		"no such form":   {token: "abcdef"},
		"being deleted":  {change: func(s *corev1.Secret) { now := metav1.Now(); s.DeletionTimestamp = &now }},
		"secret trimmed": {token: "abcdef.0123456789abcde"},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: "bootstrap.kubernetes.io/token",
			Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")}}
		if tc.change != nil {
			tc.change(s)
		}
		if tc.token == "" {
			tc.token = "abcdef.0123456789abcdef"
		}
		o := objects{}
		o.put(s)
		u, err := authn.BootstrapToken(o)(t.Context(), tc.token)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case (u != nil) != (tc.groups != ""):
			t.Errorf("%s: user %+v", name, u)
		case u != nil && (u.Name != "system:bootstrap:abcdef" || strings.Join(u.Groups, " ") != tc.groups):
			t.Errorf("%s: user %+v", name, u)
		}
	}
}

// provider is an OpenID Connect issuer.
type provider struct {
	*httptest.Server
	t    *testing.T
	key  *ecdsa.PrivateKey
	kid  string
	asks atomic.Int32
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{t: t, kid: "k1"}
	p.rotate("k1")
	mux := http.NewServeMux()
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if f, ok := v.(func() any); ok {
				v := f()
				_ = json.NewEncoder(w).Encode(v)
				return
			}
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	mux.Handle("/.well-known/openid-configuration", answer(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys"}))
	mux.Handle("/keys", answer(func() any {
		p.asks.Add(1)
		return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Algorithm: "ES256", Use: "sig"}}}
	}))
	return p
}

func (p *provider) rotate(kid string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.key, p.kid = key, kid
}

// token signs claims over those of a good token.
func (p *provider) token(claims map[string]any) string {
	p.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: p.kid}}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	all := map[string]any{"iss": p.URL, "aud": "kubernetes", "exp": time.Now().Add(time.Hour).Unix(), "sub": "jane", "groups": []string{"a", "b"}, "tenant": "acme"}
	for k, v := range claims {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	text, err := josejwt.Signed(s).Claims(all).Serialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func (p *provider) config() config.JWTAuthenticator {
	oidc := "oidc:"
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}))
	return config.JWTAuthenticator{
		Issuer:               config.Issuer{URL: p.URL, CertificateAuthority: ca, Audiences: []string{"kubernetes"}},
		ClaimValidationRules: []config.ClaimValidationRule{{Claim: "tenant", RequiredValue: "acme"}},
		ClaimMappings: config.ClaimMappings{Username: config.PrefixedClaimOrExpression{Claim: "sub", Prefix: &oidc},
			Groups: config.PrefixedClaimOrExpression{Claim: "groups", Prefix: &oidc}},
	}
}

// verifier is one of the configured issuers.
func verifier(t *testing.T, configs ...config.JWTAuthenticator) *authn.OIDC {
	t.Helper()
	o, err := authn.NewOIDC(configs)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOIDC(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	o := verifier(t, p.config())
	for name, tc := range map[string]struct {
		claims map[string]any
		user   string // and groups
		err    string
	}{
		"good":             {nil, "oidc:jane [oidc:a oidc:b]", ""},
		"one group":        {map[string]any{"groups": "a"}, "oidc:jane [oidc:a]", ""},
		"no groups":        {map[string]any{"groups": nil}, "oidc:jane []", ""},
		"expired":          {map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}, "", "token is expired"},
		"for ever":         {map[string]any{"exp": nil}, "", "exp claim is required"},
		"another audience": {map[string]any{"aud": []string{"x"}}, "", `expected audience in ["kubernetes"] got ["x"]`},
		"another tenant":   {map[string]any{"tenant": "x"}, "", "required claim tenant value does not match"},
		"no tenant":        {map[string]any{"tenant": nil}, "", "required claim tenant not present in ID token"},
		"no name":          {map[string]any{"sub": ""}, "", "parse username claims"},
		"odd groups":       {map[string]any{"groups": []int{1}}, "", "parse groups claim"},
		"another issuer":   {map[string]any{"iss": "https://example.org"}, "", ""},
	} {
		u, err := o.Verify(t.Context(), p.token(tc.claims))
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: got %v, want %q", name, err, tc.err)
		case tc.err == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case (u != nil) != (tc.user != "") || u != nil && fmt.Sprint(u.Name, " ", u.Groups) != tc.user:
			t.Errorf("%s: user %+v", name, u)
		}
	}
	if n := p.asks.Load(); n != 1 {
		t.Errorf("asked for keys %d times", n)
	}
	forged := newProvider(t)
	forged.URL = p.URL
	if u, err := o.Verify(t.Context(), forged.token(nil)); err == nil || u != nil {
		t.Errorf("a forged token is %v", u)
	}
	if u, err := o.Verify(t.Context(), "not a token"); err != nil || u != nil {
		t.Errorf("%v %v", u, err)
	}
}

// What expressions make of claims, and what they refuse.
func TestOIDCExpressions(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	c := p.config()
	c.ClaimValidationRules = []config.ClaimValidationRule{{Claim: "tenant", RequiredValue: "acme"},
		{Expression: "claims.level >= 2.0", Message: "level is too low"}}
	c.ClaimMappings = config.ClaimMappings{
		Username: config.PrefixedClaimOrExpression{Expression: "claims.sub + '@' + claims.tenant"},
		Groups:   config.PrefixedClaimOrExpression{Expression: "claims.realm.roles__dot__all.map(r, 'role:' + r)"},
		UID:      config.ClaimOrExpression{Expression: "string(claims.level)"},
		Extra: []config.ExtraMapping{{Key: "example.org/tenant", ValueExpression: "claims.tenant"},
			{Key: "example.org/none", ValueExpression: "claims.?nothing.orValue('')"}, {Key: "example.org/list", ValueExpression: "claims.groups"}},
	}
	c.UserValidationRules = []config.UserValidationRule{{Expression: "!user.username.startsWith('system:')", Message: "reserved"},
		{Expression: "user.extra['example.org/tenant'][0] == 'acme' && !('role:banned' in user.groups)"}}
	o := verifier(t, c)
	good := map[string]any{"level": 3, "realm": map[string]any{"roles.all": []string{"a", "", "b"}}, "jti": "x"}
	for name, tc := range map[string]struct {
		claims map[string]any
		user   string
		err    string
	}{
		"good":        {nil, "jane@acme [role:a role: role:b] 3 map[authentication.kubernetes.io/credential-id:[JTI=x] example.org/list:[a b] example.org/tenant:[acme]]", ""},
		"too low":     {map[string]any{"level": 1}, "", "error evaluating claim validation expression: validation expression 'claims.level >= 2.0' failed: level is too low"},
		"reserved":    {map[string]any{"sub": "system:admin"}, "", "validation expression '!user.username.startsWith('system:')' failed: reserved"},
		"banned":      {map[string]any{"realm": map[string]any{"roles.all": []string{"banned"}}}, "", "error evaluating user info validation rule"},
		"no realm":    {map[string]any{"realm": nil}, "", "error evaluating group claim expression: expression 'claims.realm.roles__dot__all"},
		"odd roles":   {map[string]any{"realm": map[string]any{"roles.all": []int{1}}}, "", "error evaluating group claim expression"},
		"odd name":    {map[string]any{"sub": 3}, "", "error evaluating username claim expression"},
		"odd tenant":  {map[string]any{"tenant": "x"}, "", "required claim tenant value does not match"},
		"odd groups":  {map[string]any{"groups": []any{"a", 1}}, "", "expression must return a string or a list of strings"},
		"null groups": {map[string]any{"realm": map[string]any{"roles.all": []string{}}}, "jane@acme [] 3 map[authentication.kubernetes.io/credential-id:[JTI=x] example.org/list:[a b] example.org/tenant:[acme]]", ""},
	} {
		claims := maps.Clone(good)
		maps.Copy(claims, tc.claims)
		u, err := o.Verify(t.Context(), p.token(claims))
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: got %v, want %q", name, err, tc.err)
		case tc.err == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case (u != nil) != (tc.user != "") || u != nil && fmt.Sprint(u.Name, " ", u.Groups, " ", u.UID, " ", u.Extra) != tc.user:
			t.Errorf("%s: user %+v", name, u)
		}
	}
}

const configurationHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"

func writeConfiguration(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	load := func(text string) (*authn.Configuration, error) {
		file := filepath.Join(t.TempDir(), "c.yaml")
		writeConfiguration(t, file, text)
		return authn.LoadConfiguration(file)
	}
	c, err := load(configurationHead + `
jwt:
- issuer: {url: https://example.org, audiences: [a]}
  claimMappings: {username: {expression: claims.sub}}
anonymous: {enabled: true, conditions: [{path: /livez}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if !c.AnonymousOn("/livez") || c.AnonymousOn("/api") {
		t.Error("anonymous paths")
	}
	_, err = load(configurationHead + `
jwt:
- issuer: {url: http://example.org, audiences: [a, b], egressSelectorType: cluster}
  claimMappings: {username: {expression: "claims."}, groups: {claim: g}}
  userValidationRules: [{expression: "user.nobody"}]
- issuer: {url: https://kubernetes.default.svc.cluster.local, audiences: [a]}
  claimMappings: {username: {claim: sub, prefix: ""}}`)
	for _, want := range []string{"jwt[0].issuer.url: Invalid value", "jwt[0].issuer.audienceMatchPolicy: Invalid value", "jwt[0].claimMappings.username.expression: Invalid value",
		"jwt[0].claimMappings.groups.prefix: Required value", "jwt[0].userValidationRules[0].expression: Invalid value", "jwt[0].issuer.egressSelectorType: Forbidden", "jwt[1].issuer.url: Invalid value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
	for _, text := range []string{configurationHead + "jwts: []", "", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n"} {
		if _, err := load(text); err == nil {
			t.Errorf("taken: %q", text)
		}
	}
}

// What is good in a changed file counts within its time; what is bad changes nothing.
func TestConfigurationChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "c.yaml")
		writeConfiguration(t, file, configurationHead+"anonymous: {enabled: false}")
		c, err := authn.LoadConfiguration(file)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Follow(slog.New(slog.DiscardHandler)).Run(ctx, func() {}) }()
		time.Sleep(30 * time.Second) // between two looks
		for _, step := range []struct {
			text string
			want bool
		}{{"anonymous: {enabled: false}", false}, {"anonymous: {enabled: true}", true}, {"anonymous: {enabled: false, conditions: [{path: /}]}", true}, {"anonymous: {enabled: false}", false}} {
			writeConfiguration(t, file, configurationHead+step.text)
			time.Sleep(2 * time.Minute)
			if c.AnonymousOn("/api") != step.want {
				t.Errorf("%s has not the effect %v", step.text, step.want)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// hook is a webhook that answers reviews, and its kubeconfig.
func hook(t *testing.T, answer func(*authenticationv1.TokenReview)) (kubeconfig string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		answer(&q)
		_ = json.NewEncoder(w).Encode(q)
	}))
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: %q}}]\n", s.URL+"/review")
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, asked
}

func TestTokenWebhook(t *testing.T) {
	t.Parallel()
	file, asked := hook(t, func(q *authenticationv1.TokenReview) {
		switch q.Spec.Token {
		case "good":
			q.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "jane", Groups: []string{"a"}}}
		case "elsewhere":
			q.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"x"}}
		case "bad":
			q.Status.Error = "revoked"
		}
	})
	r, err := authn.NewTokenReviews(file)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{"good": "jane", "elsewhere": "", "unknown": "", "bad": "revoked"} {
		for range 2 {
			u, audiences, err := r.Verify(t.Context(), token, []string{"us"})
			switch {
			case token == "bad":
				if err == nil || err.Error() != want {
					t.Errorf("%s: %v", token, err)
				}
			case err != nil, (u != nil) != (want != ""), u != nil && (u.Name != want || !slices.Equal(audiences, []string{"us"})):
				t.Errorf("%s: %+v %v %v", token, u, audiences, err)
			}
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
}

func TestVerifiers(t *testing.T) {
	t.Parallel()
	v := authn.Verifiers(
		authn.ForServer(func(_ context.Context, token string) (*authn.User, error) {
			if token == "bad" {
				return nil, errors.New("bad token")
			}
			return nil, nil
		}, []string{"us"}),
		authn.ForServer(func(_ context.Context, token string) (*authn.User, error) {
			if token == "good" {
				return &authn.User{Name: "jane"}, nil
			}
			return nil, nil
		}, []string{"us"}))
	a := authn.Bearer(v, []string{"us"})
	for token, want := range map[string]string{"": "nobody", "good": "jane", "bad": "bad token", "x": "invalid bearer token"} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		u, err := a.Authenticate(r)
		got := "nobody"
		if err != nil {
			got = err.Error()
		} else if u != nil {
			got = u.Name
		}
		if got != want {
			t.Errorf("%q: %s, want %s", token, got, want)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	r.Header.Set("Sec-WebSocket-Protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.~")
	if u, err := a.Authenticate(r); u != nil || err == nil {
		t.Errorf("a token in no base64: %v %v", u, err)
	}
	if u, _, err := v.Verify(t.Context(), "good", []string{"vault"}); u != nil || err != nil {
		t.Errorf("a token for another audience: %v %v", u, err)
	}
}
