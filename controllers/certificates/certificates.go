// Package certificates answers CertificateSigningRequests. It replaces upstream's certificatesigningrequest-signing, -approving and
// -cleaner controllers.
//
//	created ── approved by a person, or here ──> Approved ── signed here ──> certificate
//	   │                                             └── not what the signer gives ──> Failed
//	   └── Denied                          each is deleted some time after
//
// Signed are requests for kubernetes.io/kube-apiserver-client, kubernetes.io/kube-apiserver-client-kubelet and
// kubernetes.io/kubelet-serving. (kubernetes.io/legacy-unknown is not to be had through the API's only version.) Approved are those
// of kubelets for their own client certificates, when who asks may create the subresource nodeclient or selfnodeclient.
package certificates

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type request = *certificatesv1.CertificateSigningRequest

// Sign returns the certificate, in PEM, that a template asks for, with the template's public key.
type Sign func(template *x509.Certificate) ([]byte, error)

// NewSigning returns the controller that signs what is approved.
func NewSigning(d reconcile.Deps, sign Sign) *reconcile.Controller {
	return reconcile.New(d, reconcile.For[request]{
		Controller: "certificatesigningrequest-signing-controller",
		Write:      reconcile.Writes{api.CertificateSigningRequestKind: {"update/status"}},
		Reconcile: func(ctx context.Context, log *slog.Logger, r request) (reconcile.Result, error) {
			if len(r.Status.Certificate) > 0 || condition(r, certificatesv1.CertificateApproved) == nil || condition(r, certificatesv1.CertificateDenied) != nil ||
				condition(r, certificatesv1.CertificateFailed) != nil || rules[r.Spec.SignerName] == nil {
				return reconcile.Result{}, nil
			}
			asked, err := parse(r)
			if err == nil {
				err = rules[r.Spec.SignerName](asked, r.Spec.Usages)
			}
			if err != nil {
				log.Info("a request is not what its signer gives", "err", err)
				return reconcile.Result{}, add(ctx, d.Client, r, "status", certificatesv1.CertificateFailed, "SignerValidationFailure", err.Error())
			}
			cert, err := sign(template(asked, r, time.Now()))
			if err != nil {
				return reconcile.Result{}, fmt.Errorf("sign: %w", err)
			}
			log.Info("signed", "signer", r.Spec.SignerName, "subject", asked.Subject.String())
			_, err = client.Mutate(ctx, d.Client, r, "status", func(r request) { r.Status.Certificate = cert })
			return reconcile.Result{}, err
		},
	})
}

// NewApproving returns the controller that approves kubelets' requests.
func NewApproving(d reconcile.Deps) *reconcile.Controller {
	return reconcile.New(d, reconcile.For[request]{
		Controller: "certificatesigningrequest-approving-controller",
		Write: reconcile.Writes{
			api.CertificateSigningRequestKind: {"update/approval"},
			api.SubjectAccessReviewKind:       {"create"},
		},
		Reconcile: func(ctx context.Context, _ *slog.Logger, r request) (reconcile.Result, error) {
			if len(r.Status.Certificate) > 0 || r.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName ||
				condition(r, certificatesv1.CertificateApproved) != nil || condition(r, certificatesv1.CertificateDenied) != nil {
				return reconcile.Result{}, nil
			}
			asked, err := parse(r)
			if err != nil || kubeletClient(asked, r.Spec.Usages) != nil {
				return reconcile.Result{}, nil // a person may know what it is
			}
			for _, a := range []struct {
				applies      bool
				sub, message string
			}{
				{asked.Subject.CommonName == r.Spec.Username, "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."},
				{true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
			} {
				if !a.applies {
					continue
				}
				ok, err := mayCreate(ctx, d.Client, r, a.sub)
				if err != nil {
					return reconcile.Result{}, fmt.Errorf("review access: %w", err)
				}
				if ok {
					return reconcile.Result{}, add(ctx, d.Client, r, "approval", certificatesv1.CertificateApproved, "AutoApproved", a.message)
				}
			}
			return reconcile.Result{}, nil
		},
	})
}

// NewCleaner returns the controller that deletes what has been answered, or was not for long.
func NewCleaner(d reconcile.Deps) *reconcile.Controller {
	return reconcile.New(d, reconcile.For[request]{
		Controller: "certificatesigningrequest-cleaner-controller",
		Write:      reconcile.Writes{api.CertificateSigningRequestKind: {"delete"}},
		Reconcile: func(ctx context.Context, _ *slog.Logger, r request) (reconcile.Result, error) {
			end, ok := deadline(r)
			if !ok || r.DeletionTimestamp != nil {
				return reconcile.Result{}, nil
			}
			if left := time.Until(end); left > 0 {
				return reconcile.Result{After: left}, nil
			}
			return reconcile.Result{}, d.Client.Delete(ctx, r, client.DeleteOptions{})
		},
	})
}

// mayCreate says whether who made the request may create the subresource of requests.
func mayCreate(ctx context.Context, c client.Client, r request, sub string) (bool, error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range r.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	answer, err := client.Create(ctx, c, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: r.Spec.Username, UID: r.Spec.UID, Groups: r.Spec.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: certificatesv1.GroupName, Resource: "certificatesigningrequests", Verb: "create", Subresource: sub, Version: "*"},
	}})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}

// add writes a condition.
func add(ctx context.Context, c client.Client, r request, sub string, t certificatesv1.RequestConditionType, reason, message string) error {
	_, err := client.Mutate(ctx, c, r, sub, func(r request) {
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastUpdateTime: metav1.Now()})
	})
	return err
}

func condition(r request, t certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	for i := range r.Status.Conditions {
		if c := &r.Status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

// parse reads what a certificate is wanted for. The API server has checked the signature.
func parse(r request) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(r.Spec.Request)
	if block == nil {
		return nil, errors.New("spec.request is not PEM")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
