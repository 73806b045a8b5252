package volumeexpander

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client/events"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func size(text string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(text)}
}

// Only a claim that grows is told of, once each time.
func TestTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		d.Events = events.New(c, "test", "", d.Log)
		rt.Start(t, d, New(d), d.Events)
		pvc := rt.Create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "v", Resources: corev1.VolumeResourceRequirements{Requests: size("1Gi")}}})
		rt.Create(t, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: "c", UID: pvc.UID}}})
		expect := func(want int32) {
			t.Helper()
			time.Sleep(time.Minute)
			got := int32(0)
			for _, e := range rt.List[*corev1.Event](t, c) {
				if e.InvolvedObject.Name != "c" || e.Reason != "ExternalExpanding" || e.Type != corev1.EventTypeNormal {
					t.Errorf("event %+v", e)
				}
				got += max(e.Count, 1)
			}
			if got != want {
				t.Errorf("told %d times, want %d", got, want)
			}
		}
		expect(0) // not bound
		rt.Mutate(t, c, pvc, "status", func(p *corev1.PersistentVolumeClaim) {
			p.Status.Phase, p.Status.Capacity = corev1.ClaimBound, size("1Gi")
		})
		expect(0)
		rt.Mutate(t, c, pvc, "", func(p *corev1.PersistentVolumeClaim) { p.Spec.Resources.Requests = size("2Gi") })
		expect(1)
		rt.Mutate(t, c, pvc, "", func(p *corev1.PersistentVolumeClaim) { p.Labels = map[string]string{"a": "b"} })
		expect(1)
		rt.Mutate(t, c, pvc, "status", func(p *corev1.PersistentVolumeClaim) { p.Status.Capacity = size("2Gi") })
		expect(1)
		rt.Mutate(t, c, pvc, "", func(p *corev1.PersistentVolumeClaim) { p.Spec.Resources.Requests = size("3Gi") })
		expect(2)
		v := rt.Create(t, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "local"}, Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: "c", UID: pvc.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: claim.LocalDriver,
				VolumeAttributes: map[string]string{claim.LocalNode: "n"}}}}})
		rt.Mutate(t, c, pvc, "", func(p *corev1.PersistentVolumeClaim) { p.Spec.VolumeName = v.Name })
		rt.Mutate(t, c, pvc, "status", func(p *corev1.PersistentVolumeClaim) { p.Status.Capacity = size("3Gi") })
		rt.Mutate(t, c, pvc, "", func(p *corev1.PersistentVolumeClaim) { p.Spec.Resources.Requests = size("4Gi") })
		expect(2)
	})
}
