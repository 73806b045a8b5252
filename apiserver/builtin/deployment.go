package builtin

import (
	"maps"
	"math"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Defaults of Deployments.
const (
	revisionHistory  int32 = 10
	progressDeadline int32 = 600
	quarter                = "25%"
)

func deployments() *rest.Resource[*appsv1.Deployment] {
	type deploy = *appsv1.Deployment
	doc := appsv1.DeploymentStatus{}.SwaggerDoc()
	return &rest.Resource[deploy]{
		Default: defaultDeployment,
		Validate: func(d deploy) field.ErrorList {
			return append(deploymentSpec(d), workloadTemplate(&d.Spec.Template, d.Spec.Selector, field.NewPath("spec"), "ReplicaSet")...)
		},
		PrepareUpdate: func(now, old deploy) {
			if !maps.Equal(now.Annotations, old.Annotations) { // they are handed on to ReplicaSets
				now.Generation = old.Generation + 1
			}
		},
		PrepareStatus: func(now, old deploy) { now.Labels = old.Labels },
		Reset:         map[string][]string{"status": {"spec", "metadata.labels"}},
		ValidateUpdate: func(now, old deploy) field.ErrorList {
			return immutable(now.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		},
		ValidateStatus: func(now, old deploy) field.ErrorList {
			s, at := now.Status, field.NewPath("status")
			return replicaCounts(at, []count32{{"replicas", s.Replicas}, {"updatedReplicas", s.UpdatedReplicas},
				{"readyReplicas", s.ReadyReplicas}, {"availableReplicas", s.AvailableReplicas}, {"unavailableReplicas", s.UnavailableReplicas}},
				s.ObservedGeneration)
		},
		Warn: func(d, _ deploy) []string {
			return podspec.TemplateWarnings(&d.Spec.Template, field.NewPath("spec", "template"))
		},
		Scale: &rest.Scale[deploy]{
			Replicas: func(d deploy) (int32, int32) { return deref(d.Spec.Replicas), d.Status.Replicas },
			Set:      func(d deploy, n int32) { d.Spec.Replicas = &n },
			Selector: func(d deploy) string { return scaleSelector(d.Spec.Selector) },
		},
		Columns: []rest.Column[deploy]{
			{Name: "Ready", Description: "Number of the pod with ready state", Cell: func(d deploy) any {
				return fraction(int(d.Status.ReadyReplicas), int(deref(d.Spec.Replicas)))
			}},
			{Name: "Up-to-date", Description: doc["updatedReplicas"], Cell: func(d deploy) any { return int64(d.Status.UpdatedReplicas) }},
			{Name: "Available", Description: doc["availableReplicas"], Cell: func(d deploy) any { return int64(d.Status.AvailableReplicas) }},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(d deploy) any { return containerNames(&d.Spec.Template) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(d deploy) any { return containerImages(&d.Spec.Template) }},
			{Name: "Selector", Wide: true, Description: appsv1.DeploymentSpec{}.SwaggerDoc()["selector"], Cell: func(d deploy) any { return selectorText(d.Spec.Selector) }},
		},
	}
}

func defaultDeployment(d *appsv1.Deployment) {
	setPtr(&d.Spec.Replicas, int32(1))
	setPtr(&d.Spec.RevisionHistoryLimit, revisionHistory)
	setPtr(&d.Spec.ProgressDeadlineSeconds, progressDeadline)
	setDefault(&d.Spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		setPtr(&d.Spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		setPtr(&d.Spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString(quarter))
		setPtr(&d.Spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString(quarter))
	}
	podspec.Default(&d.Spec.Template.Spec)
}

func deploymentSpec(d *appsv1.Deployment) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	errs = append(errs, notNegativePtr(d.Spec.Replicas, spec.Child("replicas"))...)
	errs = append(errs, workloadSelector(d.Spec.Selector, spec.Child("selector"), "deployment")...)
	errs = append(errs, notNegative(d.Spec.MinReadySeconds, spec.Child("minReadySeconds"))...)
	errs = append(errs, notNegativePtr(d.Spec.RevisionHistoryLimit, spec.Child("revisionHistoryLimit"))...)
	if p := d.Spec.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, notNegative(*p, spec.Child("progressDeadlineSeconds"))...)
		// MaxInt32 means that there is no deadline.
		if *p <= d.Spec.MinReadySeconds && *p != math.MaxInt32 {
			errs = append(errs, field.Invalid(spec.Child("progressDeadlineSeconds"), *p, "must be greater than minReadySeconds"))
		}
	}
	strategy := spec.Child("strategy")
	rolling := d.Spec.Strategy.RollingUpdate
	switch d.Spec.Strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if rolling != nil {
			errs = append(errs, field.Forbidden(strategy.Child("rollingUpdate"), "may not be specified when strategy `type` is '"+string(appsv1.RecreateDeploymentStrategyType)+"'"))
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if rolling == nil {
			return append(errs, field.Required(strategy.Child("rollingUpdate"), "this should be defaulted and never be nil"))
		}
		errs = append(errs, surgeAndUnavailable(rolling.MaxSurge, rolling.MaxUnavailable, strategy.Child("rollingUpdate"))...)
		if zero(rolling.MaxUnavailable) && zero(rolling.MaxSurge) {
			errs = append(errs, field.Invalid(strategy.Child("rollingUpdate", "maxUnavailable"), rolling.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
		}
	default:
		errs = append(errs, field.NotSupported(strategy, d.Spec.Strategy, []appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType}))
	}
	return errs
}

// scaleSelector is a selector in the form that Scale carries.
func scaleSelector(s *metav1.LabelSelector) string {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return sel.String()
}
