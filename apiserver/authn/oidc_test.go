package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	config "k8s.io/apiserver/pkg/apis/apiserver"
)

// slow is an issuer whose answers take a while.
type slow struct {
	takes time.Duration
	keys  jose.JSONWebKeySet
	asked atomic.Int32
}

func (s *slow) RoundTrip(r *http.Request) (*http.Response, error) {
	var what any = map[string]string{"issuer": "https://issuer", "jwks_uri": "https://issuer/keys"}
	if r.URL.Path == "/keys" {
		s.asked.Add(1)
		select {
		case <-time.After(s.takes):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		what = s.keys
	}
	text, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(text)))}, nil
}

// While an issuer is asked for a key that it may not have, users of known keys do not wait, and who asked cannot end it.
func TestOIDCSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		named := func(kid string) jose.JSONWebKey { return jose.JSONWebKey{Key: key.Public(), KeyID: kid} }
		far := &slow{keys: jose.JSONWebKeySet{Keys: []jose.JSONWebKey{named("old")}}}
		i := &issuer{mapping: mapping{config: &config.JWTAuthenticator{Issuer: config.Issuer{URL: "https://issuer"}}}, client: &http.Client{Transport: far}}
		if _, err := i.key(t.Context(), "old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(oidcAgain)
		far.takes, far.keys.Keys = 20*time.Second, append(far.keys.Keys, named("new"))
		begin := time.Now()
		var wg sync.WaitGroup
		hasty, leave := context.WithCancel(t.Context())
		wg.Go(func() { _, _ = i.key(hasty, "invented") })
		synctest.Wait()
		wg.Go(func() {
			if _, err := i.key(hasty, "also invented"); !errors.Is(err, context.Canceled) {
				t.Errorf("who went away: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := i.key(t.Context(), "new"); err != nil {
				t.Errorf("a new key: %v", err)
			}
		})
		synctest.Wait()
		leave()
		if _, err := i.key(t.Context(), "old"); err != nil || time.Since(begin) > 0 {
			t.Errorf("a known key after %v: %v", time.Since(begin), err)
		}
		wg.Wait()
		if n := far.asked.Load(); n != 2 || time.Since(begin) != far.takes {
			t.Errorf("asked %d times, took %v", n, time.Since(begin))
		}
		if _, err := i.key(t.Context(), "invented"); err == nil || far.asked.Load() != 2 {
			t.Errorf("asked again at once: %v", err)
		}
	})
}
