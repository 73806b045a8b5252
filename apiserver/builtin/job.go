package builtin

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

const backoffLimit int32 = 6

// Old names of the labels that tie pods to their Job.
const (
	oldJobName       = "job-name"
	oldControllerUID = "controller-uid"
)

// jobs orphan their pods when the client names no policy, as batch/v1 always has.
func jobs() *rest.Resource[*batchv1.Job] {
	type job = *batchv1.Job
	return &rest.Resource[job]{
		Orphan:         true,
		OrphanWarning:  "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
		Default:        defaultJob,
		Prepare:        selectPods,
		Validate:       validateJob,
		ValidateCreate: generatedSelector,
		ValidateUpdate: updateJob,
		ValidateStatus: jobStatus,
		Warn: func(now, old job) []string {
			if old != nil && now.Generation == old.Generation {
				return nil
			}
			return append(podNameWarnings(now, old == nil), jobWarnings(&now.Spec, field.NewPath("spec"))...)
		},
		Fields: func(j job) fields.Set {
			return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
		},
		Columns: []rest.Column[job]{
			{Name: "Status", Description: "Status of the job.", Cell: func(j job) any { return jobState(j) }},
			{Name: "Completions", Description: batchv1.JobStatus{}.SwaggerDoc()["succeeded"], Cell: func(j job) any { return jobCompletions(j) }},
			{Name: "Duration", Description: "Time required to complete the job.", Cell: func(j job) any { return jobDuration(j) }},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(j job) any { return containerNames(&j.Spec.Template) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(j job) any { return containerImages(&j.Spec.Template) }},
			{Name: "Selector", Wide: true, Description: batchv1.JobSpec{}.SwaggerDoc()["selector"], Cell: func(j job) any { return selectorText(j.Spec.Selector) }},
		},
	}
}

func defaultJob(j *batchv1.Job) {
	s := &j.Spec
	// Without either number one pod is to succeed; with completions absent any pod's success is the Job's.
	if s.Completions == nil && s.Parallelism == nil {
		setPtr(&s.Completions, int32(1))
	}
	setPtr(&s.Parallelism, int32(1))
	if s.BackoffLimit == nil {
		limit := backoffLimit
		if s.BackoffLimitPerIndex != nil {
			limit = math.MaxInt32
		}
		s.BackoffLimit = &limit
	}
	if len(j.Labels) == 0 {
		j.Labels = maps.Clone(s.Template.Labels)
	}
	setPtr(&s.CompletionMode, batchv1.NonIndexedCompletion)
	setPtr(&s.Suspend, false)
	setPtr(&s.ManualSelector, false)
	replace := batchv1.TerminatingOrFailed
	if s.PodFailurePolicy != nil {
		replace = batchv1.Failed
		defaultFailurePolicy(s.PodFailurePolicy)
	}
	setPtr(&s.PodReplacementPolicy, replace)
	podspec.Default(&s.Template.Spec)
}

func defaultFailurePolicy(p *batchv1.PodFailurePolicy) {
	if p == nil {
		return
	}
	for i := range p.Rules {
		for k := range p.Rules[i].OnPodConditions {
			setDefault(&p.Rules[i].OnPodConditions[k].Status, corev1.ConditionTrue)
		}
	}
}

// jobWarnings are texts for whoever writes a Job or a template of them.
func jobWarnings(s *batchv1.JobSpec, at *field.Path) (warnings []string) {
	if deref(s.CompletionMode) == batchv1.IndexedCompletion && deref(s.Completions) > manyCompletions && deref(s.Parallelism) > maxManyParallelism {
		warnings = append(warnings, at.String()+": In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, "+
			"Kubernetes might not be able to track completedIndexes when a big number of indexes fail")
	}
	return append(warnings, podspec.TemplateWarnings(&s.Template, at.Child("template"))...)
}

// selectPods gives a new Job a selector that no other Job's pods match, unless its owner manages that.
func selectPods(j *batchv1.Job) {
	if deref(j.Spec.ManualSelector) {
		return
	}
	l := j.Spec.Template.Labels
	if l == nil {
		l = map[string]string{}
		j.Spec.Template.Labels = l
	}
	// A label that the client set itself stays, and validation says what is wrong with it.
	if _, ok := l[oldJobName]; !ok {
		l[oldJobName] = j.Name
	}
	if _, ok := l[batchv1.JobNameLabel]; !ok {
		l[batchv1.JobNameLabel] = j.Name
	}
	if _, ok := l[oldControllerUID]; !ok {
		l[oldControllerUID] = string(j.UID)
	}
	if _, ok := l[batchv1.ControllerUidLabel]; !ok {
		l[batchv1.ControllerUidLabel] = string(j.UID)
	}
	setPtr(&j.Spec.Selector, metav1.LabelSelector{})
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, ok := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
	if len(j.Labels) == 0 { // as every later write would do
		j.Labels = maps.Clone(l)
	}
}

func jobState(j *batchv1.Job) string {
	switch {
	case api.JobIs(j, batchv1.JobComplete):
		return "Complete"
	case api.JobIs(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case api.JobIs(j, batchv1.JobSuspended):
		return "Suspended"
	case api.JobIs(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case api.JobIs(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCompletions(j *batchv1.Job) string {
	if j.Spec.Completions != nil {
		return fraction(int(j.Status.Succeeded), int(*j.Spec.Completions))
	}
	if n := deref(j.Spec.Parallelism); n > 1 {
		return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, n)
	}
	return fmt.Sprintf("%d/1", j.Status.Succeeded)
}

func jobDuration(j *batchv1.Job) string {
	switch {
	case j.Status.StartTime == nil:
		return ""
	case j.Status.CompletionTime != nil:
		return duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
	}
	if c := api.JobCondition(j, batchv1.JobFailed); c != nil && c.Status == corev1.ConditionTrue {
		return duration.HumanDuration(c.LastTransitionTime.Sub(j.Status.StartTime.Time))
	}
	return duration.HumanDuration(time.Since(j.Status.StartTime.Time))
}

// indexes counts the indexes in the form "1,3-5", or says what is wrong with it. Most is the number of completions.
func indexes(text string, most int32) (n int64, err error) {
	if text == "" {
		return 0, nil
	}
	last := int64(-1)
	for part := range strings.SplitSeq(text, ",") {
		first, second, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseInt(first, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("cannot convert string to integer for index: %q", first)
		}
		to := from
		if isRange {
			if to, err = strconv.ParseInt(second, 10, 32); err != nil {
				return 0, fmt.Errorf("cannot convert string to integer for index: %q", second)
			}
			if to <= from {
				return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", from, to)
			}
		}
		if from <= last {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, from)
		}
		if to >= int64(most) {
			return 0, fmt.Errorf("too large index: %q", part)
		}
		n, last = n+to-from+1, to
	}
	return n, nil
}
