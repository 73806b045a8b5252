package authn

import (
	"errors"
	"net/http"
)

// Union asks each of as in turn; the first that knows the user decides. When none does, the errors of those that found
// bad credentials are returned, so that a bad token is refused and not taken for an anonymous request.
func Union(as ...Authenticator) Authenticator { return union(as) }

type union []Authenticator

func (u union) Authenticate(r *http.Request) (*User, error) {
	var errs []error
	for _, a := range u {
		user, err := a.Authenticate(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if user != nil {
			return user, nil
		}
	}
	return nil, errors.Join(errs...)
}

// anonymousPaths are what a request without credentials may be about: upstream's public-info-viewer, and what
// load balancers and kubeadm probe.
var anonymousPaths = [...]string{"/healthz", "/livez", "/readyz", "/version", "/version/"}

// AnonymousHealth names requests without credentials system:anonymous, on health and version paths only:
// elsewhere they stay without a user, which is 401.
func AnonymousHealth() Authenticator { return anonymous{} }

type anonymous struct{}

func (anonymous) Authenticate(r *http.Request) (*User, error) {
	for _, p := range anonymousPaths {
		if r.URL.Path == p {
			return &User{Name: Anonymous, Groups: []string{Unauthenticated}}, nil
		}
	}
	return nil, nil
}
