package pvprotection

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestVolumeStaysWhileItIsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		v := rt.Create(t, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}})
		rt.Mutate(t, c, v, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound })
		synctest.Wait()
		rt.Delete(t, c, v, client.DeleteOptions{})
		synctest.Wait()
		if n := len(rt.List[*corev1.PersistentVolume](t, c)); n != 1 {
			t.Fatal("the volume is gone while it is bound")
		}
		rt.Mutate(t, c, v, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased })
		synctest.Wait()
		if n := len(rt.List[*corev1.PersistentVolume](t, c)); n != 0 {
			t.Error("the volume is left")
		}
	})
}
