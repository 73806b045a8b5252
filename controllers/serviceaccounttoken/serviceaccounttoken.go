// Package serviceaccounttoken fills the Secrets of type kubernetes.io/service-account-token with a token of the service account that
// they are annotated with, the cluster's certificate authority and their namespace, and deletes those whose service account does not
// exist (any more). It replaces upstream's serviceaccount-token controller.
package serviceaccounttoken

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Sign makes the token of a service account that a Secret keeps. It does not end; the API server accepts it while the Secret holds it.
type Sign func(*corev1.Secret, *corev1.ServiceAccount) (string, error)

type controller struct {
	reconcile.Deps
	ca   []byte
	sign Sign
}

// New returns the controller; ca, in PEM form, is what the users of tokens verify the API server with.
func New(d reconcile.Deps, ca []byte, sign Sign) *reconcile.Controller {
	c := controller{d, ca, sign}
	return reconcile.NewKeyed(d, reconcile.Keyed{
		Controller: "serviceaccount-token-controller",
		Sources: []reconcile.Source{
			reconcile.Mapped(func(s *corev1.Secret) []api.Key {
				if s.Type != corev1.SecretTypeServiceAccountToken {
					return nil
				}
				return []api.Key{api.KeyOf(s)}
			}),
			reconcile.Changed(secretsOf, api.SecretKind),
		},
		Write: reconcile.Writes{api.SecretKind: {"update", "delete"}},
		Run:   c.run,
	})
}

// secretsOf returns the keys of the Secrets for a service account that came or went.
func secretsOf(ctx context.Context, d reconcile.Deps, before, after *corev1.ServiceAccount) (keys []api.Key) {
	account := after
	if account == nil {
		account = before
	} else if before != nil && before.UID == after.UID {
		return nil
	}
	secrets, err := client.List[*corev1.Secret](ctx, d.Client, client.Query{Namespace: account.Namespace})
	if err != nil {
		d.Log.Warn("list secrets", "err", err)
		return nil
	}
	for _, s := range secrets {
		if s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] == account.Name {
			keys = append(keys, api.KeyOf(s))
		}
	}
	return keys
}

func (c controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	s, err := client.Get[*corev1.Secret](ctx, c.Client, key)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get secret: %w", err)
	}
	if s.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	account, err := c.account(ctx, s)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get service account: %w", err)
	}
	if account == nil {
		log.Info("deleting a token whose service account does not exist", "account", s.Annotations[corev1.ServiceAccountNameKey])
		return reconcile.Result{}, c.Client.Delete(ctx, s, client.DeleteOptions{})
	}
	token := string(s.Data[corev1.ServiceAccountTokenKey])
	if token == "" {
		if token, err = c.sign(s, account); err != nil {
			return reconcile.Result{}, err
		}
	}
	_, err = client.Mutate(ctx, c.Client, s, "", func(s *corev1.Secret) { fill(s, account, token, c.ca) })
	return reconcile.Result{}, err
}

// account returns the service account that s is for, nil when there is none.
func (c controller) account(ctx context.Context, s *corev1.Secret) (*corev1.ServiceAccount, error) {
	key := api.Key{Namespace: s.Namespace, Name: s.Annotations[corev1.ServiceAccountNameKey]}
	// Both may have been created, or the account made anew, in one go, and only the Secret have arrived here.
	a, err := client.Get[*corev1.ServiceAccount](client.Live(ctx), c.Client, key)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if uid := s.Annotations[corev1.ServiceAccountUIDKey]; uid != "" && uid != string(a.UID) {
		return nil, nil
	}
	return a, nil
}

// fill writes what s lacks. What users have put in stays, but for another authority.
func fill(s *corev1.Secret, a *corev1.ServiceAccount, token string, ca []byte) {
	s.Annotations[corev1.ServiceAccountUIDKey] = string(a.UID)
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	if len(ca) > 0 && !bytes.Equal(s.Data[corev1.ServiceAccountRootCAKey], ca) {
		s.Data[corev1.ServiceAccountRootCAKey] = ca
	}
	if len(s.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		s.Data[corev1.ServiceAccountNamespaceKey] = []byte(s.Namespace)
	}
}
