package authn

import (
	"context"
	"errors"
	"net/http"
	"slices"
)

// Verifier knows whose a bearer token is. Like an Authenticator, it returns nil, nil for tokens that are not of its kind.
type Verifier interface {
	// Verify returns the user of a token and those of audiences that it is for, at least one.
	Verify(ctx context.Context, token string, audiences []string) (*User, []string, error)
}

// Verifiers asks each of vs in turn, as Union does.
func Verifiers(vs ...Verifier) Verifier { return verifiers(vs) }

type verifiers []Verifier

func (vs verifiers) Verify(ctx context.Context, token string, audiences []string) (*User, []string, error) {
	var errs []error
	for _, v := range vs {
		user, both, err := v.Verify(ctx, token, audiences)
		if err != nil && !errors.Is(err, errForeignToken) {
			errs = append(errs, err)
		}
		if err == nil && user != nil {
			return user, both, nil
		}
	}
	return nil, nil, errors.Join(errs...)
}

// Bearer authenticates requests by their bearer tokens, which must be for one of the audiences.
func Bearer(v Verifier, audiences []string) Authenticator { return bearers{v, audiences} }

type bearers struct {
	v         Verifier
	audiences []string
}

func (b bearers) Authenticate(r *http.Request) (*User, error) {
	token := bearer(r)
	if token == "" {
		return nil, nil
	}
	user, _, err := b.v.Verify(r.Context(), token, b.audiences)
	if err == nil && user == nil {
		err = errors.New("invalid bearer token")
	}
	return user, err
}

// ForServer makes a Verifier of one for tokens that say nothing of audiences: they are for the API server's own.
func ForServer(verify func(ctx context.Context, token string) (*User, error), own []string) Verifier {
	return agnostic{verify, own}
}

type agnostic struct {
	verify func(ctx context.Context, token string) (*User, error)
	own    []string
}

func (a agnostic) Verify(ctx context.Context, token string, audiences []string) (*User, []string, error) {
	var both []string
	for _, x := range audiences {
		if slices.Contains(a.own, x) {
			both = append(both, x)
		}
	}
	if len(both) == 0 {
		return nil, nil, nil
	}
	user, err := a.verify(ctx, token)
	if err != nil || user == nil {
		return nil, nil, err
	}
	return user, both, nil
}
