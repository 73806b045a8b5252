package main

import (
	"context"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// localAccounts is access to the API in this process where each controller writes as its own service account in kube-system, to
// which upstream's roles are bound: what accounts is over HTTPS. What they read
// is in this process's memory anyway, as upstream's shared caches are.
type localAccounts struct {
	client.Reader
	manager client.Writer // for events, and controllers without an account
	server  *server
}

func (a localAccounts) of(ctx context.Context) client.Writer {
	d := reconcile.DeclarationOf(ctx)
	if d == nil {
		return a.manager
	}
	account := accountOf(d.Controller)
	if account == "" {
		return a.manager
	}
	return a.server.api.ClientAs(authn.ServiceAccount(metav1.NamespaceSystem, account, ""))
}

func (a localAccounts) Create(ctx context.Context, o api.Object) (api.Object, error) {
	return a.of(ctx).Create(ctx, o)
}

func (a localAccounts) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	return a.of(ctx).Update(ctx, o, sub)
}

func (a localAccounts) UpdateScale(ctx context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	return a.of(ctx).UpdateScale(ctx, k, s)
}

func (a localAccounts) Patch(ctx context.Context, k *api.Kind, key api.Key, p client.Patch) (api.Object, error) {
	return a.of(ctx).Patch(ctx, k, key, p)
}

func (a localAccounts) Delete(ctx context.Context, o api.Object, opts client.DeleteOptions) error {
	return a.of(ctx).Delete(ctx, o, opts)
}

func (a localAccounts) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	return a.of(ctx).Post(ctx, k, key, sub, body)
}
