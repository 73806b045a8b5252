package volume

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/kubelet/field"
)

// anchor is a block whose contents are text; what is in it was checked by the API.
func anchor(text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
}

func trustBundle(name, signer, label string, anchors ...string) *certificatesv1.ClusterTrustBundle {
	b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"l": label}}}
	b.Spec.SignerName = signer
	for _, a := range anchors {
		b.Spec.TrustBundle += "# what is between blocks is not for pods\n" + anchor(a)
	}
	return b
}

func bundleVolume(p corev1.ClusterTrustBundleProjection) corev1.VolumeSource {
	p.Path = "f"
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &p}}}}
}

func TestTrustBundles(t *testing.T) {
	v := newVolumes(t)
	yes, signer, none := true, "example.com/mesh", "none"
	everything := &metav1.LabelSelector{}
	o := &objects{bundles: []*certificatesv1.ClusterTrustBundle{
		trustBundle("own", "", "x", "1", "2"),
		trustBundle("m1", signer, "x", "3", "4"),
		trustBundle("m2", signer, "y", "4", "5"),
		trustBundle("other", "example.com/other", "x", "6"),
	}}
	own := "own"
	cases := []struct {
		p    corev1.ClusterTrustBundleProjection
		want string // the anchors, empty: the file is empty
		err  string
	}{
		{corev1.ClusterTrustBundleProjection{Name: &own}, "12", ""},
		{corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: everything}, "345", ""},
		{corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"l": "y"}}}, "45", ""},
		{corev1.ClusterTrustBundleProjection{Name: &none, Optional: &yes}, "", ""},
		{corev1.ClusterTrustBundleProjection{SignerName: &signer, Optional: &yes}, "", ""},
		{corev1.ClusterTrustBundleProjection{SignerName: &none, LabelSelector: everything, Optional: &yes}, "", ""},
		{corev1.ClusterTrustBundleProjection{Name: &none}, "", `get ClusterTrustBundle: clustertrustbundles "none" not found`},
		{corev1.ClusterTrustBundleProjection{SignerName: &signer}, "", errNoBundles.Error()},
		{corev1.ClusterTrustBundleProjection{}, "", "ClusterTrustBundle projection requires either name or signerName to be set"},
	}
	for i, c := range cases {
		p := podWith(bundleVolume(c.p))
		_, err := v.Up(t.Context(), p, o, field.Runtime{NodeName: "n"})
		if c.err != "" {
			var bad *Error
			if !errors.As(err, &bad) || bad.Err.Error() != c.err {
				t.Errorf("case %d: %v, want %s", i, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("case %d: %v", i, err)
			continue
		}
		text := strings.TrimPrefix(tree(t, v, p, 0), "f=")
		rest := text
		for _, a := range strings.Split(c.want, "") {
			if strings.Count(text, anchor(a)) != 1 {
				t.Errorf("case %d: anchor %s is not there once: %s", i, a, text)
			}
			rest = strings.Replace(rest, anchor(a), "", 1)
		}
		if rest != "" {
			t.Errorf("case %d: too much: %s", i, rest)
		}
		if changed, err := v.Up(t.Context(), p, o, field.Runtime{NodeName: "n"}); err != nil || !changed.IsZero() || strings.TrimPrefix(tree(t, v, p, 0), "f=") != text {
			t.Errorf("case %d: the order of anchors is not kept: %v %v", i, changed, err)
		}
		if err := v.Down(t.Context(), p.UID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCleanChain(t *testing.T) {
	t.Parallel()
	text := "noise\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: []byte("leaf")})) + "noise\n" + anchor("above")
	if got, want := string(CleanChain(text)), anchor("leaf")+anchor("above"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The key is for the pod's own user alone, where there is one.
func TestPodCertificate(t *testing.T) {
	v := newVolumes(t)
	o := &objects{renew: time.Unix(5000, 0)}
	p := podWith(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{PodCertificate: &corev1.PodCertificateProjection{CredentialBundlePath: "both"}},
		{PodCertificate: &corev1.PodCertificateProjection{KeyPath: "key", CertificateChainPath: "deep/chain"}},
	}}})
	if again := up(t, v, p, o); !again.Equal(o.renew) {
		t.Error("looked after again at", again)
	}
	if got, want := tree(t, v, p, 0), "both=a key 0 chain deep/chain=1 chain key=a key "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	user := int64(1234)
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	p.UID = "u2"
	up(t, v, p, o)
	dir, err := v.path(p, &p.Spec.Volumes[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"both", "key", "deep/chain"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 1234 || info.Mode() != 0o600 {
			t.Errorf("%s is %v of user %d", name, info.Mode(), owner)
		}
	}
}
