package authn_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
)

// patched is a client that reads a map and keeps patches.
type patched struct {
	client.Client
	objects
	patches []string
	err     error
}

func (p *patched) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	return p.objects.Get(ctx, k, key)
}

func (p *patched) Patch(_ context.Context, k *api.Kind, key api.Key, patch client.Patch) (api.Object, error) {
	p.patches = append(p.patches, k.Plural+" "+key.String()+" "+string(patch.Type)+" "+string(patch.Data))
	return nil, p.err
}

func TestSecretTokens(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	sign := func(key crypto.Signer, s *corev1.Secret, a *corev1.ServiceAccount) string {
		t.Helper()
		token, err := authn.SignSecretToken(key, s, a)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	now := metav1.Now()
	for name, tc := range map[string]struct {
		change func(o objects, s *corev1.Secret, a *corev1.ServiceAccount)
		token  string // in place of the Secret's
		want   string // of the error; empty: the service account
	}{
		"good":               {},
		"secret gone":        {change: func(o objects, _ *corev1.Secret, _ *corev1.ServiceAccount) { delete(o, "secrets ns/token") }, want: "secret has been deleted"},
		"secret on its way":  {change: func(_ objects, s *corev1.Secret, _ *corev1.ServiceAccount) { s.DeletionTimestamp = &now }, want: "secret is being deleted"},
		"another token":      {change: func(_ objects, s *corev1.Secret, _ *corev1.ServiceAccount) { s.Data["token"] = []byte("x") }, want: "holds another token"},
		"account gone":       {change: func(o objects, _ *corev1.Secret, _ *corev1.ServiceAccount) { delete(o, "serviceaccounts ns/sa") }, want: "service account has been deleted"},
		"account on its way": {change: func(_ objects, _ *corev1.Secret, a *corev1.ServiceAccount) { a.DeletionTimestamp = &now }, want: "service account has been deleted"},
		"account made anew":  {change: func(_ objects, _ *corev1.Secret, a *corev1.ServiceAccount) { a.UID = "other" }, want: "does not match claim"},
		"put out of force": {change: func(_ objects, s *corev1.Secret, _ *corev1.ServiceAccount) {
			s.Labels = map[string]string{"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}
		}, want: "has been marked invalid"},
		"forged": {token: sign(other, &corev1.Secret{ObjectMeta: meta("token", "3")}, &corev1.ServiceAccount{ObjectMeta: meta("sa", "1")}), want: "signature is invalid"},
	} {
		c := &patched{objects: objects{}}
		s, a := &corev1.Secret{ObjectMeta: meta("token", "3")}, &corev1.ServiceAccount{ObjectMeta: meta("sa", "1")}
		token := sign(key, s, a)
		s.Data = map[string][]byte{"token": []byte(token)}
		c.put(s)
		c.put(a)
		if tc.change != nil {
			tc.change(c.objects, s, a)
		}
		if tc.token != "" {
			token, s.Data["token"] = tc.token, []byte(tc.token)
		}
		u, err := authn.SecretToken(&key.PublicKey, c, slog.New(slog.DiscardHandler))(t.Context(), token)
		switch {
		case tc.want == "" && (err != nil || u.Name != "system:serviceaccount:ns:sa" || u.UID != "uid-1" || len(c.patches) != 1):
			t.Errorf("%s: user %+v, error %v, patches %v", name, u, err, c.patches)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || len(c.patches) != 0):
			t.Errorf("%s: error %v, want %q; patches %v", name, err, tc.want, c.patches)
		}
	}
}

// Tokens that are not from a Secret are for others to judge, and theirs are not for Tokens.
func TestSecretTokensOfOthers(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	o, bound := world()
	tokens := newTokens(t, key, o)
	issued, _, err := tokens.Issue(bound, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", "x", "a.b.c", issued} {
		if u, err := authn.SecretToken(&key.PublicKey, &patched{objects: o}, slog.New(slog.DiscardHandler))(t.Context(), token); u != nil || err != nil {
			t.Errorf("%q: user %v, error %v", token, u, err)
		}
	}
	kept, err := authn.SignSecretToken(key, o["secrets ns/secret"].(*corev1.Secret), o["serviceaccounts ns/sa"].(*corev1.ServiceAccount))
	if err != nil {
		t.Fatal(err)
	}
	if u, _, err := tokens.Verify(t.Context(), kept, tokens.Audiences()); err == nil {
		t.Errorf("a token that does not end passes for one that does: %v", u)
	}
}

// The day of use is written once a day, and a request does not fail for it.
func TestSecretTokenUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		c := &patched{objects: objects{}, err: errors.New("no")}
		s, a := &corev1.Secret{ObjectMeta: meta("token", "3")}, &corev1.ServiceAccount{ObjectMeta: meta("sa", "1")}
		token, err := authn.SignSecretToken(key, s, a)
		if err != nil {
			t.Fatal(err)
		}
		s.Data = map[string][]byte{"token": []byte(token)}
		c.put(s)
		c.put(a)
		verify := authn.SecretToken(&key.PublicKey, c, slog.New(slog.DiscardHandler))
		use := func(writes int) {
			t.Helper()
			if u, err := verify(t.Context(), token); u == nil || err != nil {
				t.Errorf("user %v, error %v", u, err)
			}
			if len(c.patches) != writes {
				t.Errorf("%d patches, not %d: %v", len(c.patches), writes, c.patches)
			}
		}
		use(1) // synctest's clock starts on 2000-01-01
		const want = `secrets ns/token application/merge-patch+json {"metadata":{"labels":{"kubernetes.io/legacy-token-last-used":"2000-01-01"},"uid":"uid-3"}}`
		if c.patches[0] != want {
			t.Errorf("patch %s", c.patches[0])
		}
		use(2) // it was not written
		s.Labels = map[string]string{"kubernetes.io/legacy-token-last-used": "2000-01-02"}
		use(2) // by a server whose clock is ahead
		time.Sleep(48 * time.Hour)
		use(3)
	})
}

// Others' programs read what we sign with whatever key they give us.
func TestSecretTokenKeys(t *testing.T) {
	t.Parallel()
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"RS256": small}
	for name, c := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		if keys[name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	for algorithm, key := range keys {
		text, err := authn.SignSecretToken(key, &corev1.Secret{ObjectMeta: meta("token", "3")}, &corev1.ServiceAccount{ObjectMeta: meta("sa", "1")})
		if err != nil {
			t.Fatal(err)
		}
		token, err := josejwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
		if err != nil {
			t.Fatal(err)
		}
		claims := map[string]any{}
		if err := token.Claims(key.Public(), &claims); err != nil || token.Headers[0].Algorithm != algorithm {
			t.Errorf("%s: %v, %+v", algorithm, err, token.Headers)
		}
		for k, want := range map[string]string{"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ns:sa",
			"kubernetes.io/serviceaccount/namespace": "ns", "kubernetes.io/serviceaccount/secret.name": "token",
			"kubernetes.io/serviceaccount/service-account.name": "sa", "kubernetes.io/serviceaccount/service-account.uid": "uid-1"} {
			if claims[k] != want {
				t.Errorf("%s: %s is %v", algorithm, k, claims[k])
			}
		}
		if len(claims) != 6 {
			t.Errorf("%s: claims %v", algorithm, claims)
		}
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authn.SignSecretToken(p224, &corev1.Secret{}, &corev1.ServiceAccount{}); err == nil || !strings.Contains(err.Error(), "P-256") {
		t.Error(err)
	}
}
