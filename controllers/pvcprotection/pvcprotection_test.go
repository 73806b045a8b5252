package pvcprotection

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// A claim is not let go because its pod is not known here yet.
func TestClaimStaysForLatePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, rt.Late(c, api.PodKind))
		rt.Start(t, d, New(d))
		claim := rt.Create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", Finalizers: []string{finalizer}}})
		rt.Create(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{
			{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "a"}}}}}})
		rt.Delete(t, c, claim, client.DeleteOptions{})
		synctest.Wait()
		if n := len(rt.List[*corev1.PersistentVolumeClaim](t, c)); n != 1 {
			t.Errorf("%d claims are left", n)
		}
	})
}

func TestClaimStaysWhileItIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d), rt.Kubelet(c))
		pod := func(name, claim string) *corev1.Pod {
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{
				{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}}}
		}
		for _, name := range []string{"used", "free"} {
			rt.Create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}})
		}
		rt.Create(t, c, pod("a", "used"))
		rt.Create(t, c, pod("b", "used"))
		synctest.Wait()
		claim := rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "used")
		if len(claim.Finalizers) != 1 || claim.Finalizers[0] != finalizer {
			t.Fatalf("finalizers %v", claim.Finalizers)
		}
		for _, name := range []string{"used", "free"} {
			rt.Delete(t, c, rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", name), client.DeleteOptions{})
		}
		left := func() (names []string) {
			synctest.Wait()
			for _, c := range rt.List[*corev1.PersistentVolumeClaim](t, c) {
				names = append(names, c.Name)
			}
			return names
		}
		if got := left(); len(got) != 1 || got[0] != "used" {
			t.Errorf("%v are left", got)
		}
		rt.Delete(t, c, rt.Get[*corev1.Pod](t, c, "ns", "a"), client.DeleteOptions{})
		if got := left(); len(got) != 1 {
			t.Errorf("%v are left, and one pod", got)
		}
		if err := rt.Finish(t.Context(), c, rt.Get[*corev1.Pod](t, c, "ns", "b"), corev1.PodSucceeded, 0); err != nil {
			t.Fatal(err)
		}
		if got := left(); len(got) != 0 {
			t.Errorf("%v are left", got)
		}
	})
}
