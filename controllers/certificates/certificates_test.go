package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

const (
	apiSigner     = certificatesv1.KubeAPIServerClientSignerName
	kubeletSigner = certificatesv1.KubeAPIServerClientKubeletSignerName
	servingSigner = certificatesv1.KubeletServingSignerName
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// csr is a request of kubelet n1, with the purpose and a digital signature among its usages.
func csr(t testing.TB, name, signer string, purpose certificatesv1.KeyUsage, change ...func(*x509.CertificateRequest, request)) request {
	t.Helper()
	asked := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}}
	if signer == servingSigner {
		asked.DNSNames = []string{"n1"}
	}
	r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: signer, Username: "somebody", Groups: []string{"people"}, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, purpose}}}
	for _, f := range change {
		f(asked, r)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, asked, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	r.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return r
}

func TestRules(t *testing.T) {
	t.Parallel()
	client, server := certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth
	use := func(us ...certificatesv1.KeyUsage) func(*x509.CertificateRequest, request) {
		return func(_ *x509.CertificateRequest, r request) { r.Spec.Usages = us }
	}
	change := func(f func(*x509.CertificateRequest)) func(*x509.CertificateRequest, request) {
		return func(c *x509.CertificateRequest, _ request) { f(c) }
	}
	nobody := change(func(c *x509.CertificateRequest) { c.Subject = pkix.Name{CommonName: "jane"} })
	uri := change(func(c *x509.CertificateRequest) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} })
	mail := change(func(c *x509.CertificateRequest) { c.EmailAddresses = []string{"a@b"} })
	address := change(func(c *x509.CertificateRequest) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(10, 0, 0, 1)} })
	for _, tt := range []struct {
		name   string
		r      request
		wanted string // of the error; empty: it is good
	}{
		{"anybody", csr(t, "r", apiSigner, client, nobody), ""},
		{"to serve", csr(t, "r", apiSigner, server), `usages do not have "client auth"`},
		{"for more", csr(t, "r", apiSigner, client, use(client, certificatesv1.UsageCertSign)), `usage "cert sign" is not allowed`},
		{"kubelet", csr(t, "r", kubeletSigner, client), ""},
		{"kubelet, with RSA", csr(t, "r", kubeletSigner, client, use(client, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment)), ""},
		{"kubelet without signature", csr(t, "r", kubeletSigner, client, use(client)), `usages do not have "digital signature"`},
		{"not a kubelet", csr(t, "r", kubeletSigner, client, nobody), "subject organization"},
		{"kubelet in another group", csr(t, "r", kubeletSigner, client, change(func(c *x509.CertificateRequest) { c.Subject.Organization = []string{"system:nodes", "system:masters"} })), "subject organization"},
		{"kubelet of no node", csr(t, "r", kubeletSigner, client, change(func(c *x509.CertificateRequest) { c.Subject.CommonName = "n1" })), "common name"},
		{"kubelet with an address", csr(t, "r", kubeletSigner, client, address), "IP subjectAltNames"},
		{"kubelet with a name", csr(t, "r", kubeletSigner, client, change(func(c *x509.CertificateRequest) { c.DNSNames = []string{"x"} })), "DNS subjectAltNames"},
		{"kubelet with mail", csr(t, "r", kubeletSigner, client, mail), "email subjectAltNames"},
		{"kubelet with a URI", csr(t, "r", kubeletSigner, client, uri), "URI subjectAltNames"},
		{"serving", csr(t, "r", servingSigner, server), ""},
		{"serving on an address", csr(t, "r", servingSigner, server, address), ""},
		{"serving nowhere", csr(t, "r", servingSigner, server, change(func(c *x509.CertificateRequest) { c.DNSNames = nil })), "is required"},
		{"serving as client", csr(t, "r", servingSigner, client), `usages do not have "server auth"`},
		{"serving with mail", csr(t, "r", servingSigner, server, mail), "email subjectAltNames"},
		{"serving with a URI", csr(t, "r", servingSigner, server, uri), "URI subjectAltNames"},
		{"serving of no node", csr(t, "r", servingSigner, server, change(func(c *x509.CertificateRequest) { c.Subject.CommonName = "x" })), "common name"},
		{"serving of nobody", csr(t, "r", servingSigner, server, change(func(c *x509.CertificateRequest) { c.Subject.Organization = nil })), "subject organization"},
	} {
		asked, err := parse(tt.r)
		if err != nil {
			t.Fatal(err)
		}
		if err := rules[tt.r.Spec.SignerName](asked, tt.r.Spec.Usages); (err == nil) != (tt.wanted == "") || err != nil && !strings.Contains(err.Error(), tt.wanted) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.wanted)
		}
	}
}

// authority signs for tests.
func authority(t testing.TB) Sign {
	key := newKey(t)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true}
	return func(c *x509.Certificate) ([]byte, error) {
		c.SerialNumber = big.NewInt(2)
		der, err := x509.CreateCertificate(rand.Reader, c, ca, c.PublicKey, key)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
	}
}

// reviewed answers access reviews of "somebody" for what may be created.
type reviewed struct {
	*rt.Cluster
	may string
}

func (c *reviewed) Create(ctx context.Context, o api.Object) (api.Object, error) {
	r, ok := o.(*authorizationv1.SubjectAccessReview)
	if !ok {
		return c.Cluster.Create(ctx, o)
	}
	a := r.Spec.ResourceAttributes
	r.Status.Allowed = a.Verb+" "+a.Group+" "+a.Resource+"/"+a.Subresource == c.may && len(r.Spec.Groups) == 1
	return r, nil
}

// What happens to requests: approved by a person, by us, denied, of a signer that is not ours.
func TestLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		access := &reviewed{c, "create certificates.k8s.io certificatesigningrequests/nodeclient"}
		d.Client = access
		rt.Start(t, d, NewSigning(d, authority(t)), NewApproving(d), NewCleaner(d))
		client, server := certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth
		own := func(_ *x509.CertificateRequest, r request) { r.Spec.Username = "system:node:n1" }
		hour := func(_ *x509.CertificateRequest, r request) { r.Spec.ExpirationSeconds = new(int32(3600)) }
		bad := func(c *x509.CertificateRequest, _ request) { c.Subject.CommonName = "x" }
		say := func(name string, is certificatesv1.RequestConditionType) {
			t.Helper()
			r := rt.Get[request](t, c, "", name)
			rt.Mutate(t, c, r, "approval", func(r request) {
				r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: is, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now()})
			})
		}
		expect := func(name, want string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, r := range rt.List[request](t, c) {
				if r.Name != name {
					continue
				}
				got = "waits"
				for i, k := range r.Status.Conditions {
					got = strings.TrimPrefix(got, "waits")
					if i > 0 {
						got += ", "
					}
					got += string(k.Type) + " " + k.Reason
				}
				if len(r.Status.Certificate) > 0 {
					got += ", issued"
				}
			}
			if got != want {
				t.Errorf("request %s: %q, want %q", name, got, want)
			}
		}
		rt.Create(t, c, csr(t, "new", kubeletSigner, client))
		expect("new", "Approved AutoApproved, issued")
		rt.Create(t, c, csr(t, "bad", kubeletSigner, client, bad))
		expect("bad", "waits")
		access.may = "create certificates.k8s.io certificatesigningrequests/selfnodeclient"
		rt.Create(t, c, csr(t, "other", kubeletSigner, client))
		expect("other", "waits")
		rt.Create(t, c, csr(t, "own", kubeletSigner, client, own))
		expect("own", "Approved AutoApproved, issued")
		rt.Create(t, c, csr(t, "serving", servingSigner, server))
		expect("serving", "waits")
		say("serving", certificatesv1.CertificateApproved)
		expect("serving", "Approved , issued")
		say("bad", certificatesv1.CertificateApproved)
		expect("bad", "Approved , Failed SignerValidationFailure")
		rt.Create(t, c, csr(t, "denied", apiSigner, client))
		say("denied", certificatesv1.CertificateDenied)
		expect("denied", "Denied ")
		rt.Create(t, c, csr(t, "foreign", "example.com/signer", client))
		say("foreign", certificatesv1.CertificateApproved)
		expect("foreign", "Approved ")
		rt.Create(t, c, csr(t, "hour", apiSigner, client, hour))
		say("hour", certificatesv1.CertificateApproved)
		expect("hour", "Approved , issued")

		block, _ := pem.Decode(rt.Get[request](t, c, "", "serving").Status.Certificate)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if cert.Subject.CommonName != "system:node:n1" || len(cert.DNSNames) != 1 || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature ||
			len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth ||
			!cert.NotBefore.Equal(now.Add(-5*time.Minute)) || !cert.NotAfter.Equal(now.Add(365*24*time.Hour-5*time.Minute)) {
			t.Errorf("certificate %+v", cert)
		}
		block, _ = pem.Decode(rt.Get[request](t, c, "", "hour").Status.Certificate)
		if cert, err = x509.ParseCertificate(block.Bytes); err != nil || !cert.NotAfter.Equal(now.Add(time.Hour)) {
			t.Errorf("ends %v, error %v", cert.NotAfter, err)
		}

		time.Sleep(time.Hour - time.Second)
		expect("serving", "Approved , issued")
		time.Sleep(time.Second)
		for _, gone := range []string{"new", "own", "serving", "bad", "denied", "hour"} {
			expect(gone, "")
		}
		expect("foreign", "Approved ")
		expect("other", "waits")
		time.Sleep(23 * time.Hour)
		expect("other", "")
		expect("foreign", "Approved ")
	})
}
