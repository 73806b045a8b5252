package servingtrust_test

import (
	"testing"
	"testing/synctest"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/servingtrust"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// The bundle comes, comes back, and is the only one of its signer; those of others stay.
func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		bundle := func(name, signer, text string) {
			rt.Create(t, c, &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}})
		}
		old := servingtrust.Name("OLD")
		bundle(old, servingtrust.Signer, "OLD")
		bundle("example.com:a:b", "example.com/a", "A")
		bundle("free", "", "B")
		d := rt.Deps(t, c)
		rt.Start(t, d, servingtrust.New(d, []byte("PEM")))
		const name = "kubernetes.io:kube-apiserver-serving:384fb9a44fabe158be2757b9" // the first 12 bytes of the SHA-256 of "PEM", as upstream names it
		if got := servingtrust.Name("PEM"); got != name {
			t.Errorf("the name is %s", got)
		}
		check := func() {
			t.Helper()
			synctest.Wait()
			if b := rt.Get[*certificatesv1.ClusterTrustBundle](t, c, "", servingtrust.Name("PEM")); b.Spec.TrustBundle != "PEM" || b.Spec.SignerName != servingtrust.Signer {
				t.Errorf("%+v", b.Spec)
			}
			if n := len(rt.List[*certificatesv1.ClusterTrustBundle](t, c)); n != 3 {
				t.Errorf("%d bundles", n)
			}
		}
		check()
		mine := rt.Get[*certificatesv1.ClusterTrustBundle](t, c, "", servingtrust.Name("PEM"))
		rt.Delete(t, c, mine, client.DeleteOptions{})
		check()
		mine = rt.Get[*certificatesv1.ClusterTrustBundle](t, c, "", servingtrust.Name("PEM"))
		rt.Mutate(t, c, mine, "", func(b *certificatesv1.ClusterTrustBundle) { b.Spec.TrustBundle = "FORGED" })
		check()
		bundle(servingtrust.Name("NEW"), servingtrust.Signer, "NEW")
		check()
		before := c.Writes("update clustertrustbundles.certificates.k8s.io")
		synctest.Wait()
		if after := c.Writes("update clustertrustbundles.certificates.k8s.io"); after != before {
			t.Errorf("%d writes of what was right", after-before)
		}
	})
}
