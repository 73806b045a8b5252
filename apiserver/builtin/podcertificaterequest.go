package builtin

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/mail"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of what kubelets ask and signers answer.
const (
	maxKeyMaterial = 10 << 10
	maxChain       = 100 << 10
	maxUID         = 128
)

// The conditions that end a request, of which it has at most one.
const (
	issued = certificatesv1.PodCertificateRequestConditionTypeIssued
	denied = certificatesv1.PodCertificateRequestConditionTypeDenied
	failed = certificatesv1.PodCertificateRequestConditionTypeFailed
)

type podCertificate = *certificatesv1.PodCertificateRequest

func podCertificateRequests(d Deps) *rest.Resource[podCertificate] {
	doc := certificatesv1.PodCertificateRequestSpec{}.SwaggerDoc()
	return &rest.Resource[podCertificate]{
		NoGeneration:    true,
		StrictStatus:    true,
		NoStatus:        true, // only those may write it who sign: the subresource asks
		RequireRevision: true,
		Default:         func(r podCertificate) { setPtr(&r.Spec.MaxExpirationSeconds, podspec.MaxOwnCertificateSeconds) },
		Prepare:         func(r podCertificate) { r.Status = certificatesv1.PodCertificateRequestStatus{} },
		PrepareUpdate:   func(now, old podCertificate) { now.Status = *old.Status.DeepCopy() },
		ValidateCreate:  podCertificateErrors,
		ValidateUpdate: func(now, old podCertificate) field.ErrorList {
			return immutable(now.Spec, old.Spec, field.NewPath("spec"))
		},
		Fields: func(r podCertificate) fields.Set {
			return fields.Set{"spec.signerName": r.Spec.SignerName, "spec.podName": r.Spec.PodName, "spec.nodeName": string(r.Spec.NodeName)}
		},
		Sub: map[string]*rest.Subresource{"status": {Update: d.podCertificateStatus}},
		Columns: []rest.Column[podCertificate]{
			{Name: "PodName", Description: doc["podName"], Cell: func(r podCertificate) any { return r.Spec.PodName }},
			{Name: "ServiceAccountName", Description: doc["serviceAccountName"], Cell: func(r podCertificate) any { return r.Spec.ServiceAccountName }},
			{Name: "NodeName", Description: doc["nodeName"], Cell: func(r podCertificate) any { return string(r.Spec.NodeName) }},
			{Name: "SignerName", Description: doc["signerName"], Cell: func(r podCertificate) any { return r.Spec.SignerName }},
			{Name: "State", Description: "Is the request Pending, Issued, Denied, or Failed?", Cell: func(r podCertificate) any { return or(podCertificateEnd(r), "Pending") }},
			{Name: "UnverifiedUserAnnotations", Description: doc["unverifiedUserAnnotations"], Cell: func(r podCertificate) any { return labels.FormatLabels(r.Spec.UnverifiedUserAnnotations) }},
		},
	}
}

// podCertificateEnd is the condition that ended the request, if one did.
func podCertificateEnd(r podCertificate) string {
	for _, c := range r.Status.Conditions {
		switch c.Type {
		case issued, denied, failed:
			return c.Type
		}
	}
	return ""
}

func podCertificateErrors(r podCertificate) field.ErrorList {
	s, at := &r.Spec, field.NewPath("spec")
	errs := podspec.SignerName(s.SignerName, at.Child("signerName"))
	errs = append(errs, podspec.SignerAnnotations(s.UnverifiedUserAnnotations, at.Child("unverifiedUserAnnotations"))...)
	for _, ref := range []struct{ field, name, uid string }{
		{"pod", s.PodName, string(s.PodUID)}, {"serviceAccount", s.ServiceAccountName, string(s.ServiceAccountUID)}, {"node", string(s.NodeName), string(s.NodeUID)},
	} {
		errs = append(errs, texts(at.Child(ref.field+"Name"), ref.name, isName(ref.name))...)
		if ref.uid == "" {
			errs = append(errs, field.Invalid(at.Child(ref.field+"UID"), "", "must not be empty"))
		}
		if len(ref.uid) > maxUID {
			errs = append(errs, field.TooLong(at.Child(ref.field+"UID"), "", maxUID))
		}
	}
	if n, most := *s.MaxExpirationSeconds, podspec.MaxCertificateSeconds(s.SignerName); n < podspec.MinCertificateSeconds || n > most {
		errs = append(errs, field.Invalid(at.Child("maxExpirationSeconds"), n, fmt.Sprintf("must be in the range [%d, %d]", podspec.MinCertificateSeconds, most)))
	}
	if len(s.StubPKCS10Request) == 0 {
		// What the beta versions had in its place is not in this one; the text is that of all versions.
		return append(errs, field.Invalid(at, field.OmitValueType{}, "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"))
	}
	return append(errs, stubRequest(s.StubPKCS10Request, at.Child("stubPKCS10Request"))...)
}

// stubRequest checks a request that proves, by its signature, that the sender has the key.
func stubRequest(data []byte, at *field.Path) field.ErrorList {
	if len(data) > maxKeyMaterial {
		return field.ErrorList{field.TooLong(at, "", maxKeyMaterial)}
	}
	r, err := x509.ParseCertificateRequest(data)
	if err != nil {
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, "must be a valid PKCS#10 CSR")}
	}
	switch k := r.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return field.ErrorList{field.Invalid(at, "curve "+k.Curve.Params().Name, "elliptic public keys must use curve P256, P384, or P521")}
		}
	case *rsa.PublicKey:
		if k.Size()*8 != 3072 && k.Size()*8 != 4096 {
			return field.ErrorList{field.Invalid(at, fmt.Sprintf("%d-bit modulus", k.Size()*8), "RSA keys must have modulus size 3072 or 4096")}
		}
	default:
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, "unknown public key type; supported types are Ed25519, ECDSA, and RSA")}
	}
	if r.CheckSignature() != nil {
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, "invalid signature")}
	}
	return nil
}

// podCertificateStatus lets those write the status who may sign for the signer.
func (d Deps) podCertificateStatus(ctx context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(podCertificate), old.(podCertificate)
	n.Spec = *o.Spec.DeepCopy()
	rest.KeepMeta(n, o)
	if errs := podCertificateAnswer(n, o); len(errs) > 0 || equality.Semantic.DeepEqual(n.Status, o.Status) {
		return errs
	}
	user, signer := authn.UserFrom(ctx), o.Spec.SignerName
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		ok, _, err := d.Access.Authorize(ctx, &authz.Attributes{User: user, Verb: "sign", Group: certificatesv1.GroupName, Version: "*", Resource: "signers", Name: name})
		if err == nil && ok {
			return nil
		}
	}
	return field.ErrorList{field.Forbidden(field.NewPath("spec", "signerName"), fmt.Sprintf("User %q is not permitted to \"sign\" for signer %q", user.Name, signer))}
}

// podCertificateAnswer checks what a signer says. A request ends once, and then stays as it is.
func podCertificateAnswer(now, old podCertificate) (errs field.ErrorList) {
	at := field.NewPath("status")
	conditions := at.Child("conditions")
	ends := 0
	for i, c := range now.Status.Conditions {
		at := field.NewPath("status", "conditions", fmt.Sprintf("[%d]", i))
		switch c.Type {
		case issued, denied, failed:
			if ends++; ends > 1 {
				errs = append(errs, field.Invalid(at.Child("type"), c.Type, `There may be at most one condition with type "Issued", "Denied", or "Failed"`))
			}
			if c.Status != metav1.ConditionTrue {
				errs = append(errs, field.NotSupported(at.Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
			}
		default:
			errs = append(errs, field.NotSupported(at.Child("type"), c.Type, []string{issued, denied, failed}))
		}
	}
	if errs = append(errs, metavalidation.ValidateConditions(now.Status.Conditions, conditions)...); len(errs) > 0 {
		return errs
	}
	same := func(want certificatesv1.PodCertificateRequestStatus, why string) field.ErrorList {
		if equality.Semantic.DeepEqual(now.Status, want) {
			return nil
		}
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, why)}
	}
	switch end := podCertificateEnd(now); {
	case podCertificateEnd(old) != "":
		return same(old.Status, "immutable after PodCertificateRequest is issued, denied, or failed")
	case end == denied || end == failed:
		return same(certificatesv1.PodCertificateRequestStatus{Conditions: now.Status.Conditions},
			"non-condition status fields must be empty when denying or failing the PodCertificateRequest")
	case end == issued:
		return issuedChain(now, at)
	}
	return same(old.Status, `status is immutable unless transitioning to "Issued", "Denied", or "Failed"`)
}

func issuedChain(r podCertificate, status *field.Path) (errs field.ErrorList) {
	at, chain := status.Child("certificateChain"), r.Status.CertificateChain
	bad := func(value any, why string) field.ErrorList { return append(errs, field.Invalid(at, value, why)) }
	if len(chain) > maxChain {
		return field.ErrorList{field.TooLong(at, "", maxChain)}
	}
	block, rest := pem.Decode([]byte(chain))
	if block == nil {
		return bad(chain, "issued certificate chain must contain at least one certificate")
	}
	if block.Type != certificate {
		return bad(chain, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return bad(chain, "leaf certificate does not parse as valid X.509")
	}
	errs = leafNames(leaf, at)
	if !issuedTo(leaf, &r.Spec) {
		return bad(chain, "leaf certificate was not issued to the requested public key")
	}
	if more := issuedTimes(r, leaf, status); len(more) > 0 {
		return append(errs, more...)
	}
	for {
		if block, rest = pem.Decode(rest); block == nil {
			return errs
		}
		if block.Type != certificate {
			return bad(chain, "issued certificate chain must consist entirely of CERTFICATE PEM blocks")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return bad(chain, "intermediate certificate does not parse as valid X.509")
		}
	}
}

func leafNames(leaf *x509.Certificate, at *field.Path) (errs field.ErrorList) {
	for _, n := range leaf.DNSNames {
		if n == "" {
			errs = append(errs, field.Invalid(at, n, "leaf certificate should not contain empty DNSName"))
		}
		if strings.Contains(n, "..") {
			errs = append(errs, field.Invalid(at, n, "leaf certificate's DNSName should not contain '..'"))
		}
		if strings.HasPrefix(n, ".") || strings.HasSuffix(n, ".") {
			errs = append(errs, field.Invalid(at, n, "leaf certificate's DNSName should not start or end with '.'"))
		}
	}
	for _, a := range leaf.EmailAddresses {
		if _, err := mail.ParseAddress(a); err != nil {
			errs = append(errs, field.Invalid(at, a, "leaf certificate should not contain invalid EmailAddress"))
		}
	}
	return errs
}

// issuedTo says that the certificate is for the key that was asked for, which was checked when the request was created.
func issuedTo(leaf *x509.Certificate, s *certificatesv1.PodCertificateRequestSpec) bool {
	r, err := x509.ParseCertificateRequest(s.StubPKCS10Request)
	if err != nil {
		return false
	}
	k, ok := r.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(leaf.PublicKey)
}

// issuedTimes checks that the times told are those of the certificate, and sensible.
func issuedTimes(r podCertificate, leaf *x509.Certificate, at *field.Path) (errs field.ErrorList) {
	from, until, refresh := at.Child("notBefore"), at.Child("notAfter"), at.Child("beginRefreshAt")
	s := &r.Status
	if s.NotBefore == nil {
		errs = append(errs, field.Required(from, "must be present and consistent with the issued certificate"))
	}
	if s.NotAfter == nil {
		errs = append(errs, field.Required(until, "must be present and consistent with the issued certificate"))
	}
	if s.BeginRefreshAt == nil {
		errs = append(errs, field.Required(refresh, "must be present and in the range [notbefore+10min, notafter-10min]"))
	}
	if len(errs) > 0 {
		return errs
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	one := func(at *field.Path, value any, why string) field.ErrorList {
		return field.ErrorList{field.Invalid(at, value, why)}
	}
	switch chain := at.Child("certificateChain"); {
	case !s.NotBefore.Time.Equal(leaf.NotBefore):
		return one(from, s.NotBefore.Time, "must be set to the NotBefore time encoded in the leaf certificate")
	case time.Since(s.NotBefore.Time).Abs() >= 5*time.Minute:
		return one(from, s.NotBefore.Time, "must be set to within 5 minutes of kube-apiserver's current time")
	case !s.NotAfter.Time.Equal(leaf.NotAfter):
		return one(until, s.NotAfter.Time, "must be set to the NotAfter time encoded in the leaf certificate")
	case life < time.Hour:
		return one(chain, life, "leaf certificate lifetime must be >= 1 hour")
	case life > time.Duration(*r.Spec.MaxExpirationSeconds)*time.Second:
		return one(chain, life, fmt.Sprintf("leaf certificate lifetime must be <= spec.maxExpirationSeconds (%v)", *r.Spec.MaxExpirationSeconds))
	case s.BeginRefreshAt.Time.Before(s.NotBefore.Add(10 * time.Minute)):
		return one(refresh, s.BeginRefreshAt.Time, "must be at least 10 minutes after status.notBefore")
	case s.BeginRefreshAt.Time.After(s.NotAfter.Add(-10 * time.Minute)):
		return one(refresh, s.BeginRefreshAt.Time, "must be at least 10 minutes before status.notAfter")
	}
	return nil
}
