// Package serviceaccount gives every namespace its "default" ServiceAccount. It replaces upstream's serviceaccount
// controller.
package serviceaccount

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const name = "default"

type controller struct{ reconcile.Deps }

// New returns the serviceaccount controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*corev1.Namespace]{
		Controller: "serviceaccount-controller",
		Also: []reconcile.Source{reconcile.Changed(func(_ context.Context, _ reconcile.Deps, before, after *corev1.ServiceAccount) []api.Key {
			if after != nil || before.Name != name {
				return nil
			}
			return []api.Key{{Name: before.Namespace}}
		})},
		Write:     reconcile.Writes{api.ServiceAccountKind: {"create"}},
		Reconcile: c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, ns *corev1.Namespace) (reconcile.Result, error) {
	if ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return reconcile.Result{}, nil
	}
	_, err := client.Get[*corev1.ServiceAccount](ctx, c.Client, api.Key{Namespace: ns.Name, Name: name})
	if !apierrors.IsNotFound(err) {
		return reconcile.Result{}, err
	}
	_, err = client.Create(ctx, c.Client, &corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name},
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return reconcile.Result{}, fmt.Errorf("create service account: %w", err)
	}
	log.Info("created service account")
	return reconcile.Result{}, nil
}
