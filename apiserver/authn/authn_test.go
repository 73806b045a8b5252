package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/pki"
)

// objects is a Getter over a map.
type objects map[string]api.Object

func (o objects) Get(_ context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if v, ok := o[k.Plural+" "+key.String()]; ok {
		return v, nil
	}
	return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
}

func (o objects) put(v api.Object) { o[api.KindOf(v).Plural+" "+api.KeyOf(v).String()] = v }

func meta(name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + uid)}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newTokens(t testing.TB, key *ecdsa.PrivateKey, get authn.Getter) *authn.Tokens {
	t.Helper()
	tokens, err := authn.NewTokens(authn.TokenConfig{Key: key}, get)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// world has a service account with a pod, a secret and a node.
func world() (objects, authn.Bound) {
	o := objects{}
	o.put(&corev1.ServiceAccount{ObjectMeta: meta("sa", "1")})
	o.put(&corev1.Pod{ObjectMeta: meta("pod", "2")})
	o.put(&corev1.Secret{ObjectMeta: meta("secret", "3")})
	node := &corev1.Node{ObjectMeta: meta("node", "4")}
	node.Namespace = ""
	o.put(node)
	return o, authn.Bound{Namespace: "ns", ServiceAccount: authn.Ref{Name: "sa", UID: "uid-1"}}
}

func TestBoundTokens(t *testing.T) {
	t.Parallel()
	ref := func(name, uid string) *authn.Ref { return &authn.Ref{Name: name, UID: types.UID("uid-" + uid)} }
	ended := metav1.NewTime(time.Now().Add(-2 * time.Minute))
	ending := metav1.NewTime(time.Now().Add(-10 * time.Second))
	for name, tc := range map[string]struct {
		bind   func(b *authn.Bound)
		change func(o objects)
		want   string // part of the error; empty: accepted
	}{
		"account":             {},
		"pod":                 {bind: func(b *authn.Bound) { b.Pod = ref("pod", "2") }},
		"secret":              {bind: func(b *authn.Bound) { b.Secret = ref("secret", "3") }},
		"node":                {bind: func(b *authn.Bound) { b.Node = ref("node", "4") }},
		"account gone":        {change: func(o objects) { delete(o, "serviceaccounts ns/sa") }, want: "service account has been deleted"},
		"account made anew":   {change: func(o objects) { o.put(&corev1.ServiceAccount{ObjectMeta: meta("sa", "9")}) }, want: "does not match claim"},
		"pod gone":            {bind: func(b *authn.Bound) { b.Pod = ref("pod", "2") }, change: func(o objects) { delete(o, "pods ns/pod") }, want: "pod has been deleted"},
		"pod of another UID":  {bind: func(b *authn.Bound) { b.Pod = ref("pod", "8") }, want: "does not match claim"},
		"node gone":           {bind: func(b *authn.Bound) { b.Node = ref("node", "4") }, change: func(o objects) { delete(o, "nodes node") }, want: "node has been deleted"},
		"node gone under pod": {bind: func(b *authn.Bound) { b.Pod, b.Node = ref("pod", "2"), ref("node", "4") }, change: func(o objects) { delete(o, "nodes node") }},
		"pod ending": {bind: func(b *authn.Bound) { b.Pod = ref("pod", "2") }, change: func(o objects) {
			m := meta("pod", "2")
			m.DeletionTimestamp = &ending
			o.put(&corev1.Pod{ObjectMeta: m})
		}},
		"pod long ended": {bind: func(b *authn.Bound) { b.Pod = ref("pod", "2") }, change: func(o objects) {
			m := meta("pod", "2")
			m.DeletionTimestamp = &ended
			o.put(&corev1.Pod{ObjectMeta: m})
		}, want: "pod has been deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, b := world()
			if tc.bind != nil {
				tc.bind(&b)
			}
			tokens := newTokens(t, newKey(t), o)
			token, _, err := tokens.Issue(b, nil, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				tc.change(o)
			}
			u, audiences, err := tokens.Verify(t.Context(), token, []string{"x", authn.Issuer})
			switch {
			case tc.want != "":
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %q", err, tc.want)
				}
			case err != nil:
				t.Error(err)
			case u.Name != "system:serviceaccount:ns:sa" || u.UID != "uid-1" || !slices.Equal(audiences, []string{authn.Issuer}) ||
				!slices.Equal(u.Groups, []string{"system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"}):
				t.Errorf("user %+v for %v", u, audiences)
			}
		})
	}
}

// TestForgeries signs what should not be accepted.
func TestForgeries(t *testing.T) {
	t.Parallel()
	o, b := world()
	key := newKey(t)
	tokens := newTokens(t, key, o)
	sign := func(alg jose.SignatureAlgorithm, key any, claims map[string]any) string {
		t.Helper()
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := josejwt.Signed(s).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	claims := func(change map[string]any) map[string]any {
		now := time.Now().Unix()
		c := map[string]any{"iss": authn.Issuer, "aud": []string{authn.Issuer}, "sub": "system:serviceaccount:ns:sa", "iat": now, "nbf": now, "exp": now + 600,
			"kubernetes.io": map[string]any{"namespace": "ns", "serviceaccount": map[string]any{"name": "sa", "uid": "uid-1"}}}
		for k, v := range change {
			if c[k] = v; v == nil {
				delete(c, k)
			}
		}
		return c
	}
	good := sign(jose.ES256, key, claims(nil))
	if _, _, err := tokens.Verify(t.Context(), good, tokens.Audiences()); err != nil {
		t.Fatalf("another library's token: %v", err)
	}
	parts := strings.Split(good, ".")
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	raw := base64.RawURLEncoding.EncodeToString
	header := raw([]byte(`{"alg":"none"}`))
	for name, token := range map[string]string{
		"another key":          sign(jose.ES256, newKey(t), claims(nil)),
		"no algorithm":         header + "." + parts[1] + ".",
		"public key as secret": sign(jose.HS256, public, claims(nil)),
		"changed claims":       parts[0] + "." + raw([]byte(strings.Replace(mustDecode(t, parts[1]), `"sa"`, `"other"`, 1))) + "." + parts[2],
		"expired":              sign(jose.ES256, key, claims(map[string]any{"exp": time.Now().Add(-time.Minute).Unix()})),
		"not yet":              sign(jose.ES256, key, claims(map[string]any{"nbf": time.Now().Add(time.Hour).Unix()})),
		"for ever":             sign(jose.ES256, key, claims(map[string]any{"exp": nil})),
		"another issuer":       sign(jose.ES256, key, claims(map[string]any{"iss": "https://example.org"})),
		"another audience":     sign(jose.ES256, key, claims(map[string]any{"aud": []string{"vault"}})),
		"another subject":      sign(jose.ES256, key, claims(map[string]any{"sub": "system:serviceaccount:kube-system:admin"})),
		"no claims":            sign(jose.ES256, key, claims(map[string]any{"kubernetes.io": nil})),
		"garbage":              "a.b.c",
	} {
		if u, _, err := tokens.Verify(t.Context(), token, tokens.Audiences()); err == nil {
			t.Errorf("%s: accepted as %v", name, u)
		}
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/api", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		if u, err := tokens.Authenticate(r); err == nil || u != nil {
			t.Errorf("%s: request of %v, %v", name, u, err)
		}
	}
	if _, _, err := tokens.Issue(b, []string{"vault"}, time.Hour); err != nil {
		t.Error(err)
	}
}

func mustDecode(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	synctest.Test(t, func(t *testing.T) {
		o, b := world()
		tokens := newTokens(t, key, o)
		token, expires, err := tokens.Issue(b, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(expires) - time.Second)
		if _, _, err := tokens.Verify(t.Context(), token, tokens.Audiences()); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, _, err := tokens.Verify(t.Context(), token, tokens.Audiences()); err == nil {
			t.Error("accepted after its end")
		}
	})
}

// TestRequests finds tokens where requests carry them.
func TestRequests(t *testing.T) {
	t.Parallel()
	o, b := world()
	tokens := newTokens(t, newKey(t), o)
	token, _, err := tokens.Issue(b, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		header, value string
		known         bool
	}{
		"none":      {},
		"bearer":    {"Authorization", "Bearer " + token, true},
		"lower":     {"Authorization", "bearer  " + token, true},
		"basic":     {"Authorization", "Basic eDp5", false},
		"WebSocket": {"Sec-WebSocket-Protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token)), true},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/api", nil)
		if tc.header != "" {
			r.Header.Set(tc.header, tc.value)
		}
		if u, err := tokens.Authenticate(r); err != nil || (u != nil) != tc.known {
			t.Errorf("%s: %v %v", name, u, err)
		}
		r.Header.Add("Sec-WebSocket-Protocol", "x,y")
		authn.DropTokens(r.Header)
		rest := "x, y"
		if name == "WebSocket" {
			rest = "v5.channel.k8s.io, x, y"
		}
		if u, err := tokens.Authenticate(r); u != nil || err != nil || len(r.Header) != 1 || r.Header.Get("Sec-WebSocket-Protocol") != rest {
			t.Errorf("%s: %v is left", name, r.Header)
		}
	}
}

// TestDocuments verifies a token with nothing but the published keys.
func TestDocuments(t *testing.T) {
	t.Parallel()
	o, b := world()
	tokens := newTokens(t, newKey(t), o)
	docs, err := tokens.Documents()
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	docs[authn.KeysPath].ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", authn.KeysPath, nil))
	if ct := w.Header().Get("Content-Type"); ct != "application/jwk-set+json" {
		t.Errorf("content type %q", ct)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	raw, _, err := tokens.Issue(b, []string{"vault"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	token, err := josejwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Key(token.Headers[0].KeyID)
	if len(keys) != 1 {
		t.Fatalf("no key %q", token.Headers[0].KeyID)
	}
	var claims josejwt.Claims
	if err := token.Claims(keys[0].Key, &claims); err != nil {
		t.Fatal(err)
	}
	if err := claims.Validate(josejwt.Expected{Issuer: authn.Issuer, AnyAudience: josejwt.Audience{"vault"}}); err != nil {
		t.Error(err)
	}
	var config map[string]any
	if err := json.Unmarshal(docs[authn.ConfigurationPath].Body, &config); err != nil || config["issuer"] != authn.Issuer {
		t.Errorf("%v %v", config, err)
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	p, err := pki.Ensure(t.TempDir(), pki.Config{NodeName: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	a := authn.Certificates(p.Pool())
	request := func(path string, cert *tls.Certificate) *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
		if cert != nil {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}
		}
		return r
	}
	for name, tc := range map[string]struct {
		r      *http.Request
		user   string
		groups []string
		bad    bool
	}{
		"admin":             {r: request("/api", p.Admin.Certificate()), user: "kubernetes-admin", groups: []string{"system:masters", "system:authenticated"}},
		"kubelet":           {r: request("/api", p.Kubelet.Certificate()), user: "system:node:n1", groups: []string{"system:nodes", "system:authenticated"}},
		"another authority": {r: request("/healthz", other.Admin.Certificate()), bad: true},
		"a server's":        {r: request("/api", p.Server.Certificate()), bad: true},
		"nobody":            {r: request("/api", nil)},
	} {
		u, err := a.Authenticate(tc.r)
		switch {
		case tc.bad != (err != nil):
			t.Errorf("%s: %v", name, err)
		case tc.user == "" && u != nil, tc.user != "" && (u == nil || u.Name != tc.user || !slices.Equal(u.Groups, tc.groups)):
			t.Errorf("%s: user %+v", name, u)
		}
	}
}

func FuzzVerify(f *testing.F) {
	o, b := world()
	tokens := newTokens(f, newKey(f), o)
	good, _, err := tokens.Issue(b, nil, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c")
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, token string) {
		if u, _, err := tokens.Verify(t.Context(), token, tokens.Audiences()); err == nil && token != good {
			t.Errorf("accepted %q as %v", token, u)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	o, bound := world()
	tokens := newTokens(b, newKey(b), o)
	token, _, err := tokens.Issue(bound, nil, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := tokens.Verify(b.Context(), token, tokens.Audiences()); err != nil {
			b.Fatal(err)
		}
	}
}

// A certificate that was verified before is not any more when its time is over, nor because another was.
func TestCertificateExpires(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p, err := pki.Ensure(dir, pki.Config{NodeName: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		a := authn.Certificates(p.Pool())
		ask := func(c *tls.Certificate) (*authn.User, error) {
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/api", nil)
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Leaf}}
			return a.Authenticate(r)
		}
		admin, kubelet := p.Admin.Certificate(), p.Kubelet.Certificate()
		for range 2 {
			if u, err := ask(admin); err != nil || u.Name != "kubernetes-admin" {
				t.Fatal(u, err)
			}
			if u, err := ask(kubelet); err != nil || u.Name != "system:node:n1" {
				t.Fatal(u, err)
			}
		}
		time.Sleep(time.Until(admin.Leaf.NotAfter) + time.Second)
		if u, err := ask(admin); err == nil {
			t.Error("an expired certificate is taken:", u)
		}
	})
}
