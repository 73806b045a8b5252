package admission_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

func TestDefaultClasses(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	meta := func(name, mark string, age int) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Name: name, CreationTimestamp: created(age)}
		if mark != "" {
			m.Annotations = map[string]string{mark: "true"}
		}
		return m
	}
	asked := func() *corev1.PersistentVolumeClaim {
		pvc := pvc("1Gi", "")
		pvc.Spec.StorageClassName = nil
		refused(t, "claim", c.ask(&rest.Admitting{Operation: rest.OpCreate, Kind: api.PersistentVolumeClaimKind, Object: pvc}), "")
		return pvc
	}
	if pvc := asked(); pvc.Spec.StorageClassName != nil {
		t.Errorf("class %q from nowhere", *pvc.Spec.StorageClassName)
	}
	servertest.PutAs(t, c.store, api.StorageClassKind,
		&storagev1.StorageClass{ObjectMeta: meta("a", "", 9)},
		&storagev1.StorageClass{ObjectMeta: meta("b", "storageclass.beta.kubernetes.io/is-default-class", 1)},
		&storagev1.StorageClass{ObjectMeta: meta("c", "storageclass.kubernetes.io/is-default-class", 2)},
		&storagev1.StorageClass{ObjectMeta: meta("d", "storageclass.kubernetes.io/is-default-class", 2)})
	if pvc := asked(); *pvc.Spec.StorageClassName != "c" || pvc.Finalizers[0] != "kubernetes.io/pvc-protection" {
		t.Errorf("class %q, finalizers %v", *pvc.Spec.StorageClassName, pvc.Finalizers)
	}
	none := pvc("1Gi", "")
	refused(t, "none", c.ask(&rest.Admitting{Operation: rest.OpCreate, Kind: api.PersistentVolumeClaimKind, Object: none}), "")
	if *none.Spec.StorageClassName != "" {
		t.Errorf("none became %q", *none.Spec.StorageClassName)
	}
	servertest.PutAs(t, c.store, api.IngressClassKind, &networkingv1.IngressClass{ObjectMeta: meta("web", networkingv1.AnnotationIsDefaultIngressClass, 1)})
	for annotation, want := range map[string]string{"": "web", "kubernetes.io/ingress.class": ""} {
		i := &networkingv1.Ingress{ObjectMeta: meta("i", annotation, 1)}
		i.Namespace = "default"
		refused(t, "ingress", c.ask(&rest.Admitting{Operation: rest.OpCreate, Kind: api.IngressKind, Object: i}), "")
		if got := i.Spec.IngressClassName; (got == nil) != (want == "") || got != nil && *got != want {
			t.Errorf("%q: ingress class %v", annotation, got)
		}
	}
}

func TestClaimResize(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	yes := true
	servertest.PutAs(t, c.store, api.StorageClassKind,
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "grows"}, AllowVolumeExpansion: &yes}, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fixed"}})
	for what, tc := range map[string]struct {
		from, to, class string
		phase           corev1.PersistentVolumeClaimPhase
		want            string
	}{
		"grows":    {"1Gi", "2Gi", "grows", corev1.ClaimBound, ""},
		"smaller":  {"2Gi", "1Gi", "fixed", corev1.ClaimBound, ""},
		"unbound":  {"1Gi", "2Gi", "grows", corev1.ClaimPending, "Only bound persistent volume claims can be expanded"},
		"fixed":    {"1Gi", "2Gi", "fixed", corev1.ClaimBound, "only dynamically provisioned pvc can be resized"},
		"no class": {"1Gi", "2Gi", "", corev1.ClaimBound, "only dynamically provisioned pvc can be resized"},
	} {
		old, now := pvc(tc.from, tc.class), pvc(tc.to, tc.class)
		old.Status.Phase = tc.phase
		refused(t, what, c.ask(&rest.Admitting{Operation: rest.OpUpdate, Kind: api.PersistentVolumeClaimKind, Object: now, Old: old}), tc.want)
	}
}

// csr is a request of signer for a certificate of that subject.
func csr(t *testing.T, signer string, subject pkix.Name) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
}

func TestCertificateRequests(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	servertest.Put(t, c.store,
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Rules: []rbacv1.PolicyRule{
			{Verbs: []string{"approve"}, APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: []string{"example.org/*"}},
			{Verbs: []string{"sign", "attest"}, APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: []string{"example.org/a"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "r"},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "signer"}}})
	signer, kubelet := &authn.User{Name: "signer"}, &authn.User{Name: "system:node:n1", Groups: []string{authn.Nodes}}
	write := func(u *authn.User, sub, name string) error {
		old, now := csr(t, name, pkix.Name{CommonName: "x"}), csr(t, name, pkix.Name{CommonName: "x"})
		now.Status.Certificate = []byte("x")
		return c.ask(&rest.Admitting{User: u, Operation: rest.OpUpdate, Sub: sub, Kind: api.CertificateSigningRequestKind, Object: now, Old: old})
	}
	refused(t, "approve", write(signer, "approval", "example.org/b"), "")
	refused(t, "approve another's", write(signer, "approval", "example.com/b"), `user not permitted to approve requests with signerName "example.com/b"`)
	refused(t, "sign", write(signer, "status", "example.org/a"), "")
	refused(t, "sign another's", write(signer, "status", "example.org/b"), `user not permitted to sign requests with signerName "example.org/b"`)
	create := func(u *authn.User, signer string, subject pkix.Name) error {
		return c.ask(&rest.Admitting{User: u, Operation: rest.OpCreate, Kind: api.CertificateSigningRequestKind, Object: csr(t, signer, subject)})
	}
	refused(t, "masters", create(nil, certificatesv1.KubeAPIServerClientSignerName, pkix.Name{Organization: []string{"system:masters"}}),
		"use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
	refused(t, "kubelet", create(kubelet, certificatesv1.KubeletServingSignerName, pkix.Name{CommonName: "system:node:n1"}), "")
	refused(t, "another kubelet", create(kubelet, certificatesv1.KubeletServingSignerName, pkix.Name{CommonName: "system:node:n2"}), "can only create a node CSR with CN=system:node:n1")
	bundle := func(signer, text string) *certificatesv1.ClusterTrustBundle {
		return &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "t"}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
	}
	attest := func(old, now *certificatesv1.ClusterTrustBundle) error {
		a := &rest.Admitting{User: signer, Operation: rest.OpCreate, Kind: api.ClusterTrustBundleKind, Object: now}
		if old != nil {
			a.Operation, a.Old = rest.OpUpdate, old
		}
		return c.ask(a)
	}
	refused(t, "attest", attest(nil, bundle("example.org/a", "x")), "")
	refused(t, "attest nothing", attest(nil, bundle("", "x")), "")
	refused(t, "attest another's", attest(nil, bundle("example.org/b", "x")), `user not permitted to attest for signerName "example.org/b"`)
	refused(t, "attest again", attest(bundle("example.org/b", "x"), bundle("example.org/b", "x")), "")
	refused(t, "attest a change", attest(bundle("example.org/b", "x"), bundle("example.org/b", "y")), "user not permitted to attest")
}
