package api

import (
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// JobCondition returns the Job's condition of that type, nil if it has none. It is shared like j.
func JobCondition(j *batchv1.Job, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range j.Status.Conditions {
		if j.Status.Conditions[i].Type == t {
			return &j.Status.Conditions[i]
		}
	}
	return nil
}

// JobIs says whether the Job's condition of that type is true.
func JobIs(j *batchv1.Job, t batchv1.JobConditionType) bool {
	c := JobCondition(j, t)
	return c != nil && c.Status == corev1.ConditionTrue
}
