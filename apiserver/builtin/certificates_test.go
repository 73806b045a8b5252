package builtin_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

// TestPodCertificate asks for a certificate, and answers it as signers do and should not: the times must be those of the
// certificate and the key that of the request.
func TestPodCertificate(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now().Truncate(time.Second)
	issue := func(k *ecdsa.PrivateKey, life time.Duration, names ...string) string {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "p"}, NotBefore: from, NotAfter: from.Add(life), DNSNames: names}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	const day = 24 * time.Hour
	stamp := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: from.Add(d)} }
	good := certificatesv1.PodCertificateRequestStatus{CertificateChain: issue(key, day), NotBefore: stamp(0), NotAfter: stamp(day), BeginRefreshAt: stamp(day / 2)}
	for _, test := range []struct {
		name   string
		change func(s *certificatesv1.PodCertificateRequestStatus)
		want   string
	}{
		{"good", func(*certificatesv1.PodCertificateRequestStatus) {}, "ok\n"},
		{"two of a chain", func(s *certificatesv1.PodCertificateRequestStatus) { s.CertificateChain += issue(other, day) }, "ok\n"},
		{"key", func(s *certificatesv1.PodCertificateRequestStatus) { s.CertificateChain = issue(other, day) },
			"leaf certificate was not issued to the requested public key"},
		{"life", func(s *certificatesv1.PodCertificateRequestStatus) {
			s.CertificateChain, s.NotAfter = issue(key, 2*day), stamp(2*day)
		}, "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)"},
		{"short", func(s *certificatesv1.PodCertificateRequestStatus) {
			s.CertificateChain, s.NotAfter = issue(key, time.Minute), stamp(time.Minute)
		}, "leaf certificate lifetime must be >= 1 hour"},
		{"begin", func(s *certificatesv1.PodCertificateRequestStatus) { s.NotBefore = stamp(1) },
			"must be set to the NotBefore time encoded in the leaf certificate"},
		{"end", func(s *certificatesv1.PodCertificateRequestStatus) { s.NotAfter = stamp(day + time.Second) },
			"must be set to the NotAfter time encoded in the leaf certificate"},
		{"early", func(s *certificatesv1.PodCertificateRequestStatus) { s.BeginRefreshAt = stamp(time.Minute) }, "must be at least 10 minutes after status.notBefore"},
		{"late", func(s *certificatesv1.PodCertificateRequestStatus) { s.BeginRefreshAt = stamp(day) }, "must be at least 10 minutes before status.notAfter"},
		{"no times", func(s *certificatesv1.PodCertificateRequestStatus) { s.NotBefore, s.NotAfter = nil, nil }, "must be present and consistent with the issued certificate"},
		{"names", func(s *certificatesv1.PodCertificateRequestStatus) { s.CertificateChain = issue(key, day, ".a") },
			"leaf certificate's DNSName should not start or end with '.'"},
		{"rest", func(s *certificatesv1.PodCertificateRequestStatus) {
			s.CertificateChain += "-----BEGIN THING-----\n-----END THING-----\n"
		}, "issued certificate chain must consist entirely of CERTFICATE PEM blocks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			o, err := c.create(&certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "r"},
				Spec: certificatesv1.PodCertificateRequestSpec{SignerName: "example.com/s", PodName: "p", PodUID: "1", ServiceAccountName: "s", ServiceAccountUID: "2", NodeName: "n", NodeUID: "3", StubPKCS10Request: stub}})
			if err != nil {
				t.Fatal(err)
			}
			r := o.DeepCopyObject().(*certificatesv1.PodCertificateRequest)
			r.Status = *good.DeepCopy()
			r.Status.Conditions = []metav1.Condition{{Type: "Issued", Status: metav1.ConditionTrue, Reason: "A", LastTransitionTime: *stamp(0)}}
			test.change(&r.Status)
			// Who may not sign is refused, whatever is asked.
			stranger := *c
			stranger.ctx = authn.WithUser(t.Context(), &authn.User{Name: "mallory"})
			if test.want == "ok\n" {
				const want = "spec.signerName: Forbidden: User \"mallory\" is not permitted to \"sign\" for signer \"example.com/s\"\n"
				if _, err := stranger.update(r.DeepCopy(), "status"); err == nil || problems(err) != want {
					t.Errorf("a stranger signed: %v", err)
				}
			}
			got := "ok\n"
			if _, err := c.update(r, "status"); err != nil {
				got = problems(err)
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got %s want %s", got, test.want)
			}
		})
	}
}
