// Package cronjob starts a CronJob's Jobs at their times, and removes those that ended long ago. It replaces upstream's
// cronjob controller.
//
// Vocabulary: a run is a time of the schedule; its Job is named after it, so that no run is started twice, whatever is killed
// when. A run is due until the next one, or for startingDeadlineSeconds; what was missed before is lost.
package cronjob

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the cronjob controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("cronjob-controller")}
	return reconcile.New(c.Deps, reconcile.For[*batchv1.CronJob]{
		Controller: "cronjob-controller",
		Also:       []reconcile.Source{reconcile.Owned[*batchv1.Job]()},
		Write: reconcile.Writes{
			api.CronJobKind: {"update/status"},
			api.JobKind:     {"create", "delete"},
		},
		Reconcile: c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, cj *batchv1.CronJob) (reconcile.Result, error) {
	owned, err := client.List[*batchv1.Job](ctx, c.Client, client.Query{Namespace: cj.Namespace, Owner: cj.UID})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list jobs: %w", err)
	}
	var jobs []*batchv1.Job
	for _, j := range owned {
		if metav1.IsControlledBy(j, cj) {
			jobs = append(jobs, j)
		}
	}
	p := decide(cj, jobs, time.Now())
	for _, n := range p.notes {
		c.Events.Event(cj, n.kind, n.reason, n.message)
	}
	failure := c.act(ctx, log, cj, &p)
	if _, err := client.Mutate(ctx, c.Client, cj, "status", func(o *batchv1.CronJob) { o.Status = p.status }); err != nil && !apierrors.IsNotFound(err) {
		return reconcile.Result{}, fmt.Errorf("write status: %w", err)
	}
	return reconcile.Result{After: p.after}, failure
}

// act removes and creates Jobs. What was created is in the status of p afterwards.
func (c controller) act(ctx context.Context, log *slog.Logger, cj *batchv1.CronJob, p *plan) error {
	for _, j := range p.remove {
		err := c.Client.Delete(ctx, j, client.DeleteOptions{Propagation: metav1.DeletePropagationBackground, AnyRevision: true})
		if err != nil && !apierrors.IsNotFound(err) {
			c.Events.Event(cj, corev1.EventTypeWarning, "FailedDelete", fmt.Sprintf("Deleted job: %v", err))
			return fmt.Errorf("delete job %s: %w", j.Name, err)
		}
		c.Events.Event(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job "+j.Name)
	}
	if p.create == nil {
		return nil
	}
	name := p.create.Name
	j, err := client.Create(ctx, c.Client, p.create)
	if apierrors.IsAlreadyExists(err) {
		j, err = client.Get[*batchv1.Job](ctx, c.Client, api.Key{Namespace: cj.Namespace, Name: name})
		if err == nil && !metav1.IsControlledBy(j, cj) {
			return nil // somebody else's: this run is theirs
		}
	} else if err == nil {
		log.Info("started a job", "job", name)
		c.Events.Event(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job "+name)
	}
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.Events.Event(cj, corev1.EventTypeWarning, "FailedCreate", fmt.Sprintf("Error creating job: %v", err))
		}
		return fmt.Errorf("create job %s: %w", name, err)
	}
	at := metav1.NewTime(p.at)
	p.status.LastScheduleTime = &at
	if over, _ := ended(j); !over {
		p.status.Active = append(p.status.Active, reference(j))
	}
	return nil
}
