package pod

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// certified is a pod with a volume for whose certificate it has to wait.
func certified(p *corev1.Pod) {
	hours := int32(24 * 3600)
	p.Spec.ServiceAccountName = "worker"
	p.Spec.Volumes = []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{PodCertificate: &corev1.PodCertificateProjection{SignerName: "example.com/mesh", KeyType: "ED25519", CredentialBundlePath: "bundle",
			MaxExpirationSeconds: &hours, UserAnnotations: map[string]string{"example.com/a": "b"}}}}}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tls", MountPath: "/tls"}}
}

func newCertifiedBed(t *testing.T) *bed {
	b := newBed(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "worker", UID: "sa-uid"}})
	b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}}
	b.node.Status.Allocatable = corev1.ResourceList{}
	b.api.Put(newPod("a", certified))
	b.settle()
	return b
}

func (b *bed) requests() []*certificatesv1.PodCertificateRequest {
	b.t.Helper()
	rs, err := client.List[*certificatesv1.PodCertificateRequest](b.t.Context(), b.api, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	slices.SortFunc(rs, func(x, y *certificatesv1.PodCertificateRequest) int {
		return x.CreationTimestamp.Compare(y.CreationTimestamp.Time)
	})
	return rs
}

// answer ends the newest request.
func (b *bed) answer(kind, chain string) {
	b.t.Helper()
	rs := b.requests()
	r := rs[len(rs)-1].DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: kind, Status: metav1.ConditionTrue, Reason: "Because", Message: "of this"}}
	if kind == certificatesv1.PodCertificateRequestConditionTypeIssued {
		refresh, end := metav1.NewTime(time.Now().Add(18*time.Hour)), metav1.NewTime(time.Now().Add(24*time.Hour))
		r.Status.BeginRefreshAt, r.Status.NotAfter = &refresh, &end
		r.Status.CertificateChain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(chain)}))
	}
	b.api.Put(r)
	b.settle()
}

// bundle returns the file that the pod sees: its key and the contents of its certificate.
func (b *bed) bundle() (key, chain string) {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.pods.Volumes.PodDir(b.pod("a").UID), "volumes", "kubernetes.io~projected", "tls", "bundle"))
	if err != nil {
		b.t.Fatal(err)
	}
	first, rest := pem.Decode(text)
	second, rest := pem.Decode(rest)
	if first == nil || first.Type != "PRIVATE KEY" || second == nil || second.Type != "CERTIFICATE" || len(rest) > 0 {
		b.t.Fatalf("bundle is %s", text)
	}
	return string(first.Bytes), string(second.Bytes)
}

func (b *bed) wantEvents(part string, n int) {
	b.t.Helper()
	found := 0
	events := b.api.Events()
	for _, e := range events {
		if strings.Contains(e, part) {
			found++
		}
	}
	if found != n {
		b.t.Errorf("%d events with %q, want %d: %q", found, part, n, events)
	}
}

func TestCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newCertifiedBed(t)
		b.wantStatus("a", "Pending app=ContainerCreating")
		if said := `Warning a FailedMount: MountVolume.SetUp failed for volume "tls" : credential bundle is not issued yet`; !slices.Contains(b.api.Events(), said) {
			t.Error("nothing says why the pod waits")
		}
		p, rs := b.pod("a"), b.requests()
		if len(rs) != 1 {
			t.Fatal("requests:", rs)
		}
		hours := int32(24 * 3600)
		want := certificatesv1.PodCertificateRequestSpec{
			SignerName: "example.com/mesh", PodName: "a", PodUID: p.UID, ServiceAccountName: "worker", ServiceAccountUID: "sa-uid", NodeName: "n1", NodeUID: "node-uid",
			MaxExpirationSeconds: &hours, UnverifiedUserAnnotations: map[string]string{"example.com/a": "b"}, StubPKCS10Request: rs[0].Spec.StubPKCS10Request}
		if !reflect.DeepEqual(rs[0].Spec, want) || rs[0].OwnerReferences[0].UID != p.UID {
			t.Errorf("asked for %+v, want %+v", rs[0].Spec, want)
		}
		if stub, err := x509.ParseCertificateRequest(rs[0].Spec.StubPKCS10Request); err != nil || stub.CheckSignature() != nil {
			t.Error("the stub is wrong:", err)
		}
		b.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "one")
		b.wantStatus("a", "Running ready app=running")
		key, chain := b.bundle()
		if chain != "one" {
			t.Error("the certificate is", chain)
		}

		time.Sleep(18*time.Hour - time.Second)
		if n := len(b.requests()); n != 1 {
			t.Error("renewed too early:", n)
		}
		b.api.Events()
		time.Sleep(refreshSpread + 2*time.Second)
		if n := len(b.requests()); n != 2 {
			t.Fatal("requests after the time to refresh:", n)
		}
		if k, c := b.bundle(); k != key || c != "one" {
			t.Error("what was issued is not kept until the next")
		}
		time.Sleep(refreshOverdue)
		b.wantEvents("CertificateOverdueForRefresh: PodCertificate refresh overdue", 1)
		time.Sleep(6 * time.Hour)
		b.wantEvents("CertificateExpired: PodCertificate expired", 1)
		time.Sleep(24 * time.Hour)
		b.wantEvents("Certificate", 0)
		b.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "two")
		if k, c := b.bundle(); k == key || c != "two" {
			t.Error("after renewal the certificate is", c, "with the same key:", k == key)
		}
		b.wantRunning("app")
	})
}

// Who deletes a request is answered by another.
func TestCertificateRequestDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newCertifiedBed(t)
		if err := b.api.Delete(t.Context(), b.requests()[0], client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := len(b.requests()); n != 1 {
			t.Fatal("requests:", n)
		}
		b.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "x")
		b.wantRunning("app")
	})
}

func TestCertificateRefused(t *testing.T) {
	for _, kind := range []string{certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed} {
		synctest.Test(t, func(t *testing.T) {
			b := newCertifiedBed(t)
			b.api.Events()
			b.answer(kind, "")
			time.Sleep(time.Hour)
			events := b.api.Events()
			said := map[string]string{
				"Denied": `Warning a Denied: PodCertificateRequest default/%s was denied, reason="Because", message="of this"`,
				"Failed": `Warning a Failed: PodCertificateRequest default/%s failed, reason="Because", message="of this"`,
			}[kind]
			said = strings.Replace(said, "%s", b.requests()[0].Name, 1)
			if n := len(b.requests()); n != 1 || !slices.Contains(events, said) || slices.Index(events, said) != len(events)-1-slices.Index(reversed(events), said) {
				t.Errorf("%d requests, events %q, want once %q", n, events, said)
			}
			b.wantRunning()
		})
	}
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func TestKeyTypes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"} {
		if testing.Short() && kind == "RSA4096" {
			continue // seconds
		}
		if k, err := newKey(kind); err != nil || k == nil {
			t.Error(kind, err)
		}
	}
	if _, err := newKey("RSA2048"); err == nil {
		t.Error("a key of a kind that does not exist")
	}
}

// Pods see bundles of trust change, whether they name them or a signer.
func TestTrustBundleChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		signer := "example.com/mesh"
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: &metav1.LabelSelector{}, Path: "f"}}}}}}}
		}))
		b.wantRunning()
		bundle := func(name, anchor string) *certificatesv1.ClusterTrustBundle {
			return &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer,
				TrustBundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(anchor)}))}}
		}
		b.api.Events()
		stranger := bundle("stranger", "9")
		stranger.Spec.SignerName = "example.com/other"
		b.api.Put(stranger)
		b.settle()
		if said := b.api.Events(); len(said) > 0 {
			t.Errorf("another signer's bundle is tried: %q", said)
		}
		b.api.Put(bundle("other:x", "0"))
		b.wantRunning("app")
		for i, change := range []func(){
			func() { b.api.Put(bundle("mesh:x", "1")) },
			func() { b.api.Put(bundle("mesh:x", "2")) },
			func() {
				if err := b.api.Delete(t.Context(), bundle("other:x", ""), client.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			},
		} {
			change()
			b.settle()
			text, err := os.ReadFile(filepath.Join(b.pods.Volumes.PodDir(b.pod("a").UID), "volumes", "kubernetes.io~projected", "v", "f"))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
				got = append(got, string(block.Bytes))
			}
			slices.Sort(got)
			if want := [][]string{{"0", "1"}, {"0", "2"}, {"2"}}[i]; !slices.Equal(got, want) {
				t.Errorf("after change %d: %v, want %v", i, got, want)
			}
		}
		b.api.DeletePod(api.KeyOf(b.pod("a")), 0)
		b.settle()
		b.wantGone("a")
	})
}
