package authn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yare-dev/yare/run"
)

// A webhook is asked at most webhookTries times, after webhookPause, twice that, ... when it cannot be reached or is overloaded.
const (
	webhookTimeout = 30 * time.Second
	webhookTries   = 5
	webhookPause   = 500 * time.Millisecond
	// webhookAnswer bounds what it may answer.
	webhookAnswer = 1 << 20
	// reviewTTL is how long the answer for a token counts.
	reviewTTL = 2 * time.Minute
)

// Webhook posts reviews to a service elsewhere.
type Webhook struct {
	client *http.Client
	url    string
}

// NewWebhook returns the Webhook that a kubeconfig file describes: its current context's server, by its full URL.
func NewWebhook(kubeconfig string, timeout time.Duration) (*Webhook, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("webhook in %s: %w", kubeconfig, err)
	}
	config.Timeout = timeout
	config.QPS = -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("webhook in %s: %w", kubeconfig, err)
	}
	return &Webhook{client, config.Host}, nil
}

// Post sends a review and reads the answer into the same.
func (w *Webhook) Post(ctx context.Context, review any) error { return w.exchange(ctx, review, review) }

// Send sends something, whatever the answer says.
func (w *Webhook) Send(ctx context.Context, o any) error { return w.exchange(ctx, o, nil) }

func (w *Webhook) exchange(ctx context.Context, o, into any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	for try, pause := 1, webhookPause; ; try, pause = try+1, pause*2 {
		again, err := w.post(ctx, body, into)
		if err == nil || !again || try == webhookTries {
			return err
		}
		if run.Pause(ctx, pause) != nil {
			return err
		}
	}
}

func (w *Webhook) post(ctx context.Context, body []byte, into any) (again bool, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("ask webhook: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	a, err := w.client.Do(r)
	if err != nil {
		return true, fmt.Errorf("ask webhook: %w", err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, webhookAnswer))
	if err != nil {
		return true, fmt.Errorf("read the answer of webhook %s: %w", r.URL.Redacted(), err)
	}
	if a.StatusCode < 200 || a.StatusCode > 299 {
		return a.StatusCode == http.StatusTooManyRequests || a.StatusCode >= 500, fmt.Errorf("ask webhook %s: %s", r.URL.Redacted(), a.Status)
	}
	if into == nil {
		return false, nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return false, fmt.Errorf("read the answer of webhook %s: %w", r.URL.Redacted(), err)
	}
	return false, nil
}

// TokenReviews verifies tokens by asking a Webhook.
type TokenReviews struct {
	hook *Webhook
	seen Remembered[[sha256.Size]byte, review]
}

type review struct {
	user      *User
	audiences []string
	err       error
}

// NewTokenReviews returns the Verifier that a kubeconfig file describes.
func NewTokenReviews(kubeconfig string) (*TokenReviews, error) {
	hook, err := NewWebhook(kubeconfig, webhookTimeout)
	if err != nil {
		return nil, err
	}
	return &TokenReviews{hook: hook}, nil
}

// Verify implements Verifier. A token that the webhook does not know is nobody's.
func (t *TokenReviews) Verify(ctx context.Context, token string, audiences []string) (*User, []string, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q", token, audiences))
	if r, ok := t.seen.Get(key); ok {
		return r.user, r.audiences, r.err
	}
	q := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	q.APIVersion, q.Kind = "authentication.k8s.io/v1", "TokenReview"
	if err := t.hook.Post(ctx, q); err != nil {
		return nil, nil, err
	}
	r := answered(&q.Status, audiences)
	t.seen.Put(key, r, time.Now().Add(reviewTTL))
	return r.user, r.audiences, r.err
}

func answered(s *authenticationv1.TokenReviewStatus, audiences []string) review {
	if !s.Authenticated {
		if s.Error != "" {
			return review{err: errors.New(s.Error)}
		}
		return review{}
	}
	u := &User{Name: s.User.Username, UID: s.User.UID, Groups: s.User.Groups}
	for k, v := range s.User.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	// A webhook that says nothing of audiences knows nothing of them: its tokens are for the API server.
	both := audiences
	if len(s.Audiences) > 0 {
		both = nil
		for _, a := range audiences {
			for _, b := range s.Audiences {
				if a == b {
					both = append(both, a)
				}
			}
		}
		if len(both) == 0 {
			return review{}
		}
	}
	return review{user: u, audiences: both}
}
