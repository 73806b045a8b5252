package reconciletest

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Late returns c as a client sees it whose memory has not heard of any object of kind k yet: only reads that must be live find
// them.
func Late(c client.Client, k *api.Kind) client.Client { return late{c, k} }

type late struct {
	client.Client
	kind *api.Kind
}

// Get is part of client.Reader.
func (l late) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if k == l.kind && !client.IsLive(ctx) {
		return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
	}
	return l.Client.Get(ctx, k, key)
}

// List is part of client.Reader.
func (l late) List(ctx context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	os, rev, err := l.Client.List(ctx, k, q)
	if k == l.kind && !client.IsLive(ctx) {
		os = nil
	}
	return os, rev, err
}
