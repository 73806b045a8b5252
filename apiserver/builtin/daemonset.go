package builtin

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func daemonSets() *rest.Resource[*appsv1.DaemonSet] {
	type set = *appsv1.DaemonSet
	doc := appsv1.DaemonSetStatus{}.SwaggerDoc()
	n := func(name, key string, value func(s *appsv1.DaemonSetStatus) int32) rest.Column[set] {
		return rest.Column[set]{Name: name, Type: "integer", Description: doc[key], Cell: func(s set) any { return int64(value(&s.Status)) }}
	}
	return &rest.Resource[set]{
		Default: defaultDaemonSet,
		Validate: func(s set) field.ErrorList {
			return append(daemonSetSpec(s), workloadTemplate(&s.Spec.Template, s.Spec.Selector, field.NewPath("spec"), "DaemonSet")...)
		},
		ValidateUpdate: func(now, old set) field.ErrorList {
			return immutable(now.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		},
		ValidateStatus: func(now, _ set) field.ErrorList {
			s := now.Status
			return replicaCounts(field.NewPath("status"), []count32{{"currentNumberScheduled", s.CurrentNumberScheduled},
				{"numberMisscheduled", s.NumberMisscheduled}, {"desiredNumberScheduled", s.DesiredNumberScheduled}, {"numberReady", s.NumberReady},
				{"updatedNumberScheduled", s.UpdatedNumberScheduled}, {"numberAvailable", s.NumberAvailable}, {"numberUnavailable", s.NumberUnavailable}},
				s.ObservedGeneration)
		},
		Columns: []rest.Column[set]{
			n("Desired", "desiredNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.DesiredNumberScheduled }),
			n("Current", "currentNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.CurrentNumberScheduled }),
			n("Ready", "numberReady", func(s *appsv1.DaemonSetStatus) int32 { return s.NumberReady }),
			n("Up-to-date", "updatedNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.UpdatedNumberScheduled }),
			n("Available", "numberAvailable", func(s *appsv1.DaemonSetStatus) int32 { return s.NumberAvailable }),
			{Name: "Node Selector", Description: corev1.PodSpec{}.SwaggerDoc()["nodeSelector"], Cell: func(s set) any { return mapText(s.Spec.Template.Spec.NodeSelector) }},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(s set) any { return containerNames(&s.Spec.Template) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(s set) any { return containerImages(&s.Spec.Template) }},
			{Name: "Selector", Wide: true, Description: appsv1.DaemonSetSpec{}.SwaggerDoc()["selector"], Cell: func(s set) any { return selectorText(s.Spec.Selector) }},
		},
	}
}

func defaultDaemonSet(s *appsv1.DaemonSet) {
	setPtr(&s.Spec.RevisionHistoryLimit, revisionHistory)
	setDefault(&s.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if s.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		setPtr(&s.Spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		setPtr(&s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		setPtr(&s.Spec.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	podspec.Default(&s.Spec.Template.Spec)
}

func daemonSetSpec(s *appsv1.DaemonSet) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	errs = append(errs, workloadSelector(s.Spec.Selector, spec.Child("selector"), "daemonset")...)
	errs = append(errs, notNegative(s.Spec.MinReadySeconds, spec.Child("minReadySeconds"))...)
	errs = append(errs, notNegativePtr(s.Spec.RevisionHistoryLimit, spec.Child("revisionHistoryLimit"))...)
	at := spec.Child("updateStrategy")
	errs = append(errs, oneOf(at, s.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType)...)
	if s.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
		return errs
	}
	rolling := s.Spec.UpdateStrategy.RollingUpdate
	if rolling == nil {
		return append(errs, field.Required(at.Child("rollingUpdate"), ""))
	}
	at = at.Child("rollingUpdate")
	errs = append(errs, surgeAndUnavailable(rolling.MaxSurge, rolling.MaxUnavailable, at)...)
	switch hasUnavailable, hasSurge := !zero(rolling.MaxUnavailable), !zero(rolling.MaxSurge); {
	case hasUnavailable && hasSurge:
		errs = append(errs, field.Invalid(at.Child("maxSurge"), rolling.MaxSurge, "may not be set when maxUnavailable is non-zero"))
	case !hasUnavailable && !hasSurge:
		errs = append(errs, field.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
	}
	return errs
}
