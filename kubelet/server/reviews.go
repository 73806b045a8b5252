package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/yare-dev/yare/client"
)

// Upstream's figures of how long an answer of the API server counts.
const (
	tokenTTL   = 2 * time.Minute
	allowedTTL = 5 * time.Minute
	deniedTTL  = 30 * time.Second

	mostAnswers = 4096 // of each kind; the one that was used longest ago is forgotten
)

const (
	masters       = "system:masters"
	authenticated = "system:authenticated"
)

// Access is a request to be authorized.
type Access struct {
	User authenticationv1.UserInfo
	Verb string // get, create
	// Part is the subresource of nodes that the request is for, as upstream's: proxy, stats, metrics, pods, configz, healthz.
	Part string
}

// Reviews ask the API server whose a token is, and what somebody may do, by TokenReview and SubjectAccessReview. They replace
// upstream's delegating authenticator and authorizer. Methods may be called concurrently.
type Reviews struct {
	client client.Writer
	node   string

	tokens *cache.LRUExpireCache // hash -> tokenAnswer
	access *cache.LRUExpireCache // request -> bool
}

type tokenAnswer struct {
	user *authenticationv1.UserInfo // nil: nobody's
	why  string
}

// NewReviews returns Reviews for the server of the node of that name; c may create both kinds, as nodes may.
func NewReviews(c client.Writer, node string) *Reviews {
	return &Reviews{client: c, node: node, tokens: cache.NewLRUExpireCache(mostAnswers), access: cache.NewLRUExpireCache(mostAnswers)}
}

// user returns whose the token is; an error where it is nobody's, or the API server does not answer.
func (r *Reviews) user(ctx context.Context, token string) (*authenticationv1.UserInfo, error) {
	key := sha256.Sum256([]byte(token))
	a, ok := r.tokens.Get(key)
	if !ok {
		got, err := client.Create(ctx, r.client, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}})
		if err != nil {
			return nil, fmt.Errorf("ask whose a token is: %w", err)
		}
		answer := tokenAnswer{why: got.Status.Error}
		if u := &got.Status.User; got.Status.Authenticated {
			if !slices.Contains(u.Groups, authenticated) {
				u.Groups = append(u.Groups, authenticated)
			}
			answer.user = u
		}
		a = answer
		r.tokens.Add(key, a, tokenTTL)
	}
	if answer := a.(tokenAnswer); answer.user == nil {
		return nil, fmt.Errorf("the API server does not know the token: %s", answer.why)
	}
	return a.(tokenAnswer).user, nil
}

// allowed reports whether the access is; an error where the API server does not answer. Administrators are not asked about, so that the
// node can be looked into while it cannot reach the API server.
func (r *Reviews) allowed(ctx context.Context, a Access) (bool, error) {
	if slices.Contains(a.User.Groups, masters) {
		return true, nil
	}
	if r == nil {
		return false, nil
	}
	key := fmt.Sprintf("%q %q %q %q %q %q", a.User.Username, a.User.UID, a.User.Groups, a.User.Extra, a.Verb, a.Part)
	if known, ok := r.access.Get(key); ok {
		return known.(bool), nil
	}
	spec := authorizationv1.SubjectAccessReviewSpec{
		User: a.User.Username, UID: a.User.UID, Groups: a.User.Groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: a.Verb, Version: "v1", Resource: "nodes", Subresource: a.Part, Name: r.node},
	}
	for k, v := range a.User.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		spec.Extra[k] = authorizationv1.ExtraValue(v)
	}
	got, err := client.Create(ctx, r.client, &authorizationv1.SubjectAccessReview{Spec: spec})
	if err != nil {
		return false, fmt.Errorf("ask whether user %q may %s nodes/%s: %w", a.User.Username, a.Verb, a.Part, err)
	}
	ttl := deniedTTL
	if got.Status.Allowed {
		ttl = allowedTTL
	}
	r.access.Add(key, got.Status.Allowed, ttl)
	return got.Status.Allowed, nil
}
