package volume

import (
	"cmp"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Certificate is a pod's certificate with its key, both PEM.
type Certificate struct {
	Key, Chain []byte
}

// bundle adds the trust anchors of one ClusterTrustBundle or of those that are selected. The file is there, and empty, when
// they are optional and missing.
func (c *contents) bundle(pod *corev1.Pod, p *corev1.ClusterTrustBundleProjection, mode *int32, user *int64, src Source) error {
	bundles, err := bundles(p, src)
	if err != nil && (p.Optional == nil || !*p.Optional || !errors.Is(err, errNoBundles) && !apierrors.IsNotFound(err)) {
		return err
	}
	c.addOwn(pod, p.Path, anchors(bundles), mode, p.User, user)
	return nil
}

var errNoBundles = errors.New("combination of signerName and labelSelector matched zero ClusterTrustBundles")

func bundles(p *corev1.ClusterTrustBundleProjection, src Source) ([]*certificatesv1.ClusterTrustBundle, error) {
	switch {
	case p.Name != nil:
		b, err := src.Bundle(*p.Name)
		if err != nil {
			return nil, fmt.Errorf("get ClusterTrustBundle: %w", err)
		}
		return []*certificatesv1.ClusterTrustBundle{b}, nil
	case p.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(p.LabelSelector) // nil matches nothing
		if err != nil {
			return nil, fmt.Errorf("read label selector: %w", err)
		}
		all, err := src.Bundles(*p.SignerName, selector)
		if err != nil {
			return nil, fmt.Errorf("list ClusterTrustBundles: %w", err)
		}
		if len(all) == 0 {
			return nil, errNoBundles
		}
		return all, nil
	}
	return nil, errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
}

// order makes the order of trust anchors one that nobody can rely on: it is another each time the kubelet starts.
var order = maphash.MakeSeed()

// anchors are the certificates of the bundles, each once, without what else is in the text.
func anchors(bundles []*certificatesv1.ClusterTrustBundle) []byte {
	once := map[string]uint64{}
	for _, b := range bundles {
		eachBlock(b.Spec.TrustBundle, func(der []byte) { once[string(der)] = maphash.Bytes(order, der) })
	}
	var out []byte
	for _, der := range slices.SortedFunc(maps.Keys(once), func(a, b string) int { return cmp.Compare(once[a], once[b]) }) {
		out = append(out, block([]byte(der))...)
	}
	return out
}

// CleanChain returns the certificates of a chain without what else is in the text.
func CleanChain(text string) (out []byte) {
	eachBlock(text, func(der []byte) { out = append(out, block(der)...) })
	return out
}

func eachBlock(text string, visit func(der []byte)) {
	for b, rest := pem.Decode([]byte(text)); b != nil; b, rest = pem.Decode(rest) {
		visit(b.Bytes)
	}
}

func block(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// certificate adds the files that the pod wants of a certificate: both together, the key, the chain.
func (c *contents) certificate(pod *corev1.Pod, p *corev1.PodCertificateProjection, mode *int32, user *int64, got *Certificate) {
	for _, f := range []struct {
		path string
		data []byte
	}{
		{p.CredentialBundlePath, slices.Concat(got.Key, got.Chain)}, {p.KeyPath, got.Key}, {p.CertificateChainPath, got.Chain},
	} {
		if f.path != "" {
			c.addOwn(pod, f.path, f.data, mode, p.User, user)
		}
	}
}
