package job

import (
	"fmt"
	"math"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what a Job's failure policy says of a failed pod.
type verdict struct {
	action  batchv1.PodFailurePolicyAction // Count without a rule
	message string                         // for FailJob
}

// judge applies the first rule of job's failure policy that matches the pod.
func judge(job *batchv1.Job, p *corev1.Pod) verdict {
	if job.Spec.PodFailurePolicy == nil || p.Status.Phase != corev1.PodFailed {
		return verdict{action: batchv1.PodFailurePolicyActionCount}
	}
	for i, r := range job.Spec.PodFailurePolicy.Rules {
		what := ""
		if r.OnExitCodes != nil {
			if c := exitMatch(r.OnExitCodes, p); c != nil {
				what = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d",
					c.Name, p.Namespace, p.Name, c.State.Terminated.ExitCode, r.Action, i)
			}
		} else if c := conditionMatch(r.OnPodConditions, p); c != nil {
			what = fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", p.Namespace, p.Name, c.Type, r.Action, i)
		}
		if what != "" {
			return verdict{r.Action, what}
		}
	}
	return verdict{action: batchv1.PodFailurePolicyActionCount}
}

// exitMatch returns the first container that failed with a code that the rule is about.
func exitMatch(r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *corev1.Pod) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			t := list[i].State.Terminated
			if t == nil || t.ExitCode == 0 || r.ContainerName != nil && *r.ContainerName != list[i].Name {
				continue
			}
			if slices.Contains(r.Values, t.ExitCode) == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return &list[i]
			}
		}
	}
	return nil
}

func conditionMatch(patterns []batchv1.PodFailurePolicyOnPodConditionsPattern, p *corev1.Pod) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		for _, want := range patterns {
			if c.Type == want.Type && c.Status == want.Status {
				return c
			}
		}
	}
	return nil
}

// successRule returns the message of the first rule of job's success policy that done fulfils, empty if none.
func successRule(job *batchv1.Job, done indexes) string {
	if job.Spec.SuccessPolicy == nil {
		return ""
	}
	for i, r := range job.Spec.SuccessPolicy.Rules {
		got, need := done.count(), math.MaxInt
		if r.SucceededIndexes != nil {
			wanted := parseIndexes(*r.SucceededIndexes, int(*job.Spec.Completions))
			got, need = wanted.common(done), wanted.count()
		}
		if r.SucceededCount != nil {
			need = int(*r.SucceededCount)
		}
		if got >= need {
			return fmt.Sprintf("Matched rules at index %d", i)
		}
	}
	return ""
}
