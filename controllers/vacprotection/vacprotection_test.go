package vacprotection

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestClassStaysWhileItIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		left := func(want int) {
			t.Helper()
			synctest.Wait()
			if n := len(rt.List[*storagev1.VolumeAttributesClass](t, c)); n != want {
				t.Fatalf("%d classes are left, want %d", n, want)
			}
		}
		unused := rt.Create(t, c, &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "unused"}})
		gold := rt.Create(t, c, &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}})
		claim := rt.Create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeAttributesClassName: new("gold")}})
		volume := rt.Create(t, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"},
			Spec: corev1.PersistentVolumeSpec{VolumeAttributesClassName: new("gold")}})
		left(2)
		rt.Delete(t, c, unused, client.DeleteOptions{})
		rt.Delete(t, c, gold, client.DeleteOptions{})
		left(1)
		rt.Mutate(t, c, claim, "status", func(c *corev1.PersistentVolumeClaim) {
			c.Status.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: "gold"}
		})
		rt.Mutate(t, c, claim, "", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = nil })
		rt.Delete(t, c, volume, client.DeleteOptions{})
		left(1)
		rt.Mutate(t, c, claim, "status", func(c *corev1.PersistentVolumeClaim) { c.Status.ModifyVolumeStatus = nil })
		left(0)
	})
}
