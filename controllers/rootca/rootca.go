// Package rootca publishes the cluster's certificate authority as ConfigMap kube-root-ca.crt in every namespace, for
// pods to verify the API server with. It replaces upstream's root-ca-certificate-publisher controller.
package rootca

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

const (
	name        = "kube-root-ca.crt"
	file        = "ca.crt"
	description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the " +
		"internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

type controller struct {
	reconcile.Deps
	ca string
}

// New returns the publisher of ca, in PEM form.
func New(d reconcile.Deps, ca []byte) *reconcile.Controller {
	c := controller{d, string(ca)}
	return reconcile.New(d, reconcile.For[*corev1.Namespace]{
		Controller: "root-ca-certificate-publisher-controller",
		Also: []reconcile.Source{reconcile.Mapped(func(cm *corev1.ConfigMap) []api.Key {
			if cm.Name != name {
				return nil
			}
			return []api.Key{{Name: cm.Namespace}}
		})},
		Write:     reconcile.Writes{api.ConfigMapKind: {"create", "update"}},
		Reconcile: c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, ns *corev1.Namespace) (reconcile.Result, error) {
	if ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return reconcile.Result{}, nil
	}
	cm, err := client.Get[*corev1.ConfigMap](ctx, c.Client, api.Key{Namespace: ns.Name, Name: name})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, c.Client, &corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name,
				Annotations: map[string]string{"kubernetes.io/description": description}},
			Data: map[string]string{file: c.ca},
		})
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("create configmap: %w", err)
		}
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get configmap: %w", err)
	}
	_, err = client.Mutate(ctx, c.Client, cm, "", func(cm *corev1.ConfigMap) {
		cm.Data = map[string]string{file: c.ca}
		if cm.Annotations == nil {
			cm.Annotations = map[string]string{}
		}
		cm.Annotations["kubernetes.io/description"] = description
	})
	return reconcile.Result{}, err
}
