package builtin

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// Limits of Jobs.
const (
	maxIndexedParallelism = 100000
	manyCompletions       = 100000
	maxManyParallelism    = 10000
	maxManyFailed         = 10000
	maxFailedIndexes      = 100000
	maxPolicyRules        = 20
	maxPolicyCodes        = 255
	maxPolicyConditions   = 20
	maxManagedBy          = 63
	maxSucceededIndexes   = 64 * 1024
)

func validateJob(j *batchv1.Job) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if j.Spec.Selector == nil {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	} else {
		errs = append(errs, podspec.Selector(j.Spec.Selector, spec.Child("selector"))...)
	}
	errs = append(errs, selectsTemplate(&j.Spec.Template, j.Spec.Selector, spec)...)
	return append(errs, jobSpec(&j.Spec, spec)...)
}

// jobSpec checks the spec of a Job or of a template of them, which has no selector yet.
func jobSpec(s *batchv1.JobSpec, spec *field.Path) (errs field.ErrorList) {
	errs = append(errs, notNegativePtr(s.Parallelism, spec.Child("parallelism"))...)
	errs = append(errs, notNegativePtr(s.Completions, spec.Child("completions"))...)
	errs = append(errs, notNegativePtr(s.ActiveDeadlineSeconds, spec.Child("activeDeadlineSeconds"))...)
	errs = append(errs, notNegativePtr(s.BackoffLimit, spec.Child("backoffLimit"))...)
	errs = append(errs, notNegativePtr(s.TTLSecondsAfterFinished, spec.Child("ttlSecondsAfterFinished"))...)
	errs = append(errs, notNegativePtr(s.BackoffLimitPerIndex, spec.Child("backoffLimitPerIndex"))...)
	errs = append(errs, notNegativePtr(s.MaxFailedIndexes, spec.Child("maxFailedIndexes"))...)
	errs = append(errs, completionMode(s, spec)...)
	errs = append(errs, managedBy(s, spec)...)
	errs = append(errs, failurePolicy(s, spec)...)
	errs = append(errs, successPolicy(s, spec)...)
	if p := s.PodReplacementPolicy; p != nil {
		at := spec.Child("podReplacementPolicy")
		if s.PodFailurePolicy != nil {
			errs = append(errs, known(at, *p, batchv1.Failed)...)
		} else {
			errs = append(errs, known(at, *p, batchv1.TerminatingOrFailed, batchv1.Failed)...)
		}
	}
	if s.Scheduling != nil {
		errs = append(errs, field.Forbidden(spec.Child("scheduling"), "not supported by this release"))
	}
	errs = append(errs, podspec.Template(&s.Template, spec.Child("template"))...)
	at := spec.Child("template", "spec", "restartPolicy")
	switch p := s.Template.Spec.RestartPolicy; {
	case p == corev1.RestartPolicyAlways || p == "":
		errs = append(errs, field.Required(at, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	case p != corev1.RestartPolicyOnFailure && p != corev1.RestartPolicyNever:
		errs = append(errs, field.NotSupported(at, p, []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}))
	case s.PodFailurePolicy != nil && p != corev1.RestartPolicyNever:
		errs = append(errs, field.Invalid(at, p, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
	}
	return errs
}

// generatedSelector checks that what ties pods to the Job is what the API server made.
func generatedSelector(j *batchv1.Job) (errs field.ErrorList) {
	if deref(j.Spec.ManualSelector) || j.Spec.Selector == nil {
		return nil
	}
	labels := field.NewPath("spec", "template", "metadata", "labels")
	expect := func(key, value string) {
		switch got, ok := j.Spec.Template.Labels[key]; {
		case !ok:
			errs = append(errs, field.Required(labels.Key(key), fmt.Sprintf("must be '%s'", value)))
		case got != value:
			errs = append(errs, field.Invalid(labels.Key(key), got, fmt.Sprintf("must be '%s'", value)))
		}
	}
	expect(batchv1.ControllerUidLabel, string(j.UID))
	expect(batchv1.JobNameLabel, j.Name)
	made := map[string]string{batchv1.ControllerUidLabel: string(j.UID), oldControllerUID: string(j.UID), batchv1.JobNameLabel: j.Name, oldJobName: j.Name}
	if len(podspec.Selector(j.Spec.Selector, nil)) == 0 && !podspec.SelectorMatches(j.Spec.Selector, made) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "selector"), j.Spec.Selector, "`selector` not auto-generated"))
	}
	return errs
}

func completionMode(s *batchv1.JobSpec, spec *field.Path) (errs field.ErrorList) {
	mode := deref(s.CompletionMode)
	if s.CompletionMode != nil && mode != batchv1.NonIndexedCompletion && mode != batchv1.IndexedCompletion {
		errs = append(errs, field.NotSupported(spec.Child("completionMode"), mode, []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}))
	}
	if s.CompletionMode == nil || mode == batchv1.NonIndexedCompletion {
		if s.BackoffLimitPerIndex != nil {
			errs = append(errs, field.Invalid(spec.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
		}
		if s.MaxFailedIndexes != nil {
			errs = append(errs, field.Invalid(spec.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "requires indexed completion mode"))
		}
	}
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(spec.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	if mode != batchv1.IndexedCompletion {
		return errs
	}
	if s.Completions == nil {
		errs = append(errs, field.Required(spec.Child("completions"), "when completion mode is "+string(batchv1.IndexedCompletion)))
	}
	if p := deref(s.Parallelism); p > maxIndexedParallelism {
		errs = append(errs, field.Invalid(spec.Child("parallelism"), p, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion)))
	}
	if m := s.MaxFailedIndexes; m != nil {
		if s.Completions != nil && *m > *s.Completions {
			errs = append(errs, field.Invalid(spec.Child("maxFailedIndexes"), *m, "must be less than or equal to completions"))
		}
		if *m > maxFailedIndexes {
			errs = append(errs, field.Invalid(spec.Child("maxFailedIndexes"), *m, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes)))
		}
	}
	if s.BackoffLimitPerIndex == nil || deref(s.Completions) <= manyCompletions {
		return errs
	}
	if s.MaxFailedIndexes == nil {
		errs = append(errs, field.Required(spec.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
	} else if *s.MaxFailedIndexes > maxManyFailed {
		errs = append(errs, field.Invalid(spec.Child("maxFailedIndexes"), *s.MaxFailedIndexes, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxManyFailed, manyCompletions)))
	}
	if p := deref(s.Parallelism); p > maxManyParallelism {
		errs = append(errs, field.Invalid(spec.Child("parallelism"), p, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxManyParallelism, manyCompletions)))
	}
	return errs
}

func managedBy(s *batchv1.JobSpec, spec *field.Path) field.ErrorList {
	if s.ManagedBy == nil {
		return nil
	}
	errs := validation.IsDomainPrefixedPath(spec.Child("managedBy"), *s.ManagedBy)
	if len(*s.ManagedBy) > maxManagedBy {
		errs = append(errs, field.TooLongMaxLength(spec.Child("managedBy"), *s.ManagedBy, maxManagedBy))
	}
	return errs
}

func failurePolicy(s *batchv1.JobSpec, spec *field.Path) (errs field.ErrorList) {
	if s.PodFailurePolicy == nil {
		return nil
	}
	rules := spec.Child("podFailurePolicy", "rules")
	if n := len(s.PodFailurePolicy.Rules); n > maxPolicyRules {
		errs = append(errs, field.TooMany(rules, n, maxPolicyRules))
	}
	for i := range s.PodFailurePolicy.Rules {
		r, at := &s.PodFailurePolicy.Rules[i], rules.Index(i)
		if r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		}
		errs = append(errs, valued(at.Child("action"), r.Action, batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
			batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore)...)
		switch {
		case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
		case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
		}
		if r.OnExitCodes != nil {
			errs = append(errs, exitCodes(r.OnExitCodes, &s.Template.Spec, at.Child("onExitCodes"))...)
		}
		if n := len(r.OnPodConditions); n > maxPolicyConditions {
			errs = append(errs, field.TooMany(at.Child("onPodConditions"), n, maxPolicyConditions))
		}
		for k, c := range r.OnPodConditions {
			p := at.Child("onPodConditions").Index(k)
			errs = append(errs, texts(p.Child("type"), string(c.Type), validation.IsQualifiedName(string(c.Type)))...)
			errs = append(errs, valued(p.Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
		}
	}
	return errs
}

// valued is known with the allowed values also where none is given.
func valued[T ~string](at *field.Path, value T, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(at, fmt.Sprintf("valid values: %q", allowed))}
	}
	return known(at, value, allowed...)
}

func exitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, spec *corev1.PodSpec, at *field.Path) (errs field.ErrorList) {
	errs = valued(at.Child("operator"), r.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
	if r.ContainerName != nil {
		named := func(c corev1.Container) bool { return c.Name == *r.ContainerName }
		if !slices.ContainsFunc(spec.Containers, named) && !slices.ContainsFunc(spec.InitContainers, named) {
			errs = append(errs, field.Invalid(at.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template"))
		}
	}
	values := at.Child("values")
	switch n := len(r.Values); {
	case n == 0:
		errs = append(errs, field.Invalid(values, r.Values, "at least one value is required"))
	case n > maxPolicyCodes:
		errs = append(errs, field.TooMany(values, n, maxPolicyCodes))
	}
	seen := map[int32]bool{}
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			errs = append(errs, field.Invalid(values.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen[v] {
			errs = append(errs, field.Duplicate(values.Index(i), v))
		}
		seen[v] = true
	}
	if !slices.IsSorted(r.Values) {
		errs = append(errs, field.Invalid(values, r.Values, "must be ordered"))
	}
	return errs
}

func successPolicy(s *batchv1.JobSpec, spec *field.Path) (errs field.ErrorList) {
	p := s.SuccessPolicy
	if p == nil {
		return nil
	}
	at := spec.Child("successPolicy")
	if deref(s.CompletionMode) != batchv1.IndexedCompletion {
		return field.ErrorList{field.Invalid(at, *p, "requires indexed completion mode")}
	}
	rules := at.Child("rules")
	switch n := len(p.Rules); {
	case n == 0:
		errs = append(errs, field.Required(rules, "at least one rules must be specified when the successPolicy is specified"))
	case n > maxPolicyRules:
		errs = append(errs, field.TooMany(rules, n, maxPolicyRules))
	}
	for i, r := range p.Rules {
		q, all, some := rules.Index(i), deref(s.Completions), int64(0)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(q, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		if text := r.SucceededIndexes; text != nil {
			if len(*text) > maxSucceededIndexes {
				errs = append(errs, field.TooLong(q.Child("succeededIndexes"), *text, maxSucceededIndexes))
			}
			var err error
			if some, err = indexes(*text, all); err != nil {
				errs = append(errs, field.Invalid(q.Child("succeededIndexes"), *text, "error parsing succeededIndexes: "+err.Error()))
			}
		}
		if n := r.SucceededCount; n != nil {
			errs = append(errs, notNegative(*n, q.Child("succeededCount"))...)
			if *n > all {
				errs = append(errs, field.Invalid(q.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", all)))
			}
			if r.SucceededIndexes != nil && int64(*n) > some {
				errs = append(errs, field.Invalid(q.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", some)))
			}
		}
	}
	return errs
}

func updateJob(now, old *batchv1.Job) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	errs = append(errs, completionsUpdate(&now.Spec, &old.Spec, spec)...)
	errs = append(errs, immutable(now.Spec.Selector, old.Spec.Selector, spec.Child("selector"))...)
	errs = append(errs, immutable(now.Spec.CompletionMode, old.Spec.CompletionMode, spec.Child("completionMode"))...)
	errs = append(errs, immutable(now.Spec.PodFailurePolicy, old.Spec.PodFailurePolicy, spec.Child("podFailurePolicy"))...)
	errs = append(errs, immutable(now.Spec.BackoffLimitPerIndex, old.Spec.BackoffLimitPerIndex, spec.Child("backoffLimitPerIndex"))...)
	errs = append(errs, immutable(now.Spec.ManagedBy, old.Spec.ManagedBy, spec.Child("managedBy"))...)
	errs = append(errs, immutable(now.Spec.SuccessPolicy, old.Spec.SuccessPolicy, spec.Child("successPolicy"))...)
	return append(errs, jobTemplateUpdate(now, old, spec)...)
}

// completionsUpdate lets an indexed Job grow and shrink when parallelism follows.
func completionsUpdate(now, old *batchv1.JobSpec, spec *field.Path) field.ErrorList {
	at := spec.Child("completions")
	if equality.Semantic.DeepEqual(now.Completions, old.Completions) {
		return nil
	}
	if deref(now.CompletionMode) != batchv1.IndexedCompletion || now.Completions == nil || old.Completions == nil {
		return immutable(now.Completions, old.Completions, at)
	}
	if deref(now.Parallelism) != *now.Completions {
		return field.ErrorList{field.Invalid(at, *now.Completions, fmt.Sprintf("can only be modified in tandem with %s", spec.Child("parallelism")))}
	}
	return nil
}

// jobTemplateUpdate lets a suspended Job that never ran be directed to other nodes.
func jobTemplateUpdate(now, old *batchv1.Job, spec *field.Path) field.ErrorList {
	want := old.Spec.Template.DeepCopy()
	if deref(old.Spec.Suspend) && old.Status.StartTime == nil {
		t := &now.Spec.Template
		want.Annotations, want.Labels = t.Annotations, t.Labels
		want.Spec.NodeSelector, want.Spec.Tolerations, want.Spec.SchedulingGates = t.Spec.NodeSelector, t.Spec.Tolerations, t.Spec.SchedulingGates
		switch is := t.Spec.Affinity; {
		case is != nil && want.Spec.Affinity != nil:
			want.Spec.Affinity.NodeAffinity = is.NodeAffinity
		case is != nil && is.PodAffinity == nil && is.PodAntiAffinity == nil:
			want.Spec.Affinity = is
		case is == nil && want.Spec.Affinity != nil && want.Spec.Affinity.PodAffinity == nil && want.Spec.Affinity.PodAntiAffinity == nil:
			want.Spec.Affinity = nil
		}
	}
	return immutable(&now.Spec.Template, want, spec.Child("template"))
}
