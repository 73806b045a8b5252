// Package job runs a Job's pods to completion. It replaces upstream's job controller.
//
// Every pod is counted exactly once, whatever is killed when. A pod carries the finalizer
// batch.kubernetes.io/job-tracking until it was counted, in three steps that can each be repeated:
//
//	pod ended ──> 1. its UID is written to status.uncountedTerminatedPods (or its index to completedIndexes)
//	              2. its finalizer is removed
//	              3. the UID leaves the list and the count is raised, in one write
//
// Hence the status is written twice by a pass in which pods ended, which other controllers never do. A Job ends likewise:
// FailureTarget or SuccessCriteriaMet is written first, Failed or Complete when none of its pods runs and all
// are counted.
//
// Back-off is computed from the pods that still exist; it is shorter for Jobs whose failed pods somebody deleted.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// managedByUs is the value of spec.managedBy that means this controller.
const managedByUs = "kubernetes.io/job-controller"

type controller struct{ reconcile.Deps }

// New returns the job controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("job-controller")}
	return reconcile.New(c.Deps, reconcile.For[*batchv1.Job]{
		Controller: "job-controller",
		Also: []reconcile.Source{
			reconcile.Children[*corev1.Pod](func(j *batchv1.Job) *metav1.LabelSelector { return j.Spec.Selector }),
			// A tracked pod that no Job controls any more must be let go.
			reconcile.Mapped(func(p *corev1.Pod) []api.Key {
				if !tracked(p) || metav1.GetControllerOfNoCopy(p) != nil {
					return nil
				}
				return []api.Key{{Namespace: p.Namespace, Name: p.Labels[batchv1.JobNameLabel]}}
			}),
		},
		Write: reconcile.Writes{
			api.PodKind: {"create", "delete", "patch"},
			api.JobKind: {"update/status"},
		},
		Reconcile: c.reconcile,
		Gone: func(ctx context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
			return reconcile.Result{}, c.freeStrays(ctx, key, "")
		},
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, job *batchv1.Job) (reconcile.Result, error) {
	if m := job.Spec.ManagedBy; m != nil && *m != managedByUs {
		return reconcile.Result{}, nil
	}
	pods, err := reconcile.Claim[*corev1.Pod](ctx, c.Client, job, reconcile.Selector(job.Spec.Selector))
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := c.freeStrays(ctx, api.KeyOf(job), job.UID); err != nil {
		return reconcile.Result{}, err
	}
	if finished(job) {
		return reconcile.Result{}, c.untrack(ctx, pods)
	}
	p := &pass{controller: c, log: log, stored: job, job: job.DeepCopy()}
	p.begin(time.Now())
	p.view = look(p.job, pods, time.Now())
	return p.run(ctx)
}

// freeStrays removes the finalizer of pods that were made for the Job of that key and that no Job with the UID controls.
func (c controller) freeStrays(ctx context.Context, key api.Key, uid types.UID) error {
	of := labels.SelectorFromSet(labels.Set{batchv1.JobNameLabel: key.Name})
	if key.Name == "" { // pods that somebody took the label from belong to this name, which no Job has
		without, err := labels.NewRequirement(batchv1.JobNameLabel, selection.DoesNotExist, nil)
		if err != nil {
			return fmt.Errorf("select unlabelled pods: %w", err)
		}
		of = labels.NewSelector().Add(*without)
	}
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Namespace: key.Namespace, Labels: of})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var strays []*corev1.Pod
	for _, p := range pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil || key.Name != "" && ref.Kind == api.JobKind.Kind && ref.Name == key.Name && ref.UID != uid {
			strays = append(strays, p)
		}
	}
	return c.untrack(ctx, strays)
}

// untrack removes the finalizer of those pods that have it.
func (c controller) untrack(ctx context.Context, pods []*corev1.Pod) error {
	return reconcile.Parallel(len(pods), func(i int) error {
		p := pods[i]
		if !tracked(p) {
			return nil
		}
		data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID,
			"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer}}})
		if err != nil {
			return fmt.Errorf("encode patch: %w", err)
		}
		_, err = c.Client.Patch(ctx, api.PodKind, api.KeyOf(p), client.Patch{Type: types.StrategicMergePatchType, Data: data})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) { // Invalid: a new pod has taken the name
			return fmt.Errorf("remove finalizer of pod %s: %w", p.Name, err)
		}
		return nil
	})
}

// pass is one run over one Job. What it decides, it decides from view, before it changes job's status.
type pass struct {
	controller
	log    *slog.Logger
	stored *batchv1.Job // as read or last written
	job    *batchv1.Job // our copy: its status is what will be written
	view   *view
}

// begin notes suspension, resumption and the start.
func (p *pass) begin(now time.Time) {
	s := &p.job.Status
	switch {
	case api.JobIs(p.job, batchv1.JobFailureTarget) || api.JobIs(p.job, batchv1.JobSuccessCriteriaMet):
	case suspended(p.job):
		if setCondition(s, batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended", now) {
			p.Events.Event(p.job, corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
	default:
		if setCondition(s, batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed", now) {
			p.Events.Event(p.job, corev1.EventTypeNormal, "Resumed", "Job resumed")
			s.StartTime = nil
		}
		if s.StartTime == nil {
			at := metav1.NewTime(now)
			s.StartTime = &at
		}
	}
}

func (p *pass) run(ctx context.Context) (reconcile.Result, error) {
	v := p.view
	var res reconcile.Result
	ending := v.outcome()
	var todo change
	switch {
	case ending != nil:
		clear(v.held)
	case p.job.DeletionTimestamp == nil:
		todo = v.want()
		res = res.Sooner(todo.after)
		if left, ok := v.deadline(); ok {
			res = res.Sooner(left + time.Millisecond)
		}
	}
	if err := p.count(ctx, ending); err != nil {
		return res, err
	}
	created, err := p.act(ctx, todo, ending)
	p.finish(ending)
	s := &p.job.Status
	ready := int32(0)
	for _, pod := range v.active {
		if api.PodReady(pod) {
			ready++
		}
	}
	terminating := int32(len(v.terminating))
	s.Active, s.Terminating = int32(len(v.active)+created), &terminating
	ready = min(ready, s.Active) // some of them may just have been removed
	s.Ready = &ready
	if werr := p.write(ctx); werr != nil {
		err = errors.Join(err, werr)
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return reconcile.Result{}, nil
	}
	return res, err
}

// count takes ended pods into the status.
func (p *pass) count(ctx context.Context, ending *end) error {
	v, s := p.view, &p.job.Status
	if s.UncountedTerminatedPods == nil {
		s.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	u := s.UncountedTerminatedPods
	free := append(v.listed, v.ignored...)
	room := batch
	for _, pod := range v.succeeded {
		if room--; room < 0 {
			break
		}
		if !indexed(p.job) { // a completed index cannot be counted twice
			u.Succeeded = append(u.Succeeded, pod.UID)
		}
		free = append(free, pod)
	}
	for _, pod := range v.failed {
		if ix, _ := indexOf(p.job, pod); v.held[ix] == pod {
			continue
		}
		if room--; room < 0 {
			break
		}
		u.Failed = append(u.Failed, pod.UID)
		free = append(free, pod)
	}
	if indexed(p.job) {
		s.CompletedIndexes = v.done.String()
		if p.job.Spec.BackoffLimitPerIndex != nil {
			lost := v.lost.String()
			s.FailedIndexes = &lost
		}
	}
	if ending != nil {
		if setCondition(s, ending.announce, corev1.ConditionTrue, ending.reason, ending.message, v.now) {
			p.log.Info("job is ending", "reason", ending.reason)
		}
	}
	if len(free) == 0 && ending == nil && len(u.Succeeded)+len(u.Failed) == 0 {
		return nil // nothing that has to be durable before anything else
	}
	if err := p.write(ctx); err != nil {
		return err
	}
	if err := p.untrack(ctx, free); err != nil {
		return err
	}
	if indexed(p.job) {
		s.Succeeded = int32(v.done.count())
	} else {
		s.Succeeded += int32(len(u.Succeeded))
	}
	s.Failed += int32(len(u.Failed))
	u.Succeeded, u.Failed = nil, nil
	return nil
}

// act creates and deletes pods and returns by how many the active ones became more.
func (p *pass) act(ctx context.Context, todo change, ending *end) (int, error) {
	v := p.view
	remove := todo.remove
	if ending != nil {
		remove = v.active
	}
	remove = remove[:min(len(remove), batch)]
	// Pods that are removed because they are not needed are no failures: they are not counted at all.
	if ending == nil || ending.final == batchv1.JobComplete {
		if err := p.untrack(ctx, remove); err != nil {
			return 0, err
		}
	}
	if err := reconcile.Parallel(len(remove), func(i int) error { return p.DeletePod(ctx, p.stored, remove[i]) }); err != nil {
		return 0, err
	}
	well, err := reconcile.SlowStart(len(todo.create), func(i int) error {
		return p.CreatePod(ctx, p.stored, newPod(p.stored, todo.create[i]))
	})
	return well - len(remove), err
}

// finish writes the final condition once no pod runs and all are counted.
func (p *pass) finish(ending *end) {
	v, s := p.view, &p.job.Status
	if ending == nil || len(v.active) > 0 || len(v.terminating) > 0 || len(v.succeeded)+len(v.failed) > batch {
		return
	}
	if !setCondition(s, ending.final, corev1.ConditionTrue, ending.reason, ending.message, v.now) {
		return
	}
	if ending.final == batchv1.JobComplete {
		at := metav1.NewTime(v.now)
		s.CompletionTime = &at
		p.Events.Event(p.stored, corev1.EventTypeNormal, "Completed", "Job completed")
		return
	}
	p.Events.Event(p.stored, corev1.EventTypeWarning, ending.reason, ending.message)
}

// write stores job's status, if it changed.
func (p *pass) write(ctx context.Context) error {
	got, err := client.Mutate(ctx, p.Client, p.stored, "status", func(j *batchv1.Job) { j.Status = *p.job.Status.DeepCopy() })
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	p.stored = got
	return nil
}
