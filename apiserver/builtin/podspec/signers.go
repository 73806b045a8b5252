package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of how long a pod's certificate may last, in seconds.
const (
	MinCertificateSeconds    int32 = 3600
	maxCertificateSeconds    int32 = 91 * 24 * 3600
	MaxOwnCertificateSeconds int32 = 24 * 3600 // of Kubernetes' own signers
)

// MaxCertificateSeconds is how long a certificate of the signer may last at most.
func MaxCertificateSeconds(signer string) int32 {
	if host, _, _ := strings.Cut(signer, "/"); host == "kubernetes.io" || strings.HasSuffix(host, ".kubernetes.io") {
		return MaxOwnCertificateSeconds
	}
	return maxCertificateSeconds
}

// SignerName checks a name like "example.com/signer".
func SignerName(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		return field.ErrorList{field.Invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	if len(domain) > validation.DNS1123SubdomainMaxLength {
		errs = append(errs, field.TooLong(at, "", validation.DNS1123SubdomainMaxLength))
	}
	// Of several bad labels the first is told.
	labels := func(value string, check func(string) []string) {
		for label := range strings.SplitSeq(value, ".") {
			if msgs := check(label); len(msgs) > 0 {
				for _, m := range msgs {
					errs = append(errs, field.Invalid(at, value, fmt.Sprintf("validating label %q: %s", label, m)))
				}
				return
			}
		}
	}
	labels(domain, validation.IsDNS1123Label)
	if !strings.Contains(domain, ".") {
		errs = append(errs, field.Invalid(at, domain, "should be a domain with at least two segments separated by dots"))
	}
	labels(path, validation.IsDNS1123Subdomain)
	if most := 2*validation.DNS1123SubdomainMaxLength + validation.DNS1123LabelMaxLength + 2; len(name) > most {
		errs = append(errs, field.TooLong(at, "", most))
	}
	return errs
}

// TrustBundleName says what is wrong with the name of a ClusterTrustBundle of the signer, or of none where that is empty.
func TrustBundleName(name, signer string, prefix bool) []string {
	if signer == "" {
		if strings.Contains(name, ":") {
			return []string{"ClusterTrustBundle without signer name must not have \":\" in its name"}
		}
		return apivalidation.NameIsDNSSubdomain(name, prefix)
	}
	start := strings.ReplaceAll(signer, "/", ":") + ":"
	rest, ok := strings.CutPrefix(name, start)
	if !ok {
		return []string{fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, start)}
	}
	return apivalidation.NameIsDNSSubdomain(rest, prefix)
}

// SignerAnnotations checks what a pod tells its signer.
func SignerAnnotations(annotations map[string]string, at *field.Path) (errs field.ErrorList) {
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		errs = append(errs, validation.IsDomainPrefixedKey(at, strings.ToLower(k))...)
	}
	if apivalidation.ValidateAnnotationsSize(annotations) != nil {
		errs = append(errs, field.TooLong(at, "", apivalidation.TotalAnnotationSizeLimitB))
	}
	return errs
}

func trustBundle(s *corev1.ClusterTrustBundleProjection, p *field.Path) (errs field.ErrorList) {
	switch {
	case s.Name != nil && s.SignerName != nil:
		errs = append(errs, field.Invalid(p, s, "only one of name and signerName may be used"))
	case s.Name != nil:
		at := p.Child("name")
		if *s.Name == "" {
			errs = append(errs, field.Required(at, "must be a valid object name"))
		}
		signer := "" // is in the name
		if i := strings.LastIndex(*s.Name, ":"); i >= 0 {
			signer = strings.ReplaceAll((*s.Name)[:i], ":", "/")
		}
		for _, m := range TrustBundleName(*s.Name, signer, false) {
			errs = append(errs, field.Invalid(at, *s.Name, "not a valid clustertrustbundlename: "+m))
		}
		if s.LabelSelector != nil {
			errs = append(errs, field.Invalid(p.Child("labelSelector"), s.LabelSelector, "labelSelector must be unset if name is specified"))
		}
	case s.SignerName != nil:
		at := p.Child("signerName")
		if *s.SignerName == "" {
			errs = append(errs, field.Required(at, "must be a valid signer name"))
		}
		errs = append(errs, SignerName(*s.SignerName, at)...)
		errs = append(errs, metavalidation.ValidateLabelSelector(s.LabelSelector, metavalidation.LabelSelectorValidationOptions{}, p.Child("labelSelector"))...)
	default:
		errs = append(errs, field.Required(p, "either name or signerName must be specified"))
	}
	errs = append(errs, required(p.Child("path"), s.Path)...)
	return append(errs, filePath(s.Path, p.Child("path"))...)
}

// keyTypes are the keys that a kubelet can make.
var keyTypes = []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"}

// podCertificate checks a source of up to three files, whose paths it gives to once.
func podCertificate(s *corev1.PodCertificateProjection, p *field.Path, once func(string)) (errs field.ErrorList) {
	errs = append(errs, SignerName(s.SignerName, p.Child("signerName"))...)
	errs = append(errs, SignerAnnotations(s.UserAnnotations, p.Child("userAnnotations"))...)
	if !slices.Contains(keyTypes, s.KeyType) {
		errs = append(errs, field.NotSupported(p.Child("keyType"), s.KeyType, keyTypes))
	}
	if n := s.MaxExpirationSeconds; n != nil {
		at := p.Child("maxExpirationSeconds")
		if *n < MinCertificateSeconds {
			errs = append(errs, field.Invalid(at, *n, fmt.Sprintf("if provided, maxExpirationSeconds must be >= %d", MinCertificateSeconds)))
		}
		if most := MaxCertificateSeconds(s.SignerName); *n > most {
			errs = append(errs, field.Invalid(at, *n, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", most)))
		}
	}
	files := 0
	for _, f := range []struct{ name, path string }{
		{"credentialBundlePath", s.CredentialBundlePath}, {"keyPath", s.KeyPath}, {"certificateChainPath", s.CertificateChainPath},
	} {
		if f.path != "" {
			files++
			errs = append(errs, filePath(f.path, p.Child(f.name))...)
			once(f.path)
		}
	}
	if files == 0 {
		errs = append(errs, field.Required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"))
	}
	return errs
}
