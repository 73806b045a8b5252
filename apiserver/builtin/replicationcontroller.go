package builtin

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// replicationControllers orphan their pods when the client names no policy, as core/v1 always has.
func replicationControllers() *rest.Resource[*corev1.ReplicationController] {
	type rc = *corev1.ReplicationController
	doc, status := corev1.ReplicationControllerSpec{}.SwaggerDoc(), corev1.ReplicationControllerStatus{}.SwaggerDoc()
	return &rest.Resource[rc]{
		Orphan:   true,
		Name:     finalName,
		Default:  defaultReplicationController,
		Validate: validateReplicationController,
		ValidateStatus: func(now, _ rc) field.ErrorList {
			s := now.Status
			return replicaCounts(field.NewPath("status"), []count32{{"replicas", s.Replicas}, {"fullyLabeledReplicas", s.FullyLabeledReplicas},
				{"readyReplicas", s.ReadyReplicas}, {"availableReplicas", s.AvailableReplicas}}, s.ObservedGeneration)
		},
		Warn: func(now, old rc) []string {
			if now.Spec.Template == nil || old != nil && now.Generation == old.Generation {
				return nil
			}
			return append(podNameWarnings(now, old == nil), podspec.TemplateWarnings(now.Spec.Template, field.NewPath("spec", "template"))...)
		},
		Fields: func(c rc) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(c.Status.Replicas))}
		},
		Scale: &rest.Scale[rc]{
			Replicas: func(c rc) (int32, int32) { return deref(c.Spec.Replicas), c.Status.Replicas },
			Set:      func(c rc, n int32) { c.Spec.Replicas = &n },
			Selector: func(c rc) string { return labels.Set(c.Spec.Selector).String() },
		},
		Columns: []rest.Column[rc]{
			{Name: "Desired", Type: "integer", Description: doc["replicas"], Cell: func(c rc) any { return int64(deref(c.Spec.Replicas)) }},
			{Name: "Current", Type: "integer", Description: status["replicas"], Cell: func(c rc) any { return int64(c.Status.Replicas) }},
			{Name: "Ready", Type: "integer", Description: status["readyReplicas"], Cell: func(c rc) any { return int64(c.Status.ReadyReplicas) }},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(c rc) any { return containerNames(rcTemplate(c)) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(c rc) any { return containerImages(rcTemplate(c)) }},
			{Name: "Selector", Wide: true, Description: doc["selector"], Cell: func(c rc) any { return mapText(c.Spec.Selector) }},
		},
	}
}

func rcTemplate(c *corev1.ReplicationController) *corev1.PodTemplateSpec {
	if c.Spec.Template == nil {
		return &corev1.PodTemplateSpec{}
	}
	return c.Spec.Template
}

// defaultReplicationController lets the labels of the template be those of the controller, and what it selects.
func defaultReplicationController(c *corev1.ReplicationController) {
	setPtr(&c.Spec.Replicas, int32(1))
	t := c.Spec.Template
	if t == nil {
		return
	}
	if t.Labels != nil {
		if len(c.Spec.Selector) == 0 {
			c.Spec.Selector = maps.Clone(t.Labels)
		}
		if len(c.Labels) == 0 {
			c.Labels = maps.Clone(t.Labels)
		}
	}
	podspec.Default(&t.Spec)
}

func validateReplicationController(c *corev1.ReplicationController) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	at := spec.Child("template")
	errs = append(errs, notNegative(c.Spec.MinReadySeconds, spec.Child("minReadySeconds"))...)
	if len(c.Spec.Selector) == 0 {
		errs = append(errs, field.Required(spec.Child("selector"), ""))
	}
	errs = append(errs, notNegativePtr(c.Spec.Replicas, spec.Child("replicas"))...)
	t := c.Spec.Template
	if t == nil {
		return append(errs, field.Required(at, ""))
	}
	if !labels.Set(c.Spec.Selector).AsSelector().Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(at.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	return append(errs, runningTemplate(t, at, "ReplicationController")...)
}
