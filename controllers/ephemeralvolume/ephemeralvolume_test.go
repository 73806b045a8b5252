package ephemeralvolume

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		own := func(name string) corev1.Volume {
			return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
				VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
					Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}}}}}
		}
		rt.Create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p-taken"}})
		p := rt.Create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			{Name: "plain"}, own("taken"), own("data")}}})
		synctest.Wait()
		if n := len(rt.List[*corev1.PersistentVolumeClaim](t, c)); n != 2 {
			t.Errorf("%d claims", n)
		}
		claim := rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "p-data")
		if !metav1.IsControlledBy(claim, p) || claim.Labels["a"] != "b" || len(claim.Spec.AccessModes) != 1 {
			t.Errorf("claim %+v", claim)
		}
		if metav1.GetControllerOf(rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "p-taken")) != nil {
			t.Error("a claim of somebody else's was taken")
		}
		rt.Delete(t, c, claim, client.DeleteOptions{})
		synctest.Wait()
		if again := rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "p-data"); again.UID == claim.UID {
			t.Error("the claim was not made again")
		}
	})
}
