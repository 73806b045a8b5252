// Package ttlafterfinished deletes a Job once spec.ttlSecondsAfterFinished has passed since it finished. It replaces
// upstream's ttl-after-finished controller.
package ttlafterfinished

import (
	"context"
	"log/slog"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the ttl-after-finished controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*batchv1.Job]{
		Controller: "ttl-after-finished-controller",
		Write:      reconcile.Writes{api.JobKind: {"delete"}},
		Reconcile:  c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, job *batchv1.Job) (reconcile.Result, error) {
	left, ok := remaining(job, time.Now())
	if !ok || job.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	if left > 0 {
		return reconcile.Result{After: left}, nil
	}
	log.Info("deleting expired job")
	// The delete carries job's UID and resourceVersion: a TTL raised since we read it is a conflict, which brings us
	// back here.
	return reconcile.Result{}, c.Client.Delete(ctx, job, client.DeleteOptions{Propagation: metav1.DeletePropagationForeground})
}

// remaining returns how long job stays; not ok when it has no TTL or has not finished.
func remaining(job *batchv1.Job, now time.Time) (time.Duration, bool) {
	if job.Spec.TTLSecondsAfterFinished == nil {
		return 0, false
	}
	for _, t := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		if c := api.JobCondition(job, t); c != nil && c.Status == corev1.ConditionTrue {
			end := c.LastTransitionTime.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second)
			return end.Sub(now), true
		}
	}
	return 0, false
}
