package job

import (
	"cmp"
	"math"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// Bounds, as upstream's.
const (
	batch        = 500 // pods counted, created or deleted by one pass
	firstBackoff = 10 * time.Second
	lastBackoff  = 10 * time.Minute
)

// view is a Job and its pods, sorted by what they mean for it. Only tracked pods (with the finalizer) count.
type view struct {
	job  *batchv1.Job
	now  time.Time
	pods []*corev1.Pod // all

	active      []*corev1.Pod
	terminating []*corev1.Pod // being deleted and not yet ended
	succeeded   []*corev1.Pod // ended and neither counted nor listed as uncounted
	failed      []*corev1.Pod // likewise
	listed      []*corev1.Pod // listed as uncounted
	ignored     []*corev1.Pod // ended and never to be counted
	held        map[int]*corev1.Pod
	done, lost  indexes // completed and failed indexes, the new ones included
	failJob     string  // what the failure policy ends the Job with
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// replaceFailedOnly says that a pod that is being deleted is waited for before it is replaced or counted.
func replaceFailedOnly(job *batchv1.Job) bool {
	if p := job.Spec.PodReplacementPolicy; p != nil {
		return *p == batchv1.Failed
	}
	return job.Spec.PodFailurePolicy != nil
}

func look(job *batchv1.Job, pods []*corev1.Pod, now time.Time) *view {
	v := &view{job: job, now: now, pods: pods, held: map[int]*corev1.Pod{}}
	if indexed(job) {
		v.done = parseIndexes(job.Status.CompletedIndexes, int(*job.Spec.Completions))
		if job.Status.FailedIndexes != nil {
			v.lost = parseIndexes(*job.Status.FailedIndexes, int(*job.Spec.Completions))
		}
	}
	listed := map[types.UID]bool{}
	if u := job.Status.UncountedTerminatedPods; u != nil {
		for _, id := range append(slices.Clone(u.Succeeded), u.Failed...) {
			listed[id] = true
		}
	}
	for _, p := range pods {
		if p.DeletionTimestamp != nil && !api.PodTerminal(p) {
			v.terminating = append(v.terminating, p)
		}
		switch {
		case api.PodActive(p):
			v.active = append(v.active, p)
		case !tracked(p):
		case listed[p.UID]:
			v.listed = append(v.listed, p)
		case p.Status.Phase == corev1.PodSucceeded:
			v.addSucceeded(p)
		case p.Status.Phase == corev1.PodFailed || !replaceFailedOnly(job):
			v.addFailed(p)
		case job.DeletionTimestamp != nil:
			v.ignored = append(v.ignored, p)
		}
	}
	v.hold()
	return v
}

func (v *view) addSucceeded(p *corev1.Pod) {
	if indexed(v.job) {
		ix, ok := indexOf(v.job, p)
		if !ok || v.done.has(ix) {
			v.ignored = append(v.ignored, p)
			return
		}
		v.done.add(ix)
		v.lost.remove(ix)
	}
	v.succeeded = append(v.succeeded, p)
}

func (v *view) addFailed(p *corev1.Pod) {
	ix, valid := indexOf(v.job, p)
	if indexed(v.job) && !valid {
		v.ignored = append(v.ignored, p)
		return
	}
	limit := v.job.Spec.BackoffLimitPerIndex
	switch said := judge(v.job, p); said.action {
	case batchv1.PodFailurePolicyActionIgnore:
		v.ignored = append(v.ignored, p)
		return
	case batchv1.PodFailurePolicyActionFailJob:
		if v.failJob == "" {
			v.failJob = said.message
		}
	case batchv1.PodFailurePolicyActionFailIndex:
		if limit != nil && !v.done.has(ix) {
			v.lost.add(ix)
		}
	}
	if limit != nil && !v.done.has(ix) && failuresOf(p) >= int(*limit) {
		v.lost.add(ix)
	}
	v.failed = append(v.failed, p)
}

// hold keeps, per index that will be tried again, the failed pod with the highest failure count tracked until its
// successor exists: the count is nowhere else.
func (v *view) hold() {
	if v.job.Spec.BackoffLimitPerIndex == nil {
		return
	}
	newest := map[int]int{}
	for _, p := range v.active {
		if ix, ok := indexOf(v.job, p); ok {
			newest[ix] = max(newest[ix], failuresOf(p))
		}
	}
	for _, p := range v.failed {
		ix, _ := indexOf(v.job, p)
		if v.lost.has(ix) || v.done.has(ix) || newest[ix] > failuresOf(p) {
			continue
		}
		if h := v.held[ix]; h == nil || failuresOf(p) > failuresOf(h) {
			v.held[ix] = p
		}
	}
}

func (v *view) succeededTotal() int {
	if indexed(v.job) {
		return v.done.count()
	}
	n := int(v.job.Status.Succeeded) + len(v.succeeded)
	if u := v.job.Status.UncountedTerminatedPods; u != nil {
		n += len(u.Succeeded)
	}
	return n
}

func (v *view) failedTotal() int {
	n := int(v.job.Status.Failed) + len(v.failed)
	if u := v.job.Status.UncountedTerminatedPods; u != nil {
		n += len(u.Failed)
	}
	return n
}

func suspended(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }

func finished(job *batchv1.Job) bool {
	return api.JobIs(job, batchv1.JobComplete) || api.JobIs(job, batchv1.JobFailed)
}

// end is why a Job ends: FailureTarget or SuccessCriteriaMet first, Failed or Complete when its pods are gone.
type end struct {
	announce, final batchv1.JobConditionType
	reason, message string
}

// outcome returns how the Job ends, nil when it goes on.
func (v *view) outcome() *end {
	fail := func(reason, message string) *end {
		return &end{batchv1.JobFailureTarget, batchv1.JobFailed, reason, message}
	}
	succeed := func(reason, message string) *end {
		return &end{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete, reason, message}
	}
	spec := &v.job.Spec
	if c := api.JobCondition(v.job, batchv1.JobFailureTarget); c != nil {
		return fail(c.Reason, c.Message)
	}
	if c := api.JobCondition(v.job, batchv1.JobSuccessCriteriaMet); c != nil {
		return succeed(c.Reason, c.Message)
	}
	switch {
	case v.failJob != "":
		return fail(batchv1.JobReasonPodFailurePolicy, v.failJob)
	case spec.BackoffLimit != nil && (v.failedTotal() > int(*spec.BackoffLimit) || v.restartedTooOften()):
		return fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	}
	if left, ok := v.deadline(); ok && left <= 0 {
		return fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	}
	if spec.BackoffLimitPerIndex != nil {
		if spec.MaxFailedIndexes != nil && v.lost.count() > int(*spec.MaxFailedIndexes) {
			return fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
		}
		if len(v.lost) > 0 && v.lost.count()+v.done.count() >= int(*spec.Completions) {
			return fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
		}
	}
	if m := successRule(v.job, v.done); m != "" {
		return succeed(batchv1.JobReasonSuccessPolicy, m)
	}
	n := v.succeededTotal()
	if spec.Completions == nil && n > 0 && len(v.active) == 0 || spec.Completions != nil && n >= int(*spec.Completions) {
		return succeed(batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	}
	return nil
}

// restartedTooOften applies the backoff limit to containers that are restarted in place.
func (v *view) restartedTooOften() bool {
	if v.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := int32(0)
	for _, p := range v.active {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for _, c := range list {
				n += c.RestartCount
			}
		}
	}
	limit := *v.job.Spec.BackoffLimit
	return limit == 0 && n > 0 || limit > 0 && n >= limit
}

// deadline returns what is left of the Job's time, not ok when it has no deadline or is not running.
func (v *view) deadline() (time.Duration, bool) {
	s := v.job.Status.StartTime
	if v.job.Spec.ActiveDeadlineSeconds == nil || s == nil || suspended(v.job) {
		return 0, false
	}
	d := time.Duration(min(*v.job.Spec.ActiveDeadlineSeconds, math.MaxInt32)) * time.Second
	return s.Add(d).Sub(v.now), true
}

// change is what to do about pods.
type change struct {
	remove []*corev1.Pod // delete without counting
	create []birth
	after  time.Duration // when to try again what backs off now
}

// birth is a pod to create.
type birth struct {
	index    int // of indexed Jobs
	failures int // of that index
}

// want returns the changes that bring the number of active pods to what the Job asks for.
func (v *view) want() change {
	spec := &v.job.Spec
	if suspended(v.job) {
		return change{remove: v.active}
	}
	n := len(v.active)
	wanted := int(*spec.Parallelism)
	switch {
	case spec.Completions != nil:
		wanted = min(wanted, max(0, int(*spec.Completions)-v.succeededTotal()-v.lost.count()))
	case v.succeededTotal() > 0:
		wanted = min(wanted, n) // one succeeded: the others may end, none is added
	}
	if surplus := v.surplus(max(0, n-wanted)); len(surplus) > 0 {
		return change{remove: surplus}
	}
	if replaceFailedOnly(v.job) {
		n += len(v.terminating)
	}
	missing := min(wanted-n, batch)
	if missing <= 0 {
		return change{}
	}
	if indexed(v.job) {
		return v.pendingIndexes(missing)
	}
	if left := v.backoff(v.pods); left > 0 {
		return change{after: left}
	}
	return change{create: make([]birth, missing)}
}

// surplus returns at least n active pods to remove: doubles and those of no index, then the youngest and least ready.
func (v *view) surplus(n int) []*corev1.Pod {
	sorted := slices.Clone(v.active)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		yes := func(x bool) int {
			if x {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(yes(a.Spec.NodeName != ""), yes(b.Spec.NodeName != "")),
			cmp.Compare(yes(a.Status.Phase == corev1.PodRunning), yes(b.Status.Phase == corev1.PodRunning)),
			cmp.Compare(yes(api.PodReady(a)), yes(api.PodReady(b))), b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
			cmp.Compare(b.Name, a.Name))
	})
	var out, rest []*corev1.Pod
	if indexed(v.job) {
		seen := map[int]bool{}
		for _, p := range slices.Backward(sorted) { // of doubles, the one that is missed most stays
			ix, ok := indexOf(v.job, p)
			if !ok || seen[ix] || v.done.has(ix) || v.lost.has(ix) {
				out = append(out, p)
				continue
			}
			seen[ix] = true
			rest = append(rest, p)
		}
		slices.Reverse(rest)
	} else {
		rest = sorted
	}
	if more := n - len(out); more > 0 {
		out = append(out, rest[:more]...)
	}
	return out
}

// pendingIndexes returns the first n indexes that have no pod and have neither succeeded nor failed.
func (v *view) pendingIndexes(n int) change {
	var c change
	busy := map[int]bool{}
	taken := v.active
	if replaceFailedOnly(v.job) {
		taken = append(slices.Clone(taken), v.terminating...)
	}
	for _, p := range taken {
		if ix, ok := indexOf(v.job, p); ok {
			busy[ix] = true
		}
	}
	perIndex := v.job.Spec.BackoffLimitPerIndex != nil
	if !perIndex {
		if c.after = v.backoff(v.pods); c.after > 0 {
			return c
		}
	}
	for ix := v.pending(0); ix < int(*v.job.Spec.Completions) && len(c.create) < n; ix = v.pending(ix + 1) {
		if busy[ix] {
			continue
		}
		b := birth{index: ix}
		if h := v.held[ix]; perIndex && h != nil {
			b.failures = failuresOf(h) + 1
			if left := delay(b.failures) - v.now.Sub(endOf(h)); left > 0 {
				if c.after == 0 || left < c.after {
					c.after = left
				}
				continue
			}
		}
		c.create = append(c.create, b)
	}
	return c
}

// pending returns the first index from ix on that has neither succeeded nor failed.
func (v *view) pending(ix int) int {
	for v.done.has(ix) || v.lost.has(ix) {
		ix = v.lost.free(v.done.free(ix))
	}
	return ix
}

// backoff returns how long to wait after the failures since the last success.
func (v *view) backoff(pods []*corev1.Pod) time.Duration {
	var success, last time.Time
	for _, p := range pods {
		if t := endOf(p); p.Status.Phase == corev1.PodSucceeded && t.After(success) {
			success = t
		}
	}
	failures := 0
	for _, p := range pods {
		if p.Status.Phase != corev1.PodFailed || judge(v.job, p).action == batchv1.PodFailurePolicyActionIgnore {
			continue
		}
		if t := endOf(p); t.After(success) {
			failures++
			if t.After(last) {
				last = t
			}
		}
	}
	if failures == 0 {
		return 0
	}
	return max(0, delay(failures)-v.now.Sub(last))
}

func delay(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(lastBackoff, firstBackoff<<min(failures-1, 10))
}

// endOf returns when the pod ended, as well as can be known.
func endOf(p *corev1.Pod) time.Time {
	var t time.Time
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Terminated != nil && c.State.Terminated.FinishedAt.After(t) {
			t = c.State.Terminated.FinishedAt.Time
		}
	}
	if t.IsZero() {
		if c := api.PodCondition(p, corev1.PodReady); c != nil {
			t = c.LastTransitionTime.Time
		}
	}
	if t.IsZero() && p.DeletionTimestamp != nil {
		t = p.DeletionTimestamp.Time
	}
	if t.IsZero() {
		t = p.CreationTimestamp.Time
	}
	return t
}

// setCondition sets the condition in s. Its times are now where the status changes.
func setCondition(s *batchv1.JobStatus, t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) bool {
	at := metav1.NewTime(now)
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if c.Type != t {
			continue
		}
		if c.Status == status {
			return false
		}
		c.Status, c.Reason, c.Message, c.LastProbeTime, c.LastTransitionTime = status, reason, message, at, at
		return true
	}
	if status == corev1.ConditionFalse {
		return false
	}
	s.Conditions = append(s.Conditions, batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message,
		LastProbeTime: at, LastTransitionTime: at})
	return true
}
