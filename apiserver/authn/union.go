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
