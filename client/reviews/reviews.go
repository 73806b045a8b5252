// Package reviews asks the API server whose a bearer token is and what somebody may do, for servers that are not the API server: the
// kubelet's and those of components that run alone. It replaces upstream's delegating authenticator and authorizer.
//
// Whoever asks shows a certificate of an authority that the server believes, or a token. Answers are kept as long as upstream's.
package reviews

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
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

// Access is a request to be authorized: for a part of a node or, where Node is empty, for a path.
type Access struct {
	User authenticationv1.UserInfo
	Verb string // get, create
	Node string
	// Part is the subresource of nodes that the request is for, as upstream's: proxy, stats, metrics, pods, configz, healthz.
	Part string
	Path string
}

// at is what the access is for, in words.
func (a Access) at() string {
	if a.Node == "" {
		return a.Path
	}
	return "nodes/" + a.Part
}

// Reviews are TokenReviews and SubjectAccessReviews, with their answers. Methods may be called concurrently.
type Reviews struct {
	client client.Writer

	tokens *cache.LRUExpireCache // hash -> tokenAnswer
	access *cache.LRUExpireCache // request -> bool
}

type tokenAnswer struct {
	user *authenticationv1.UserInfo // nil: nobody's
	why  string
}

// New returns Reviews; c may create both kinds, as nodes and system:auth-delegator may.
func New(c client.Writer) *Reviews {
	return &Reviews{client: c, tokens: cache.NewLRUExpireCache(mostAnswers), access: cache.NewLRUExpireCache(mostAnswers)}
}

// Identify returns who sends r: by the certificate, if one of the authorities has signed it for clients, else by the token. The nil Reviews
// know no tokens.
func (r *Reviews) Identify(req *http.Request, authorities *x509.CertPool) (*authenticationv1.UserInfo, error) {
	err := errors.New("neither a client certificate nor a bearer token")
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		var cert *x509.Certificate
		if cert, err = certificate(req.TLS.PeerCertificates, authorities); err == nil {
			return &authenticationv1.UserInfo{Username: cert.Subject.CommonName, Groups: append(slices.Clone(cert.Subject.Organization), authenticated)}, nil
		}
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(req.Header.Get("Authorization")), " ")
	if token = strings.TrimSpace(token); r == nil || !strings.EqualFold(scheme, "bearer") || token == "" {
		return nil, err
	}
	return r.user(req.Context(), token)
}

// certificate returns the client's, if an authority has signed it for clients.
func certificate(certs []*x509.Certificate, authorities *x509.CertPool) (*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return certs[0], err
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

// Allowed reports whether the access is; an error where the API server does not answer. Administrators are not asked about, so that a
// server can be looked into while it cannot reach the API server. The nil Reviews allow nobody else anything.
func (r *Reviews) Allowed(ctx context.Context, a Access) (bool, error) {
	if slices.Contains(a.User.Groups, masters) {
		return true, nil
	}
	if r == nil {
		return false, nil
	}
	key := fmt.Sprintf("%q %q %q %q %q %q", a.User.Username, a.User.UID, a.User.Groups, a.User.Extra, a.Verb, a.at())
	if known, ok := r.access.Get(key); ok {
		return known.(bool), nil
	}
	spec := authorizationv1.SubjectAccessReviewSpec{User: a.User.Username, UID: a.User.UID, Groups: a.User.Groups}
	if a.Node == "" {
		spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Verb: a.Verb, Path: a.Path}
	} else {
		spec.ResourceAttributes = &authorizationv1.ResourceAttributes{Verb: a.Verb, Version: "v1", Resource: "nodes", Subresource: a.Part, Name: a.Node}
	}
	for k, v := range a.User.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		spec.Extra[k] = authorizationv1.ExtraValue(v)
	}
	got, err := client.Create(ctx, r.client, &authorizationv1.SubjectAccessReview{Spec: spec})
	if err != nil {
		return false, fmt.Errorf("ask whether user %q may %s %s: %w", a.User.Username, a.Verb, a.at(), err)
	}
	ttl := deniedTTL
	if got.Status.Allowed {
		ttl = allowedTTL
	}
	r.access.Add(key, got.Status.Allowed, ttl)
	return got.Status.Allowed, nil
}
