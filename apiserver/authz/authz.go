// Package authz says what a user may do: RBAC over the Role and RoleBinding objects in the store, for kubelets what
// follows from their pods, and what webhooks answer. It replaces k8s.io/apiserver's authorizers and kube-apiserver's RBAC and node authorizers.
package authz

import (
	"context"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

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
	// Fields is the field selector of a list or watch; nil when there is none, or none that can be read.
	Fields fields.Selector
	// Labels is the label selector, as Fields.
	Labels labels.Selector
}

// Authorizer decides. A refusal has a reason for the person who reads it.
type Authorizer interface {
	Authorize(ctx context.Context, a *Attributes) (allowed bool, reason string, err error)
}
