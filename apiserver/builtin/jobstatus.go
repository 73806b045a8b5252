package builtin

import (
	"fmt"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
)

// jobStatusCheck is one check of a Job's status. Any controller may manage Jobs, so that the API keeps their states consistent: mostly
// where a write changes what a rule is about, for a change of the spec may make a status wrong that its controller has yet to see.
type jobStatusCheck struct {
	now, old *batchv1.Job
	at       *field.Path
	errs     field.ErrorList
}

func jobStatus(now, old *batchv1.Job) field.ErrorList {
	c := &jobStatusCheck{now: now, old: old, at: field.NewPath("status")}
	s := &now.Status
	for _, n := range []struct {
		name string
		n    *int32
	}{{"active", &s.Active}, {"succeeded", &s.Succeeded}, {"failed", &s.Failed}, {"ready", s.Ready}, {"terminating", s.Terminating}} {
		c.errs = append(c.errs, notNegativePtr(n.n, c.at.Child(n.name))...)
	}
	c.uncounted()
	c.conditions()
	c.times()
	c.finished()
	c.indexes()
	c.kept()
	return c.errs
}

// is says whether the condition is true, was whether it was, and turned whether that is new.
func (c *jobStatusCheck) is(t batchv1.JobConditionType) bool     { return api.JobIs(c.now, t) }
func (c *jobStatusCheck) was(t batchv1.JobConditionType) bool    { return api.JobIs(c.old, t) }
func (c *jobStatusCheck) turned(t batchv1.JobConditionType) bool { return c.is(t) != c.was(t) }

// refuse notes a wrong value where bad holds; nil is one that is not shown.
func (c *jobStatusCheck) refuse(bad bool, name string, value any, text string) {
	if !bad {
		return
	}
	if value == nil {
		value = field.OmitValueType{}
	}
	c.errs = append(c.errs, field.Invalid(c.at.Child(name), value, text))
}

func (c *jobStatusCheck) require(bad bool, name, text string) {
	if bad {
		c.errs = append(c.errs, field.Required(c.at.Child(name), text))
	}
}

func (c *jobStatusCheck) uncounted() {
	u := c.now.Status.UncountedTerminatedPods
	if u == nil {
		return
	}
	seen := map[types.UID]bool{}
	each := func(ids []types.UID, at *field.Path) {
		for i, id := range ids {
			switch {
			case id == "":
				c.errs = append(c.errs, field.Invalid(at.Index(i), id, "must not be empty"))
			case seen[id]:
				c.errs = append(c.errs, field.Duplicate(at.Index(i), id))
			}
			seen[id] = true
		}
	}
	each(u.Succeeded, c.at.Child("uncountedTerminatedPods", "succeeded"))
	each(u.Failed, c.at.Child("uncountedTerminatedPods", "failed"))
}

func (c *jobStatusCheck) conditions() {
	const complete, failed, failing, met = batchv1.JobComplete, batchv1.JobFailed, batchv1.JobFailureTarget, batchv1.JobSuccessCriteriaMet
	refuse := func(bad bool, text string) { c.refuse(bad, "conditions", nil, text) }
	refuse((c.turned(complete) || c.turned(failed)) && c.is(complete) && c.is(failed), "cannot set Complete=True and Failed=true conditions")
	refuse((c.turned(complete) || c.turned(failing)) && c.is(complete) && c.is(failing), "cannot set Complete=True and FailureTarget=true conditions")
	refuse((c.turned(failed) || c.failedIndexesChanged()) && c.is(failed) && !c.is(failing), "cannot set Failed=True condition without the FailureTarget=true condition")
	refuse((c.turned(complete) || c.turned(met)) && c.is(complete) && !c.is(met), "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	refuse(c.is(met) && c.is(failed), "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	refuse(c.is(met) && c.is(failing), "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	refuse(c.now.Spec.SuccessPolicy != nil && !c.is(met) && c.is(complete), "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
	for _, t := range []batchv1.JobConditionType{failed, complete, failing} {
		refuse(c.was(t) && !c.is(t), fmt.Sprintf("cannot disable the terminal %s=True condition", t))
	}
	refuse(c.was(met) && !c.is(met), "cannot disable the SuccessCriteriaMet=True condition")
	refuse(c.was(complete) && !c.was(met) && c.is(met), "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
}

func (c *jobStatusCheck) times() {
	is, was := &c.now.Status, &c.old.Status
	started, completed := !is.StartTime.Equal(was.StartTime), !is.CompletionTime.Equal(was.CompletionTime)
	if c.turned(batchv1.JobComplete) || completed {
		c.refuse(is.CompletionTime != nil && !c.is(batchv1.JobComplete), "completionTime", is.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
		c.require(is.CompletionTime == nil && c.is(batchv1.JobComplete), "completionTime", "completionTime is required for Complete jobs")
	}
	c.refuse((started || completed) && is.StartTime != nil && is.CompletionTime != nil && is.CompletionTime.Before(is.StartTime),
		"completionTime", is.CompletionTime, "must be equal to or after `startTime`")
	c.refuse(is.CompletionTime != nil && was.CompletionTime != nil && completed, "completionTime", is.CompletionTime, "field is immutable")
	resumed := c.was(batchv1.JobSuspended) && api.JobCondition(c.now, batchv1.JobSuspended) != nil && !c.is(batchv1.JobSuspended)
	c.refuse(started && !resumed && was.StartTime != nil && !deref(c.now.Spec.Suspend), "startTime", is.StartTime, "field is immutable for unsuspended job once set")
}

// finished checks what a Job that has ended cannot have.
func (c *jobStatusCheck) finished() {
	s, was := &c.now.Status, &c.old.Status
	ended := func(j *batchv1.Job) bool { return api.JobIs(j, batchv1.JobComplete) || api.JobIs(j, batchv1.JobFailed) }
	turned := ended(c.now) != ended(c.old)
	active, terminating := s.Active != was.Active, !equality.Semantic.DeepEqual(s.Terminating, was.Terminating)
	c.refuse((active || !equality.Semantic.DeepEqual(s.Ready, was.Ready)) && s.Ready != nil && *s.Ready > s.Active, "ready", deref(s.Ready), "cannot set more ready pods than active")
	if !ended(c.now) {
		return
	}
	c.refuse((turned || active) && s.Active > 0, "active", s.Active, "active>0 is invalid for finished job")
	nothing := deref(c.now.Spec.Suspend) && c.now.Spec.Completions != nil && *c.now.Spec.Completions == 0
	c.require((turned || !s.StartTime.Equal(was.StartTime)) && !nothing && s.StartTime == nil, "startTime", "startTime is required for finished job")
	u := s.UncountedTerminatedPods
	c.refuse((turned || !equality.Semantic.DeepEqual(u, was.UncountedTerminatedPods)) && u != nil && len(u.Failed)+len(u.Succeeded) > 0,
		"uncountedTerminatedPods", u, "must be empty for finished job")
	c.refuse((turned || terminating) && deref(s.Terminating) > 0, "terminating", deref(s.Terminating), "terminating>0 is invalid for finished job")
}

func (c *jobStatusCheck) failedIndexesChanged() bool {
	return !equality.Semantic.DeepEqual(c.now.Status.FailedIndexes, c.old.Status.FailedIndexes)
}

func (c *jobStatusCheck) indexes() {
	s, spec := &c.now.Status, &c.now.Spec
	completed, failed := s.CompletedIndexes != c.old.Status.CompletedIndexes, c.failedIndexesChanged()
	if completed && spec.Completions != nil {
		_, err := indexes(s.CompletedIndexes, *spec.Completions)
		c.refuse(err != nil, "completedIndexes", s.CompletedIndexes, fmt.Sprintf("error parsing completedIndexes: %v", err))
	}
	c.refuse(completed && s.CompletedIndexes != "" && deref(spec.CompletionMode) != batchv1.IndexedCompletion, "completedIndexes", s.CompletedIndexes,
		"cannot set non-empty completedIndexes when non-indexed completion mode")
	f := s.FailedIndexes
	if f == nil {
		return
	}
	if failed && spec.Completions != nil && spec.BackoffLimitPerIndex != nil {
		_, err := indexes(*f, *spec.Completions)
		c.refuse(err != nil, "failedIndexes", *f, fmt.Sprintf("error parsing failedIndexes: %v", err))
	}
	c.refuse(failed && spec.BackoffLimitPerIndex == nil, "failedIndexes", *f, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
	if (failed || completed) && spec.Completions != nil {
		at, both := overlap(s.CompletedIndexes, *f)
		c.refuse(both, "failedIndexes", *f, fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", at))
	}
}

// overlap returns the first index that is in both lists, each in the form "1,3-5". What is malformed is passed over.
func overlap(a, b string) (at int64, found bool) {
	x, y := spans(a), spans(b)
	for len(x) > 0 && len(y) > 0 {
		switch {
		case x[0][0] <= y[0][1] && y[0][0] <= x[0][1]:
			return max(x[0][0], y[0][0]), true
		case x[0][0] <= y[0][0]:
			x = x[1:]
		default:
			y = y[1:]
		}
	}
	return 0, false
}

func spans(text string) (all [][2]int64) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseInt(first, 10, 32)
		if err != nil {
			continue
		}
		if to, err := strconv.ParseInt(last, 10, 32); err == nil && from <= to {
			all = append(all, [2]int64{from, to})
		}
	}
	return all
}

// kept checks what only grows.
func (c *jobStatusCheck) kept() {
	is, was, spec := &c.now.Status, &c.old.Status, &c.now.Spec
	c.refuse(is.Failed < was.Failed, "failed", is.Failed, "cannot decrease the failed counter")
	// An indexed Job with as many pods at once as completions may be scaled down.
	scales := deref(spec.CompletionMode) == batchv1.IndexedCompletion && equality.Semantic.DeepEqual(spec.Completions, spec.Parallelism)
	c.refuse(!scales && is.Succeeded < was.Succeeded, "succeeded", is.Succeeded, "cannot decrease the succeeded counter")
}
