package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// maySigner says whether the user has the verb on the signer, or on all of the signer's domain.
func maySigner(ctx context.Context, access authz.Authorizer, u *authn.User, verb, signer string) bool {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		ok, _, _ := access.Authorize(ctx, &authz.Attributes{User: u, Verb: verb, Group: certificatesv1.GroupName, Version: "*", Resource: "signers", Name: name})
		if ok {
			return true
		}
	}
	return u.In(authn.Masters)
}

// certificateApproval lets only those approve or deny a request who may for its signer.
func certificateApproval(access authz.Authorizer) rest.Admission {
	return onValidate("CertificateApproval", func(ctx context.Context, a *rest.Admitting) error {
		old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
		if !ok || a.Operation != rest.OpUpdate || a.Sub != "approval" || maySigner(ctx, access, a.User, "approve", old.Spec.SignerName) {
			return nil
		}
		return forbidden(a, "user not permitted to approve requests with signerName %q", old.Spec.SignerName)
	})
}

// certificateSigning lets only those issue a certificate who may for its signer.
func certificateSigning(access authz.Authorizer) rest.Admission {
	return onValidate("CertificateSigning", func(ctx context.Context, a *rest.Admitting) error {
		old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
		now, is := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || !is || a.Operation != rest.OpUpdate || a.Sub != "status" ||
			bytes.Equal(old.Status.Certificate, now.Status.Certificate) && equality.Semantic.DeepEqual(old.Status.Conditions, now.Status.Conditions) ||
			maySigner(ctx, access, a.User, "sign", old.Spec.SignerName) {
			return nil
		}
		return forbidden(a, "user not permitted to sign requests with signerName %q", old.Spec.SignerName)
	})
}

// certificateSubjectRestriction lets nobody ask for a client certificate of those who may do everything.
func certificateSubjectRestriction() rest.Admission {
	return onValidate("CertificateSubjectRestriction", func(_ context.Context, a *rest.Admitting) error {
		now, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || a.Operation != rest.OpCreate || a.Sub != "" || now.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
			return nil
		}
		r, err := certificateRequest(now.Spec.Request)
		if err != nil {
			return forbidden(a, "failed to parse CSR: %v", err)
		}
		if slices.Contains(r.Subject.Organization, authn.Masters) {
			return forbidden(a, "use of %s signer with system:masters group is not allowed", certificatesv1.KubeAPIServerClientSignerName)
		}
		return nil
	})
}

func certificateRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	return r, nil
}

// clusterTrustBundleAttest lets only those say whom to trust for a signer who may attest for it.
func clusterTrustBundleAttest(access authz.Authorizer) rest.Admission {
	return onValidate("ClusterTrustBundleAttest", func(ctx context.Context, a *rest.Admitting) error {
		now, ok := a.Object.(*certificatesv1.ClusterTrustBundle)
		if !ok || now.Spec.SignerName == "" {
			return nil
		}
		if old, ok := a.Old.(*certificatesv1.ClusterTrustBundle); ok && onlyCollected(old, now) {
			return nil
		}
		if maySigner(ctx, access, a.User, "attest", now.Spec.SignerName) {
			return nil
		}
		return forbidden(a, "user not permitted to attest for signerName %q", now.Spec.SignerName)
	})
}

// onlyCollected says whether a write changes nothing but what garbage collection does: owners and finalizers.
func onlyCollected(old, now *certificatesv1.ClusterTrustBundle) bool {
	was := old.DeepCopy()
	was.OwnerReferences, was.Finalizers, was.ManagedFields, was.ResourceVersion = now.OwnerReferences, now.Finalizers, now.ManagedFields, now.ResourceVersion
	was.SelfLink = now.SelfLink
	return equality.Semantic.DeepEqual(was, now)
}
