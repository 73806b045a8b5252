package builtin

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	legacySigner  = "kubernetes.io/legacy-unknown"
	certificate   = "CERTIFICATE"
	minExpiration = 600
)

// certificateSigningRequests have a spec that says who asked, a subresource for those who approve and one for those who sign.
func certificateSigningRequests() *rest.Resource[*certificatesv1.CertificateSigningRequest] {
	type csr = *certificatesv1.CertificateSigningRequest
	doc := certificatesv1beta1.CertificateSigningRequestSpec{}.SwaggerDoc()
	return &rest.Resource[csr]{
		Name:         func(string, bool) []string { return nil },
		NoGeneration: true,
		NoStatus:     true, // two subresources write it, each its part
		Reset:        map[string][]string{"": {"spec", "status"}, "status": {"spec", "status.conditions"}, "approval": {"spec", "status.certificate"}},
		PrepareFor: func(ctx context.Context, r csr) {
			u := authn.UserFrom(ctx)
			r.Spec.Username, r.Spec.UID, r.Spec.Groups, r.Spec.Extra = u.Name, u.UID, slices.Clone(u.Groups), nil
			for k, v := range u.Extra {
				if r.Spec.Extra == nil {
					r.Spec.Extra = map[string]certificatesv1.ExtraValue{}
				}
				r.Spec.Extra[k] = slices.Clone(v)
			}
		},
		Prepare:        func(r csr) { r.Status = certificatesv1.CertificateSigningRequestStatus{} },
		PrepareUpdate:  func(now, old csr) { now.Spec, now.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy() },
		ValidateCreate: func(r csr) field.ErrorList { return csrErrors(r) },
		Fields:         func(r csr) fields.Set { return fields.Set{"spec.signerName": r.Spec.SignerName} },
		Sub: map[string]*rest.Subresource{
			"status":   {Update: csrStatus},
			"approval": {Update: csrApproval},
		},
		Columns: []rest.Column[csr]{
			{Name: "Age"},
			{Name: "SignerName", Description: doc["signerName"], Cell: func(r csr) any { return or(r.Spec.SignerName, none) }},
			{Name: "Requestor", Description: doc["request"], Cell: func(r csr) any { return r.Spec.Username }},
			{Name: "RequestedDuration", Description: doc["expirationSeconds"], Cell: func(r csr) any {
				if r.Spec.ExpirationSeconds == nil {
					return none
				}
				return duration.HumanDuration(time.Duration(*r.Spec.ExpirationSeconds) * time.Second)
			}},
			{Name: "Condition", Description: certificatesv1beta1.CertificateSigningRequestStatus{}.SwaggerDoc()["conditions"], Cell: func(r csr) any { return csrState(r) }},
		},
	}
}

func csrState(r *certificatesv1.CertificateSigningRequest) string {
	has := func(t certificatesv1.RequestConditionType) bool { return len(csrConditions(r, t)) > 0 }
	state := "Pending"
	switch {
	case has(certificatesv1.CertificateDenied):
		state = "Denied"
	case has(certificatesv1.CertificateApproved):
		state = "Approved"
	}
	if has(certificatesv1.CertificateFailed) {
		state += ",Failed"
	}
	if len(r.Status.Certificate) > 0 {
		state += ",Issued"
	}
	return state
}

// csrConditions returns the places of the conditions of a type.
func csrConditions(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) (at []int) {
	for i, c := range r.Status.Conditions {
		if c.Type == t {
			at = append(at, i)
		}
	}
	return at
}

// csrStatus lets a signer set the certificate, and conditions but the decision.
func csrStatus(_ context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
	n.Spec = *o.Spec.DeepCopy()
	errs := field.ErrorList{}
	at := field.NewPath("status")
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		is, was := csrConditions(n, t), csrConditions(o, t)
		if len(is) > len(was) {
			errs = append(errs, field.Forbidden(at.Child("conditions"), fmt.Sprintf("updates may not add a condition of type %q", t)))
		}
		if len(is) == len(was) {
			for i := range is {
				n.Status.Conditions[is[i]] = o.Status.Conditions[was[i]]
			}
		}
	}
	stampConditions(n, o)
	if len(o.Status.Certificate) > 0 && !bytes.Equal(n.Status.Certificate, o.Status.Certificate) {
		errs = append(errs, field.Forbidden(at.Child("certificate"), "updates may not modify existing certificate content"))
	}
	return append(csrChange(n, o), errs...)
}

// csrApproval lets an approver set conditions, and nothing else.
func csrApproval(_ context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
	stampConditions(n, o)
	conditions := n.Status.Conditions
	n.Spec, n.Status = *o.Spec.DeepCopy(), *o.Status.DeepCopy()
	n.Status.Conditions = conditions
	return csrChange(n, o)
}

func stampConditions(now, old *certificatesv1.CertificateSigningRequest) {
	t := metav1.Now()
	for i := range now.Status.Conditions {
		c := &now.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = t
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = t
		for _, was := range old.Status.Conditions {
			if was.Type == c.Type && was.Status == c.Status && !was.LastTransitionTime.IsZero() {
				c.LastTransitionTime = was.LastTransitionTime
				break
			}
		}
	}
}

// csrChange is what is wrong with now that was not wrong before, and what was taken away.
func csrChange(now, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := newErrors(csrErrors(now), csrErrors(old))
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		if len(csrConditions(now, t)) < len(csrConditions(old, t)) {
			errs = append(errs, field.Forbidden(field.NewPath("status", "conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t)))
		}
	}
	return errs
}

func csrErrors(r *certificatesv1.CertificateSigningRequest) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if err := checkRequest(r.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(spec.Child("request"), r.Spec.Request, err.Error()))
	}
	if len(r.Spec.Usages) == 0 {
		errs = append(errs, field.Required(spec.Child("usages"), ""))
	}
	for i, u := range r.Spec.Usages {
		if !slices.Contains(keyUsages(), u) {
			errs = append(errs, field.NotSupported(spec.Child("usages").Index(i), u, keyUsages()))
		}
	}
	for i, u := range r.Spec.Usages {
		if slices.Contains(r.Spec.Usages[:i], u) {
			errs = append(errs, field.Duplicate(spec.Child("usages").Index(i), u))
		}
	}
	if r.Spec.SignerName == legacySigner {
		errs = append(errs, field.Invalid(spec.Child("signerName"), r.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, podspec.SignerName(r.Spec.SignerName, spec.Child("signerName"))...)
	}
	if n := r.Spec.ExpirationSeconds; n != nil && *n < minExpiration {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *n, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	errs = append(errs, csrConditionErrors(r.Status.Conditions, field.NewPath("status", "conditions"))...)
	if err := checkCertificate(r.Status.Certificate); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("status", "certificate"), "<certificate data>", err.Error()))
	}
	return errs
}

func csrConditionErrors(conditions []certificatesv1.CertificateSigningRequestCondition, at *field.Path) (errs field.ErrorList) {
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i, c := range conditions {
		at := at.Index(i)
		if c.Type == "" {
			errs = append(errs, field.Required(at.Child("type"), ""))
		}
		allowed := []corev1.ConditionStatus{corev1.ConditionTrue}
		switch c.Type {
		case certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
		default:
			allowed = append(allowed, corev1.ConditionFalse, corev1.ConditionUnknown)
		}
		errs = append(errs, oneOf(at.Child("status"), c.Status, allowed...)...)
		if seen[c.Type] {
			errs = append(errs, field.Duplicate(at.Child("type"), c.Type))
		}
		seen[c.Type] = true
	}
	if seen[certificatesv1.CertificateApproved] && seen[certificatesv1.CertificateDenied] {
		approved, denied := `conditions[{"type": "Approved"}]`, `conditions[{"type": "Denied"}]`
		errs = append(errs, field.Invalid(at, "{"+approved+", "+denied+"}", "must specify at most one of: `"+approved+"`, `"+denied+"`"))
	}
	return errs
}

func checkRequest(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	return r.CheckSignature()
}

func checkCertificate(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	for n := 0; ; n++ {
		var block *pem.Block
		block, data = pem.Decode(data)
		switch {
		case block == nil && n == 0:
			return errors.New("must contain at least one CERTIFICATE PEM block")
		case block == nil:
			return nil
		case block.Type != certificate:
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		case len(block.Headers) != 0:
			return errors.New("no PEM block headers are permitted")
		}
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		if len(certs) == 0 {
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
	}
}

func keyUsages() []certificatesv1.KeyUsage {
	us := []certificatesv1.KeyUsage{
		certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment,
		certificatesv1.UsageKeyEncipherment, certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment,
		certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign, certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly,
		certificatesv1.UsageAny, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning,
		certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem,
		certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping,
		certificatesv1.UsageOCSPSigning, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
	}
	slices.Sort(us)
	return us
}
