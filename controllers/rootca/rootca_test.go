package rootca_test

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/rootca"
	"github.com/yare-dev/yare/controllers/serviceaccount"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// What every namespace has comes, and comes back.
func TestNamespaceContents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, rootca.New(d, []byte("PEM")), serviceaccount.New(d))
		ns := rt.Create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
		check := func() {
			t.Helper()
			synctest.Wait()
			if cm := rt.Get[*corev1.ConfigMap](t, c, "ns", "kube-root-ca.crt"); cm.Data["ca.crt"] != "PEM" {
				t.Error(cm.Data)
			}
			rt.Get[*corev1.ServiceAccount](t, c, "ns", "default")
		}
		check()
		rt.Delete(t, c, rt.Get[*corev1.ConfigMap](t, c, "ns", "kube-root-ca.crt"), client.DeleteOptions{})
		rt.Delete(t, c, rt.Get[*corev1.ServiceAccount](t, c, "ns", "default"), client.DeleteOptions{})
		check()
		rt.Mutate(t, c, rt.Get[*corev1.ConfigMap](t, c, "ns", "kube-root-ca.crt"), "", func(cm *corev1.ConfigMap) {
			cm.Data = map[string]string{"ca.crt": "forged", "x": "y"}
		})
		check()
		rt.Delete(t, c, ns, client.DeleteOptions{})
		rt.Delete(t, c, rt.Get[*corev1.ConfigMap](t, c, "ns", "kube-root-ca.crt"), client.DeleteOptions{})
		rt.Delete(t, c, rt.Get[*corev1.ServiceAccount](t, c, "ns", "default"), client.DeleteOptions{})
		synctest.Wait()
		if n := len(rt.List[*corev1.ConfigMap](t, c)) + len(rt.List[*corev1.ServiceAccount](t, c)); n != 0 {
			t.Errorf("%d objects were made in a namespace that is being deleted", n)
		}
	})
}
