// Package authz says what a user may do: RBAC over the Role and RoleBinding objects in the store. It
// replaces k8s.io/apiserver's authorizers and kube-apiserver's RBAC plug-in.
package authz

import (
	"context"

	"github.com/yare-dev/yare/apiserver/authn"
)

// Attributes describe a request to be decided upon. Either Path (no API object: /healthz) or the
// resource fields are set.
type Attributes struct {
	User        *authn.User
	Verb        string // get, list, watch, create, update, patch, delete, deletecollection, or the lower-case HTTP method for a Path
	Group       string
	Version     string
	Resource    string // plural
	Subresource string
	Namespace   string
	Name        string
	Path        string // set for requests outside the API, without the query
}

// Authorizer decides. A refusal has a reason for the person who reads it.
type Authorizer interface {
	Authorize(ctx context.Context, a *Attributes) (allowed bool, reason string, err error)
}
