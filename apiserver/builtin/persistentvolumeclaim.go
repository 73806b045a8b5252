package builtin

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func persistentVolumeClaims() *rest.Resource[*corev1.PersistentVolumeClaim] {
	type pvc = *corev1.PersistentVolumeClaim
	doc, status := corev1.PersistentVolumeClaimSpec{}.SwaggerDoc(), corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()
	return &rest.Resource[pvc]{
		NoGeneration:  true,
		AnswerDeleted: true,
		Default:       defaultPersistentVolumeClaim,
		Prepare: func(c pvc) {
			c.Status.Phase = corev1.ClaimPending
			fillFrom(&c.Spec, &corev1.PersistentVolumeClaimSpec{})
		},
		PrepareUpdate:  func(now, old pvc) { fillFrom(&now.Spec, &old.Spec) },
		Validate:       func(c pvc) field.ErrorList { return podspec.Claim(&c.Spec, field.NewPath("spec")) },
		ValidateUpdate: updateClaim,
		PrepareStatus: func(now, old pvc) {
			if old.Status.HealthStatus == nil {
				now.Status.HealthStatus = nil // not on by default upstream
			}
		},
		ValidateStatus: claimStatus,
		Warn: func(c, _ pvc) (warnings []string) {
			if _, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
				warnings = append(warnings, "metadata.annotations["+corev1.BetaStorageClassAnnotation+`]: deprecated since v1.8; use "storageClassName" attribute instead`)
			}
			return append(warnings, podspec.ClaimWarnings(&c.Spec, field.NewPath("spec"))...)
		},
		Columns: []rest.Column[pvc]{
			{Name: "Status", Description: status["phase"], Cell: func(c pvc) any {
				if c.DeletionTimestamp != nil {
					return "Terminating"
				}
				return string(c.Status.Phase)
			}},
			{Name: "Volume", Description: doc["volumeName"], Cell: func(c pvc) any { return c.Spec.VolumeName }},
			{Name: "Capacity", Description: status["capacity"], Cell: func(c pvc) any {
				if c.Spec.VolumeName == "" {
					return ""
				}
				return c.Status.Capacity.Storage().String()
			}},
			{Name: "Access Modes", Description: status["accessModes"], Cell: func(c pvc) any {
				if c.Spec.VolumeName == "" {
					return ""
				}
				return modesText(c.Status.AccessModes)
			}},
			{Name: "StorageClass", Description: "StorageClass of the pvc", Cell: func(c pvc) any { return classOf(c.Annotations, c.Spec.StorageClassName) }},
			{Name: "VolumeAttributesClass", Description: "VolumeAttributesClass of the pvc", Cell: func(c pvc) any { return shown(c.Spec.VolumeAttributesClassName) }},
			{Name: "Age"},
			{Name: "VolumeMode", Wide: true, Description: doc["volumeMode"], Cell: func(c pvc) any { return shown(c.Spec.VolumeMode) }},
		},
	}
}

func defaultPersistentVolumeClaim(c *corev1.PersistentVolumeClaim) {
	setDefault(&c.Status.Phase, corev1.ClaimPending)
	podspec.DefaultClaim(&c.Spec)
	podspec.RoundUp(c.Status.Capacity)
	podspec.RoundUp(c.Status.AllocatedResources)
}

// fillFrom makes the two fields that say what a volume is filled from the same. Of the older one, anything but claims and
// snapshots was ignored before the newer came, and still is where only it is given.
func fillFrom(now, old *corev1.PersistentVolumeClaimSpec) {
	if r := now.DataSourceRef; r != nil && deref(r.Namespace) != "" && old.DataSourceRef == nil {
		now.DataSourceRef = nil // across namespaces: not on by default upstream
	}
	if old.DataSource == nil && old.DataSourceRef == nil && now.DataSourceRef == nil && now.DataSource != nil {
		s := now.DataSource
		claim := s.Kind == "PersistentVolumeClaim" && deref(s.APIGroup) == ""
		snapshot := s.Kind == "VolumeSnapshot" && deref(s.APIGroup) == "snapshot.storage.k8s.io"
		if !claim && !snapshot {
			now.DataSource = nil
		}
	}
	switch s, r := now.DataSource, now.DataSourceRef; {
	case s != nil && r == nil:
		now.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.APIGroup, Kind: s.Kind, Name: s.Name}
	case r != nil && s == nil && deref(r.Namespace) == "":
		now.DataSource = &corev1.TypedLocalObjectReference{APIGroup: r.APIGroup, Kind: r.Kind, Name: r.Name}
	}
}

// updateClaim lets the volume be named once, and a bound claim grow and change its class of attributes.
func updateClaim(now, old *corev1.PersistentVolumeClaim) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	is, was := now.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = is.VolumeName
	}
	wasClass, had := old.Annotations[corev1.BetaStorageClassAnnotation]
	isClass, has := now.Annotations[corev1.BetaStorageClassAnnotation]
	moved := had && was.StorageClassName == nil && is.StorageClassName != nil && *is.StorageClassName == wasClass && (!has || isClass == wasClass)
	switch {
	case moved: // from the annotation into the field
		is.StorageClassName = nil
	default:
		if isClass != wasClass {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations", corev1.BetaStorageClassAnnotation), isClass, "field is immutable"))
		}
		if is.StorageClassName != nil && was.StorageClassName == nil && (!had || *is.StorageClassName == wasClass) {
			is.StorageClassName = nil
		}
	}
	if now.Status.Phase == corev1.ClaimBound {
		if is.Resources.Requests != nil {
			is.Resources.Requests[corev1.ResourceStorage] = was.Resources.Requests[corev1.ResourceStorage]
		}
		is.VolumeAttributesClassName = was.VolumeAttributesClassName
	}
	if !equality.Semantic.DeepEqual(is, was) {
		errs = append(errs, field.Forbidden(spec, fmt.Sprintf(
			"spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(was, is))))
	}
	// A volume never shrinks; what was asked for in vain can be taken back.
	size, before := now.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(before) < 0 && size.Cmp(old.Status.Capacity[corev1.ResourceStorage]) <= 0 {
		errs = append(errs, field.Forbidden(spec.Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, immutable(now.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	if old.Status.CurrentVolumeAttributesClassName == nil || equality.Semantic.DeepEqual(now.Spec.VolumeAttributesClassName, old.Spec.VolumeAttributesClassName) {
		return errs
	}
	switch c := now.Spec.VolumeAttributesClassName; {
	case c == nil:
		errs = append(errs, field.Forbidden(spec.Child("volumeAttributesClassName"), "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil"))
	case *c == "":
		errs = append(errs, field.Forbidden(spec.Child("volumeAttributesClassName"), "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil"))
	}
	return errs
}

func claimStatus(now, _ *corev1.PersistentVolumeClaim) (errs field.ErrorList) {
	s, at := &now.Status, field.NewPath("status")
	for _, name := range slices.Sorted(maps.Keys(s.Capacity)) {
		errs = append(errs, notBelowZero(s.Capacity[name], at.Child("capacity").Key(string(name)))...)
	}
	states := at.Child("allocatedResourceStatuses")
	for _, name := range slices.Sorted(maps.Keys(s.AllocatedResourceStatuses)) {
		errs = append(errs, claimResource(name, states)...)
		allowed := []corev1.ClaimResourceStatus{corev1.PersistentVolumeClaimControllerResizeInfeasible, corev1.PersistentVolumeClaimControllerResizeInProgress,
			corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizePending}
		if !slices.Contains(allowed, s.AllocatedResourceStatuses[name]) {
			errs = append(errs, field.NotSupported(states, name, allowed))
		}
	}
	sizes := at.Child("allocatedResources")
	for _, name := range slices.Sorted(maps.Keys(s.AllocatedResources)) {
		if wrong := claimResource(name, sizes); len(wrong) > 0 {
			errs = append(errs, wrong...)
			continue
		}
		errs = append(errs, notBelowZero(s.AllocatedResources[name], sizes.Key(string(name)))...)
	}
	return errs
}

func claimResource(name corev1.ResourceName, at *field.Path) field.ErrorList {
	errs := texts(at, string(name), validation.IsQualifiedName(string(name)))
	if len(errs) == 0 && podspec.Native(name) && name != corev1.ResourceStorage {
		errs = append(errs, field.NotSupported(at, string(name), []corev1.ResourceName{corev1.ResourceStorage}))
	}
	return errs
}
