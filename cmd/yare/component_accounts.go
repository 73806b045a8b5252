package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// tokenLife is what is asked for; the server may give less.
const tokenLife = time.Hour

// accounts is a transport that sends the requests of each controller as its service account in kube-system, to which
// upstream's roles are bound (--use-service-account-credentials). What is watched for all of them is the user's own.
type accounts struct {
	user   http.RoundTripper // with the user's credentials
	nobody http.RoundTripper // without any: a certificate would count more than a token
	access client.Client     // makes accounts and tokens, as the user

	mu     sync.Mutex
	tokens map[string]*token // by account
}

// asAccounts returns cfg with that transport.
func (p *peer) asAccounts(cfg *rest.Config) (*rest.Config, error) {
	access, err := p.dial(cfg, "kube-controller-manager")
	if err != nil {
		return nil, err
	}
	nobody, err := rest.TransportFor(rest.AnonymousClientConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(user http.RoundTripper) http.RoundTripper {
		return &accounts{user: user, nobody: nobody, access: access, tokens: map[string]*token{}}
	})
	return cfg, nil
}

// RoundTrip is part of http.RoundTripper.
func (a *accounts) RoundTrip(r *http.Request) (*http.Response, error) {
	d := reconcile.DeclarationOf(r.Context())
	if d == nil {
		return a.user.RoundTrip(r)
	}
	account := accountOf(d.Controller)
	if account == "" {
		return a.user.RoundTrip(r)
	}
	t := a.of(account)
	text, err := t.get(r.Context(), a.access)
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+text)
	answer, err := a.nobody.RoundTrip(r)
	if err == nil && answer.StatusCode == http.StatusUnauthorized {
		t.forget(text) // the account was made anew, or the server's key
	}
	return answer, err
}

func (a *accounts) of(account string) *token {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens[account] == nil {
		a.tokens[account] = &token{account: api.Key{Namespace: metav1.NamespaceSystem, Name: account}}
	}
	return a.tokens[account]
}

// accountOf returns the name of a controller's service account: the controller's own, but for those that upstream has renamed
// since. Empty: it works as the controller manager itself, whose role has what it needs.
func accountOf(controller string) string {
	switch controller {
	case "serviceaccount-token-controller":
		return ""
	case "endpoints-controller":
		return "endpoint-controller"
	case "pod-garbage-collector-controller":
		return "pod-garbage-collector"
	case "serviceaccount-controller":
		return "service-account-controller"
	case "garbage-collector-controller":
		return "generic-garbage-collector"
	case "endpointslice-mirroring-controller":
		return "endpointslicemirroring-controller"
	case "persistentvolumeclaim-protection-controller":
		return "pvc-protection-controller"
	case "persistentvolume-protection-controller":
		return "pv-protection-controller"
	case "persistentvolume-binder-controller":
		return "persistent-volume-binder"
	case "persistentvolume-attach-detach-controller":
		return "attachdetach-controller"
	case "persistentvolume-expander-controller":
		return "expand-controller"
	case "replicationcontroller-controller":
		return "replication-controller"
	case "horizontal-pod-autoscaler-controller":
		return "horizontal-pod-autoscaler"
	case "service-lb-controller":
		return "service-controller"
	case "daemonset-controller":
		return "daemon-set-controller"
	case "node-ipam-controller", "node-lifecycle-controller", "taint-eviction-controller":
		return "node-controller"
	case "root-ca-certificate-publisher-controller":
		return "root-ca-cert-publisher"
	case "kube-apiserver-serving-clustertrustbundle-publisher-controller":
		return "kube-apiserver-serving-clustertrustbundle-publisher"
	case "certificatesigningrequest-signing-controller", "certificatesigningrequest-approving-controller", "certificatesigningrequest-cleaner-controller":
		return "certificate-controller"
	case "resourceclaim-controller":
		return "resource-claim-controller"
	case "podcertificaterequest-cleaner-controller":
		return "podcertificaterequestcleaner"
	}
	return controller
}

// token is a service account's. It is made anew when four fifths of its life have passed.
type token struct {
	account api.Key

	mu    sync.Mutex
	text  string
	renew time.Time
}

func (t *token) get(ctx context.Context, c client.Client) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text != "" && time.Now().Before(t.renew) {
		return t.text, nil
	}
	s, err := t.ask(ctx, c)
	if apierrors.IsNotFound(err) {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: t.account.Namespace, Name: t.account.Name}}
		if _, err = client.Create(ctx, c, account); err == nil || apierrors.IsAlreadyExists(err) {
			s, err = t.ask(ctx, c)
		}
	}
	if err != nil {
		return "", fmt.Errorf("make token of service account %s: %w", t.account, err)
	}
	t.text, t.renew = s.Token, time.Now().Add(time.Until(s.ExpirationTimestamp.Time)*4/5)
	return t.text, nil
}

func (t *token) ask(ctx context.Context, c client.Client) (*authenticationv1.TokenRequestStatus, error) {
	seconds := int64(tokenLife / time.Second)
	o, err := c.Post(ctx, api.ServiceAccountKind, t.account, "token",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}})
	if err != nil {
		return nil, err
	}
	return &o.(*authenticationv1.TokenRequest).Status, nil
}

// forget makes the next request ask for another token.
func (t *token) forget(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text == text {
		t.text = ""
	}
}
