package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

const (
	// maxLife is how long a certificate is good, where less is not asked for; minLife is the least that can be.
	maxLife = 365 * 24 * time.Hour
	minLife = 10 * time.Minute
	// skew is how far clocks may be behind ours.
	skew = 5 * time.Minute
	// A life below short is not shortened by it.
	short = 8 * time.Hour
	// How long requests are kept that were answered, and that were not.
	keepAnswered = time.Hour
	keepPending  = 24 * time.Hour

	nodes = "system:nodes"
	node  = "system:node:"
)

// rules say, by signer, what is wrong with a request.
var rules = map[string]func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error{
	certificatesv1.KubeAPIServerClientSignerName:        apiClient,
	certificatesv1.KubeAPIServerClientKubeletSignerName: kubeletClient,
	certificatesv1.KubeletServingSignerName:             kubeletServing,
}

func apiClient(_ *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	return checkUsages(usages, certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment)
}

func kubeletClient(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	var names error
	switch {
	case len(r.DNSNames) > 0:
		names = errors.New("DNS subjectAltNames are not allowed")
	case len(r.IPAddresses) > 0:
		names = errors.New("IP subjectAltNames are not allowed")
	}
	return ofNode(r, names, usages, certificatesv1.UsageClientAuth)
}

func kubeletServing(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	var names error
	if len(r.DNSNames)+len(r.IPAddresses) == 0 {
		names = errors.New("DNS or IP subjectAltName is required")
	}
	return ofNode(r, names, usages, certificatesv1.UsageServerAuth)
}

// ofNode wants the subject of a kubelet; names is what is wrong with the names and addresses.
func ofNode(r *x509.CertificateRequest, names error, usages []certificatesv1.KeyUsage, purpose certificatesv1.KeyUsage) error {
	switch {
	case !slices.Equal(r.Subject.Organization, []string{nodes}):
		return errors.New("subject organization is not " + nodes)
	case names != nil:
		return names
	case len(r.EmailAddresses) > 0:
		return errors.New("email subjectAltNames are not allowed")
	case len(r.URIs) > 0:
		return errors.New("URI subjectAltNames are not allowed")
	case !strings.HasPrefix(r.Subject.CommonName, node):
		return fmt.Errorf("subject common name does not begin with %q", node)
	}
	return nodeUsages(usages, purpose)
}

// nodeUsages wants a digital signature beside the purpose.
func nodeUsages(usages []certificatesv1.KeyUsage, purpose certificatesv1.KeyUsage) error {
	if !slices.Contains(usages, certificatesv1.UsageDigitalSignature) {
		return fmt.Errorf("usages do not have %q", certificatesv1.UsageDigitalSignature)
	}
	return checkUsages(usages, purpose, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment)
}

// checkUsages wants the purpose among usages, and nothing else but what is allowed.
func checkUsages(usages []certificatesv1.KeyUsage, purpose certificatesv1.KeyUsage, allowed ...certificatesv1.KeyUsage) error {
	if !slices.Contains(usages, purpose) {
		return fmt.Errorf("usages do not have %q", purpose)
	}
	for _, u := range usages {
		if u != purpose && !slices.Contains(allowed, u) {
			return fmt.Errorf("usage %q is not allowed", u)
		}
	}
	return nil
}

// template is the certificate for a request, at a time. Its end is asked for, or the longest that there is.
func template(asked *x509.CertificateRequest, r request, now time.Time) *x509.Certificate {
	life := maxLife
	if s := r.Spec.ExpirationSeconds; s != nil {
		life = min(maxLife, max(minLife, time.Duration(*s)*time.Second))
	}
	t := &x509.Certificate{
		Subject: asked.Subject, PublicKey: asked.PublicKey,
		DNSNames: asked.DNSNames, IPAddresses: asked.IPAddresses, EmailAddresses: asked.EmailAddresses, URIs: asked.URIs,
		NotBefore: now.Add(-skew), NotAfter: now.Add(life - skew), BasicConstraintsValid: true,
	}
	if life < short {
		t.NotAfter = now.Add(life)
	}
	for _, u := range r.Spec.Usages {
		switch u {
		case certificatesv1.UsageDigitalSignature:
			t.KeyUsage |= x509.KeyUsageDigitalSignature
		case certificatesv1.UsageKeyEncipherment:
			t.KeyUsage |= x509.KeyUsageKeyEncipherment
		case certificatesv1.UsageClientAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		case certificatesv1.UsageServerAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}
	}
	return t
}

// deadline returns when r has been kept long enough, if it is not for ever.
func deadline(r request) (time.Time, bool) {
	if len(r.Status.Conditions) == 0 {
		return r.CreationTimestamp.Add(keepPending), true
	}
	var end time.Time
	sooner := func(t time.Time) {
		if end.IsZero() || t.Before(end) {
			end = t
		}
	}
	for _, c := range r.Status.Conditions {
		issued := c.Type == certificatesv1.CertificateApproved && len(r.Status.Certificate) > 0
		if issued || c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
			sooner(c.LastUpdateTime.Add(keepAnswered))
		}
	}
	if block, _ := pem.Decode(r.Status.Certificate); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			sooner(cert.NotAfter)
		}
	}
	return end, !end.IsZero()
}
