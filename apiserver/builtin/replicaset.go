package builtin

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func replicaSets() *rest.Resource[*appsv1.ReplicaSet] {
	type set = *appsv1.ReplicaSet
	doc, status := appsv1.ReplicaSetSpec{}.SwaggerDoc(), appsv1.ReplicaSetStatus{}.SwaggerDoc()
	return &rest.Resource[set]{
		Default: func(s set) {
			setPtr(&s.Spec.Replicas, int32(1))
			podspec.Default(&s.Spec.Template.Spec)
		},
		Validate: func(s set) (errs field.ErrorList) {
			spec := field.NewPath("spec")
			errs = append(errs, notNegativePtr(s.Spec.Replicas, spec.Child("replicas"))...)
			errs = append(errs, notNegative(s.Spec.MinReadySeconds, spec.Child("minReadySeconds"))...)
			errs = append(errs, workloadSelector(s.Spec.Selector, spec.Child("selector"), "replicaset")...)
			return append(errs, workloadTemplate(&s.Spec.Template, s.Spec.Selector, spec, "ReplicaSet")...)
		},
		ValidateUpdate: func(now, old set) field.ErrorList {
			return immutable(now.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		},
		ValidateStatus: func(now, _ set) field.ErrorList {
			s := now.Status
			return replicaCounts(field.NewPath("status"), []count32{{"replicas", s.Replicas}, {"fullyLabeledReplicas", s.FullyLabeledReplicas},
				{"readyReplicas", s.ReadyReplicas}, {"availableReplicas", s.AvailableReplicas}}, s.ObservedGeneration)
		},
		Scale: &rest.Scale[set]{
			Replicas: func(s set) (int32, int32) { return deref(s.Spec.Replicas), s.Status.Replicas },
			Set:      func(s set, n int32) { s.Spec.Replicas = &n },
			Selector: func(s set) string { return scaleSelector(s.Spec.Selector) },
		},
		Columns: []rest.Column[set]{
			{Name: "Desired", Type: "integer", Description: doc["replicas"], Cell: func(s set) any { return int64(deref(s.Spec.Replicas)) }},
			{Name: "Current", Type: "integer", Description: status["replicas"], Cell: func(s set) any { return int64(s.Status.Replicas) }},
			{Name: "Ready", Type: "integer", Description: status["readyReplicas"], Cell: func(s set) any { return int64(s.Status.ReadyReplicas) }},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(s set) any { return containerNames(&s.Spec.Template) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(s set) any { return containerImages(&s.Spec.Template) }},
			{Name: "Selector", Wide: true, Description: doc["selector"], Cell: func(s set) any { return selectorText(s.Spec.Selector) }},
		},
	}
}
