package attachdetach

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// BenchmarkPlan decides over a cluster of 1,000 nodes with 10,000 attached volumes.
func BenchmarkPlan(b *testing.B) {
	c := rt.New(b)
	for i := range 10_000 {
		name, node := fmt.Sprint("v", i), fmt.Sprint("n", i%1000)
		rt.Create(b, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: name}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}})
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk", VolumeHandle: name}
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID(name)}
		rt.Create(b, c, v)
		rt.Create(b, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{{Name: "v",
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}}})
		a := newAttachment(want{place: place{"disk", name, node}, volume: v})
		a.Status.Attached = true
		rt.Create(b, c, a)
		if i < 1000 {
			rt.Create(b, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		}
	}
	w, err := look(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w.plan(time.Now())
	}
}
