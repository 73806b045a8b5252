package cronjob

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/reconcile"
)

// slack is added to the time of a run, so that clocks need not agree to the millisecond.
const slack = 100 * time.Millisecond

// note is an event of the CronJob.
type note struct{ kind, reason, message string }

// plan is what a pass does.
type plan struct {
	status batchv1.CronJobStatus // before create
	remove []*batchv1.Job
	create *batchv1.Job
	at     time.Time // what create is the run of
	notes  []note
	after  time.Duration
}

func (p *plan) note(kind, reason, format string, args ...any) {
	p.notes = append(p.notes, note{kind, reason, fmt.Sprintf(format, args...)})
}

func ended(j *batchv1.Job) (bool, batchv1.JobConditionType) {
	for _, t := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		if api.JobIs(j, t) {
			return true, t
		}
	}
	return false, ""
}

// decide plans for a CronJob with the Jobs that it controls.
func decide(cj *batchv1.CronJob, jobs []*batchv1.Job, now time.Time) plan {
	p := plan{status: *cj.Status.DeepCopy()}
	p.observe(cj, jobs)
	p.remove = history(cj, jobs)
	if cj.DeletionTimestamp != nil {
		return p
	}
	p.run(cj, jobs, now)
	return p
}

// observe brings the list of running Jobs, the last run and the last success up to date. That a Job exists says that its run
// was started, also where the write of that has failed: it must be noted before the Job goes, or the run is due again.
func (p *plan) observe(cj *batchv1.CronJob, jobs []*batchv1.Job) {
	s := &p.status
	exists := map[types.UID]bool{}
	for _, j := range jobs {
		exists[j.UID] = true
		listed := slices.ContainsFunc(s.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
		over, how := ended(j)
		ours := j.Name == jobName(cj, scheduledAt(j))
		if ours && unnoted(s.LastScheduleTime, j) {
			at := metav1.NewTime(scheduledAt(j))
			s.LastScheduleTime = &at
		}
		switch {
		case !listed && !over && !ours:
			p.note(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
		case !listed && !over: // it was created, and then its being listed failed
			s.Active = append(s.Active, reference(j))
		case listed && over:
			s.Active = slices.DeleteFunc(s.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
			p.note(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, how)
		}
		if t := j.Status.CompletionTime; how == batchv1.JobComplete && t != nil && (s.LastSuccessfulTime == nil || t.After(s.LastSuccessfulTime.Time)) {
			s.LastSuccessfulTime = t
		}
	}
	s.Active = slices.DeleteFunc(s.Active, func(r corev1.ObjectReference) bool {
		if !exists[r.UID] {
			p.note(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
		}
		return !exists[r.UID]
	})
}

// history returns the ended Jobs beyond the limits, oldest first, of those whose run is noted in the stored status: they are
// removed before the status is written.
func history(cj *batchv1.CronJob, jobs []*batchv1.Job) (old []*batchv1.Job) {
	of := func(limit *int32, want batchv1.JobConditionType) {
		if limit == nil {
			return
		}
		kept := slices.DeleteFunc(slices.Clone(jobs), func(j *batchv1.Job) bool {
			_, how := ended(j)
			return how != want || j.DeletionTimestamp != nil || unnoted(cj.Status.LastScheduleTime, j)
		})
		slices.SortFunc(kept, func(a, b *batchv1.Job) int {
			at, bt := a.Status.StartTime, b.Status.StartTime
			if at == nil || bt == nil { // what never began is newest
				return cmp.Or(cmp.Compare(btoi(at == nil), btoi(bt == nil)), cmp.Compare(a.Name, b.Name))
			}
			return cmp.Or(at.Compare(bt.Time), cmp.Compare(a.Name, b.Name))
		})
		old = append(old, kept[:max(0, len(kept)-int(*limit))]...)
	}
	of(cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobComplete)
	of(cj.Spec.FailedJobsHistoryLimit, batchv1.JobFailed)
	return old
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// run starts what is due, as far as the policies allow.
func (p *plan) run(cj *batchv1.CronJob, jobs []*batchv1.Job, now time.Time) {
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return
	}
	s, zone, err := parse(cj)
	var wrong problem
	if errors.As(err, &wrong) { // a change of the schedule brings us back
		p.note(corev1.EventTypeWarning, wrong.reason, "%s", wrong.message)
		return
	}
	last := cj.CreationTimestamp.Time
	if t := p.status.LastScheduleTime; t != nil {
		last = t.Time
	}
	var deadline time.Duration
	if d := cj.Spec.StartingDeadlineSeconds; d != nil {
		deadline = time.Duration(*d) * time.Second
	}
	t, err := look(s, last, now, deadline)
	if err != nil {
		p.note(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %v", cj.Spec.Schedule, err)
		return
	}
	if !t.next.IsZero() {
		p.after = t.next.Sub(now) + slack
	}
	if t.missed > tooMany {
		p.note(corev1.EventTypeWarning, "TooManyMissedTimes",
			"too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if t.due.IsZero() || t.due.Equal(last) && p.status.LastScheduleTime != nil {
		return
	}
	if deadline > 0 && t.due.Add(deadline).Before(now) {
		p.note(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", t.due.UTC().Format(time.RFC1123Z))
		return
	}
	p.start(cj, jobs, t.due, zone)
}

func (p *plan) start(cj *batchv1.CronJob, jobs []*batchv1.Job, due time.Time, zone *time.Location) {
	active := map[types.UID]bool{}
	for _, r := range p.status.Active {
		if r.Name == jobName(cj, due) {
			return
		}
		active[r.UID] = true
	}
	switch {
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(active) > 0:
		p.note(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return
	case cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, j := range jobs {
			if active[j.UID] {
				p.remove = append(p.remove, j)
			}
		}
		p.status.Active = nil
	}
	p.create, p.at = newJob(cj, due, zone), due
}

// jobName is the same for every attempt to start a run: it is started once.
func jobName(cj *batchv1.CronJob, due time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, due.Unix()/60)
}

// scheduledAt is the run that a Job is for.
func scheduledAt(j *batchv1.Job) time.Time {
	t, err := time.Parse(time.RFC3339, j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	if err != nil {
		return time.Time{}
	}
	return t
}

// unnoted says that the run of a Job is later than the last one that was noted.
func unnoted(last *metav1.Time, j *batchv1.Job) bool {
	at := scheduledAt(j)
	return !at.IsZero() && (last == nil || at.After(last.Time))
}

func newJob(cj *batchv1.CronJob, due time.Time, zone *time.Location) *batchv1.Job {
	if zone == nil {
		zone = due.Location()
	}
	t := &cj.Spec.JobTemplate
	j := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{Namespace: cj.Namespace, Name: jobName(cj, due), Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations),
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(cj)}},
		Spec: *t.Spec.DeepCopy(),
	}
	if j.Annotations == nil {
		j.Annotations = map[string]string{}
	}
	j.Annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(zone).Format(time.RFC3339)
	return j
}

func reference(j *batchv1.Job) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "batch/v1", Kind: "Job", Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion}
}
