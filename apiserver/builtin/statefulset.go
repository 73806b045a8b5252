package builtin

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func statefulSets() *rest.Resource[*appsv1.StatefulSet] {
	type set = *appsv1.StatefulSet
	return &rest.Resource[set]{
		// The names of pods are made of it, and are host names.
		Name:           apivalidation.NameIsDNSLabel,
		Default:        defaultStatefulSet,
		ValidateCreate: validateClaimTemplates,
		Validate:       validateStatefulSet,
		ValidateUpdate: func(now, old set) (errs field.ErrorList) {
			at := field.NewPath("spec")
			errs = append(errs, immutable(now.Spec.Selector, old.Spec.Selector, at.Child("selector"))...)
			errs = append(errs, immutable(now.Spec.VolumeClaimTemplates, old.Spec.VolumeClaimTemplates, at.Child("volumeClaimTemplates"))...)
			errs = append(errs, immutable(now.Spec.ServiceName, old.Spec.ServiceName, at.Child("serviceName"))...)
			return append(errs, immutable(now.Spec.PodManagementPolicy, old.Spec.PodManagementPolicy, at.Child("podManagementPolicy"))...)
		},
		ValidateStatus: statefulSetStatus,
		Warn: func(now, old set) (warnings []string) {
			if old == nil || now.Generation != old.Generation {
				warnings = podspec.TemplateWarnings(&now.Spec.Template, field.NewPath("spec", "template"))
			}
			for i := range now.Spec.VolumeClaimTemplates {
				at := field.NewPath("spec", "volumeClaimTemplates").Index(i)
				if old != nil {
					at = at.Child("Spec") // as clients know it
				}
				warnings = append(warnings, podspec.ClaimWarnings(&now.Spec.VolumeClaimTemplates[i].Spec, at)...)
			}
			if deref(now.Spec.RevisionHistoryLimit) < 0 {
				warnings = append(warnings, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
			}
			return warnings
		},
		Scale: &rest.Scale[set]{
			Replicas: func(s set) (int32, int32) { return deref(s.Spec.Replicas), s.Status.Replicas },
			Set:      func(s set, n int32) { s.Spec.Replicas = &n },
			Selector: func(s set) string { return scaleSelector(s.Spec.Selector) },
		},
		Columns: []rest.Column[set]{
			{Name: "Ready", Description: "Number of the pod with ready state", Cell: func(s set) any {
				return fraction(int(s.Status.ReadyReplicas), int(deref(s.Spec.Replicas)))
			}},
			{Name: "Age"},
			{Name: "Containers", Wide: true, Description: "Names of each container in the template.", Cell: func(s set) any { return containerNames(&s.Spec.Template) }},
			{Name: "Images", Wide: true, Description: "Images referenced by each container in the template.", Cell: func(s set) any { return containerImages(&s.Spec.Template) }},
		},
	}
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	setDefault(&s.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	strategy := &s.Spec.UpdateStrategy
	if strategy.Type == "" {
		strategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
		setPtr(&strategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && strategy.RollingUpdate != nil {
		setPtr(&strategy.RollingUpdate.Partition, int32(0))
		setPtr(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	setPtr(&s.Spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	setDefault(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	setDefault(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	setPtr(&s.Spec.Replicas, int32(1))
	setPtr(&s.Spec.RevisionHistoryLimit, revisionHistory)
	for i := range s.Spec.VolumeClaimTemplates {
		c := &s.Spec.VolumeClaimTemplates[i]
		c.SetGroupVersionKind(api.PersistentVolumeClaimKind.GVK())
		defaultPersistentVolumeClaim(c)
	}
	podspec.Default(&s.Spec.Template.Spec)
}

// validateClaimTemplates checks what is never looked at again, since it cannot change.
func validateClaimTemplates(s *appsv1.StatefulSet) (errs field.ErrorList) {
	at := field.NewPath("spec")
	for i := range s.Spec.VolumeClaimTemplates {
		errs = append(errs, podspec.Claim(&s.Spec.VolumeClaimTemplates[i].Spec, at.Child("volumeClaimTemplates").Index(i).Child("spec"))...)
	}
	if n := s.Spec.ServiceName; n != "" {
		errs = append(errs, texts(at.Child("serviceName"), n, validation.IsDNS1123Label(n))...)
	}
	return errs
}

func validateStatefulSet(s *appsv1.StatefulSet) (errs field.ErrorList) {
	at := field.NewPath("spec")
	switch p := s.Spec.PodManagementPolicy; p {
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	case "":
		errs = append(errs, field.Required(at.Child("podManagementPolicy"), ""))
	default:
		errs = append(errs, field.Invalid(at.Child("podManagementPolicy"), p,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)))
	}
	errs = append(errs, statefulSetStrategy(&s.Spec.UpdateStrategy, at.Child("updateStrategy"))...)
	if p := s.Spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		policies := []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
		kept := func(name string, p appsv1.PersistentVolumeClaimRetentionPolicyType) (errs field.ErrorList) {
			if !slices.Contains(policies, p) {
				errs = append(errs, field.NotSupported(at.Child("persistentVolumeClaimRetentionPolicy", name), p, policies))
			}
			return errs
		}
		errs = append(errs, kept("whenDeleted", p.WhenDeleted)...)
		errs = append(errs, kept("whenScaled", p.WhenScaled)...)
	}
	errs = append(errs, notNegativePtr(s.Spec.Replicas, at.Child("replicas"))...)
	errs = append(errs, notNegative(s.Spec.MinReadySeconds, at.Child("minReadySeconds"))...)
	if o := s.Spec.Ordinals; o != nil {
		errs = append(errs, notNegative(o.Start, at.Child("ordinals.start"))...)
	}
	errs = append(errs, workloadSelector(s.Spec.Selector, at.Child("selector"), "statefulset")...)
	return append(errs, workloadTemplate(identified(s), s.Spec.Selector, at, "StatefulSet")...)
}

func statefulSetStrategy(s *appsv1.StatefulSetUpdateStrategy, at *field.Path) (errs field.ErrorList) {
	rolling := s.RollingUpdate
	switch s.Type {
	case "":
		return field.ErrorList{field.Required(at, "")}
	case appsv1.OnDeleteStatefulSetStrategyType:
		if rolling != nil {
			errs = append(errs, field.Invalid(at.Child("rollingUpdate"), rolling,
				fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType)))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if rolling == nil {
			return nil
		}
		errs = append(errs, notNegativePtr(rolling.Partition, at.Child("rollingUpdate", "partition"))...)
		if m := rolling.MaxUnavailable; m != nil {
			at := at.Child("rollingUpdate", "maxUnavailable")
			errs = append(errs, intOrPercent(m, at)...)
			if zero(m) {
				errs = append(errs, field.Invalid(at, *m, "cannot be 0"))
			}
			errs = append(errs, notAboveAll(m, at)...)
		}
	default:
		errs = append(errs, field.Invalid(at, *s, fmt.Sprintf("must be '%s' or '%s'", appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)))
	}
	return errs
}

// identified is the template with what the controller gives each pod: its own names in place of the template's, and the
// volumes of its claims.
func identified(s *appsv1.StatefulSet) *corev1.PodTemplateSpec {
	t := &s.Spec.Template
	if t.Spec.Subdomain == "" && t.Spec.Hostname == "" && len(s.Spec.VolumeClaimTemplates) == 0 {
		return t
	}
	t = t.DeepCopy()
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	if len(s.Spec.VolumeClaimTemplates) == 0 {
		return t
	}
	claimed := map[string]bool{}
	var volumes []corev1.Volume
	for _, c := range s.Spec.VolumeClaimTemplates {
		if !claimed[c.Name] {
			volumes = append(volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}}})
		}
		claimed[c.Name] = true
	}
	for _, v := range t.Spec.Volumes {
		if !claimed[v.Name] {
			volumes = append(volumes, v)
		}
	}
	t.Spec.Volumes = volumes
	return t
}

func statefulSetStatus(now, old *appsv1.StatefulSet) (errs field.ErrorList) {
	s, at := now.Status, field.NewPath("status")
	errs = replicaCounts(at, []count32{{"replicas", s.Replicas}, {"readyReplicas", s.ReadyReplicas}, {"currentReplicas", s.CurrentReplicas},
		{"updatedReplicas", s.UpdatedReplicas}, {"availableReplicas", s.AvailableReplicas}}, s.ObservedGeneration)
	for _, e := range errs {
		if e.Detail == aboveReady {
			e.Detail = "cannot be greater than status.readyReplicas"
		}
	}
	errs = append(errs, notNegativePtr(s.CollisionCount, at.Child("collisionCount"))...)
	if was := old.Status.CollisionCount; was != nil && (s.CollisionCount == nil || *s.CollisionCount < *was) {
		errs = append(errs, field.Invalid(at.Child("collisionCount"), deref(s.CollisionCount), "cannot be decremented"))
	}
	return errs
}
