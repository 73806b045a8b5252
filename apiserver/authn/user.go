// Package authn says who sends a request: by client certificates, by bearer tokens (of service accounts, of bootstrap, of OpenID
// Connect, or that a webhook reviews), else anonymous. It replaces k8s.io/apiserver's authenticators.
package authn

import (
	"context"
	"net/http"
	"slices"
)

// User is who sends a request. It is read-only once made.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// Groups and users that Kubernetes defines.
const (
	Anonymous       = "system:anonymous"
	Unauthenticated = "system:unauthenticated"
	Authenticated   = "system:authenticated"
	Masters         = "system:masters" // may do everything, before any rule is read
	Nodes           = "system:nodes"
	ServiceAccounts = "system:serviceaccounts"
)

// In says whether u is a member of group.
func (u *User) In(group string) bool { return slices.Contains(u.Groups, group) }

// Authenticator finds the user of a request. It returns nil, nil when the request carries no credentials of its
// kind, and an error when it carries bad ones.
type Authenticator interface {
	Authenticate(r *http.Request) (*User, error)
}

type userKey struct{}

// WithUser returns ctx carrying u.
func WithUser(ctx context.Context, u *User) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom returns the user that ctx carries. Every request that reaches the pipeline has one.
func UserFrom(ctx context.Context) *User {
	u, _ := ctx.Value(userKey{}).(*User)
	return u
}
