package builtin

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	maxTrustBundle = 1 << 20
	omitted        = "<value omitted>"
)

func clusterTrustBundles() *rest.Resource[*certificatesv1.ClusterTrustBundle] {
	type bundle = *certificatesv1.ClusterTrustBundle
	spec := field.NewPath("spec")
	doc := certificatesv1.ClusterTrustBundleSpec{}.SwaggerDoc()
	anchors := func(b bundle) field.ErrorList { return trustAnchors(b.Spec.TrustBundle, spec.Child("trustBundle")) }
	return &rest.Resource[bundle]{
		NameOf: func(b bundle, name string, prefix bool) []string {
			return podspec.TrustBundleName(name, b.Spec.SignerName, prefix)
		},
		NoGeneration:    true,
		RequireRevision: true,
		Validate: func(b bundle) (errs field.ErrorList) {
			if b.Spec.SignerName == "" {
				return nil
			}
			return podspec.SignerName(b.Spec.SignerName, spec.Child("signerName"))
		},
		ValidateCreate: anchors,
		ValidateUpdate: func(now, old bundle) (errs field.ErrorList) {
			if now.Spec.TrustBundle != old.Spec.TrustBundle {
				errs = anchors(now)
			}
			return append(errs, immutable(now.Spec.SignerName, old.Spec.SignerName, spec.Child("signerName"))...)
		},
		Fields: func(b bundle) fields.Set { return fields.Set{"spec.signerName": b.Spec.SignerName} },
		Columns: []rest.Column[bundle]{
			{Name: "SignerName", Description: doc["signerName"], Cell: func(b bundle) any { return or(b.Spec.SignerName, none) }},
		},
	}
}

// trustAnchors checks that text is certificates of authorities, each once.
func trustAnchors(text string, at *field.Path) (errs field.ErrorList) {
	if len(text) > maxTrustBundle {
		return field.ErrorList{field.TooLong(at, "", maxTrustBundle)}
	}
	places := map[string][]int{}
	var order []string
	rest := []byte(text)
	for i := 0; ; i++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if why := badAnchor(block); why != "" {
			errs = append(errs, field.Invalid(at, omitted, fmt.Sprintf("entry %d %s", i, why)))
			continue
		}
		key := string(block.Bytes)
		if places[key] == nil {
			order = append(order, key)
		}
		places[key] = append(places[key], i)
	}
	if len(errs) > 0 {
		return errs
	}
	if len(places) == 0 {
		errs = append(errs, field.Invalid(at, omitted, "at least one trust anchor must be provided"))
	}
	for _, key := range order {
		if len(places[key]) > 1 {
			errs = append(errs, field.Invalid(at, omitted, fmt.Sprintf("duplicate trust anchor (indices %v)", places[key])))
		}
	}
	return errs
}

func badAnchor(b *pem.Block) string {
	if b.Type != certificate {
		return "has bad block type: " + b.Type
	}
	if len(b.Headers) != 0 {
		return "has PEM block headers"
	}
	cert, err := x509.ParseCertificate(b.Bytes)
	switch {
	case err != nil:
		return "does not parse as X.509"
	case !cert.IsCA:
		return "does not have the CA bit set"
	case !cert.BasicConstraintsValid:
		return "has invalid basic constraints"
	}
	return ""
}
