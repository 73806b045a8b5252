package ttlafterfinished

import (
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		ttl := int32(3600)
		for _, name := range []string{"finished", "running", "forever"} {
			job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
				Spec: batchv1.JobSpec{TTLSecondsAfterFinished: &ttl}}
			if name == "forever" {
				job.Spec.TTLSecondsAfterFinished = nil
			}
			rt.Create(t, c, job)
			if name != "running" {
				rt.Mutate(t, c, job, "status", func(j *batchv1.Job) {
					j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue,
						LastTransitionTime: metav1.Now()}}
				})
			}
		}
		time.Sleep(59 * time.Minute)
		if rt.Get[*batchv1.Job](t, c, "ns", "finished").DeletionTimestamp != nil {
			t.Error("deleted too early")
		}
		time.Sleep(2 * time.Minute)
		for name, want := range map[string]bool{"finished": true, "running": false, "forever": false} {
			if got := rt.Get[*batchv1.Job](t, c, "ns", name).DeletionTimestamp != nil; got != want {
				t.Errorf("%s deleted: %v", name, got)
			}
		}
	})
}
