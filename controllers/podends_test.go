package controllers_test

import (
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// A Job that waits for the ends of its pods ends, though the pod was never placed: no kubelet says that it has ended.
func TestEndOfUnplacedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		pod := template(nil, corev1.RestartPolicyNever)
		pod.Spec.NodeSelector = map[string]string{"no": "where"}
		rt.Create(t, c, &batchv1.Job{ObjectMeta: meta("job"), Spec: batchv1.JobSpec{Template: pod,
			ActiveDeadlineSeconds: ptr(int64(60)), PodReplacementPolicy: ptr(batchv1.Failed)}})
		time.Sleep(30 * time.Second)
		if n := len(rt.List[*corev1.Pod](t, c)); n != 1 {
			t.Fatalf("%d pods", n)
		}
		time.Sleep(10 * time.Minute)
		if job := rt.Get[*batchv1.Job](t, c, "ns", "job"); !api.JobIs(job, batchv1.JobFailed) || job.Status.Failed != 1 {
			t.Errorf("status %+v", job.Status)
		}
		if n := len(rt.List[*corev1.Pod](t, c)); n != 0 {
			t.Errorf("%d pods are left", n)
		}
	})
}
