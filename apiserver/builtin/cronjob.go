package builtin

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // hosts may have no time zones

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	successfulJobs int32 = 3
	failedJobs     int32 = 1
	// jobTime is the length of what the controller appends to a CronJob's name for that of a Job.
	jobTime = 11
)

func cronJobs() *rest.Resource[*batchv1.CronJob] {
	type cronJob = *batchv1.CronJob
	doc, status := batchv1.CronJobSpec{}.SwaggerDoc(), batchv1.CronJobStatus{}.SwaggerDoc()
	template := func(c cronJob) *corev1.PodTemplateSpec { return &c.Spec.JobTemplate.Spec.Template }
	schedule := field.NewPath("spec", "schedule")
	return &rest.Resource[cronJob]{
		Default:  defaultCronJob,
		Validate: validateCronJob,
		ValidateCreate: func(c cronJob) (errs field.ErrorList) {
			if len(c.Name) > validation.DNS1035LabelMaxLength-jobTime {
				errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters"))
			}
			errs = append(errs, zoneOutside(c.Spec.Schedule, schedule)...)
			return append(errs, timeZone(c.Spec.TimeZone, field.NewPath("spec", "timeZone"))...)
		},
		ValidateUpdate: func(now, old cronJob) (errs field.ErrorList) {
			switch text := now.Spec.Schedule; {
			case !strings.Contains(old.Spec.Schedule, "TZ"):
				errs = append(errs, zoneOutside(text, schedule)...)
			case strings.Contains(text, "TZ") && now.Spec.TimeZone != nil:
				errs = append(errs, field.Invalid(schedule, text, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
			}
			if is, was := now.Spec.TimeZone, old.Spec.TimeZone; was == nil || is == nil || *is != *was {
				errs = append(errs, timeZone(is, field.NewPath("spec", "timeZone"))...)
			}
			return errs
		},
		Warn: func(now, old cronJob) (warnings []string) {
			if old == nil || now.Generation != old.Generation {
				warnings = append(podNameWarnings(now, old == nil), jobWarnings(&now.Spec.JobTemplate.Spec, field.NewPath("spec", "jobTemplate", "spec"))...)
			}
			if old != nil && strings.Contains(now.Spec.Schedule, "TZ") {
				warnings = append(warnings, "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, "+
					"see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
			}
			return warnings
		},
		Columns: []rest.Column[cronJob]{
			{Name: "Schedule", Description: doc["schedule"], Cell: func(c cronJob) any { return c.Spec.Schedule }},
			{Name: "Timezone", Description: doc["timeZone"], Cell: func(c cronJob) any {
				if c.Spec.TimeZone == nil {
					return none
				}
				return *c.Spec.TimeZone
			}},
			{Name: "Suspend", Type: "boolean", Description: doc["suspend"], Cell: func(c cronJob) any {
				if c.Spec.Suspend == nil {
					return unset
				}
				return yesNo(*c.Spec.Suspend)
			}},
			{Name: "Active", Type: "integer", Description: status["active"], Cell: func(c cronJob) any { return int64(len(c.Status.Active)) }},
			{Name: "Last Schedule", Description: status["lastScheduleTime"], Cell: func(c cronJob) any {
				if c.Status.LastScheduleTime == nil {
					return none
				}
				return ago(c.Status.LastScheduleTime.Time)
			}},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(c cronJob) any { return containerNames(template(c)) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(c cronJob) any { return containerImages(template(c)) }},
			{Name: "Selector", Wide: true, Description: batchv1.JobSpec{}.SwaggerDoc()["selector"], Cell: func(c cronJob) any { return selectorText(c.Spec.JobTemplate.Spec.Selector) }},
		},
	}
}

func defaultCronJob(c *batchv1.CronJob) {
	setDefault(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	setPtr(&c.Spec.Suspend, false)
	setPtr(&c.Spec.SuccessfulJobsHistoryLimit, successfulJobs)
	setPtr(&c.Spec.FailedJobsHistoryLimit, failedJobs)
	// The Jobs get their own defaults when they are made.
	defaultFailurePolicy(c.Spec.JobTemplate.Spec.PodFailurePolicy)
	podspec.Default(&c.Spec.JobTemplate.Spec.Template.Spec)
}

func validateCronJob(c *batchv1.CronJob) (errs field.ErrorList) {
	at := field.NewPath("spec")
	s := &c.Spec
	if s.Schedule == "" {
		errs = append(errs, field.Required(at.Child("schedule"), ""))
	} else if err := parseSchedule(s.Schedule); err != nil {
		errs = append(errs, field.Invalid(at.Child("schedule"), s.Schedule, err.Error()))
	}
	errs = append(errs, notNegativePtr(s.StartingDeadlineSeconds, at.Child("startingDeadlineSeconds"))...)
	errs = append(errs, oneOf(at.Child("concurrencyPolicy"), s.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	job := at.Child("jobTemplate", "spec")
	errs = append(errs, jobSpec(&s.JobTemplate.Spec, job)...)
	if sel := s.JobTemplate.Spec.Selector; sel != nil {
		errs = append(errs, field.Invalid(job.Child("selector"), sel, "`selector` will be auto-generated"))
	}
	if m := s.JobTemplate.Spec.ManualSelector; deref(m) {
		errs = append(errs, field.NotSupported(job.Child("manualSelector"), m, []string{"nil", "false"}))
	}
	errs = append(errs, notNegativePtr(s.SuccessfulJobsHistoryLimit, at.Child("successfulJobsHistoryLimit"))...)
	return append(errs, notNegativePtr(s.FailedJobsHistoryLimit, at.Child("failedJobsHistoryLimit"))...)
}

// parseSchedule checks the five fields of a schedule, or a name such as @daily. The library panics on some time zones.
func parseSchedule(text string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	_, err = cron.ParseStandard(text)
	return err
}

// zoneOutside refuses a schedule that brings its own time zone.
func zoneOutside(schedule string, at *field.Path) field.ErrorList {
	if !strings.Contains(schedule, "TZ") {
		return nil
	}
	return field.ErrorList{field.Invalid(at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")}
}

// zonePart is one part of a time zone's name: neither part can lead out of the folder of time zones.
var zonePart = regexp.MustCompile(`^[A-Za-z.\-_0-9+]{1,14}$`)

func timeZone(zone *string, at *field.Path) (errs field.ErrorList) {
	if zone == nil {
		return nil
	}
	if *zone == "" {
		return field.ErrorList{field.Invalid(at, zone, "timeZone must be nil or non-empty string")}
	}
	for part := range strings.SplitSeq(*zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !zonePart.MatchString(part) {
			return field.ErrorList{field.Invalid(at, zone, "unknown time zone "+*zone)}
		}
	}
	if strings.EqualFold(*zone, "Local") {
		errs = append(errs, field.Invalid(at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"))
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		errs = append(errs, field.Invalid(at, zone, err.Error()))
	}
	return errs
}
