package podspec

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DefaultClaim fills in what a claim for a volume leaves out.
func DefaultClaim(s *corev1.PersistentVolumeClaimSpec) {
	setPtr(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	RoundUp(s.Resources.Limits)
	RoundUp(s.Resources.Requests)
}

// Claim checks a claim for a volume: one of its own, a template of them or that of an ephemeral volume.
func Claim(s *corev1.PersistentVolumeClaimSpec, path *field.Path) (errs field.ErrorList) {
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(path.Child("accessModes"), "at least 1 access mode is required"))
	}
	errs = append(errs, Selector(s.Selector, path.Child("selector"))...)
	errs = append(errs, AccessModes(s.AccessModes, path.Child("accessModes"))...)
	at := path.Child("resources").Key(string(corev1.ResourceStorage))
	switch size, ok := s.Resources.Requests[corev1.ResourceStorage]; {
	case !ok:
		errs = append(errs, field.Required(at, ""))
	case size.Sign() <= 0:
		errs = append(errs, field.Invalid(at, size.String(), "must be greater than zero"))
	}
	errs = append(errs, className(s.StorageClassName, path.Child("storageClassName"))...)
	errs = append(errs, VolumeMode(s.VolumeMode, path.Child("volumeMode"))...)
	errs = append(errs, dataSources(s, path)...)
	return append(errs, className(s.VolumeAttributesClassName, path.Child("volumeAttributesClassName"))...)
}

func className(name *string, at *field.Path) field.ErrorList {
	if name == nil || *name == "" {
		return nil
	}
	return texts(at, *name, isName(*name))
}

// AccessModes checks how a volume may be mounted.
func AccessModes(modes []corev1.PersistentVolumeAccessMode, at *field.Path) (errs field.ErrorList) {
	known := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	one, other := false, false
	for _, m := range modes {
		switch {
		case !slices.Contains(known, m):
			errs = append(errs, field.NotSupported(at, m, known))
		case m == corev1.ReadWriteOncePod:
			one = true
		default:
			other = true
		}
	}
	if one && other {
		errs = append(errs, field.Forbidden(at, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

// VolumeMode checks whether a volume is a file system or a device.
func VolumeMode(m *corev1.PersistentVolumeMode, at *field.Path) field.ErrorList {
	known := []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}
	if m == nil || slices.Contains(known, *m) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, *m, known)}
}

// dataSources checks what a volume is filled from: two fields that mean the same, the newer one also across namespaces.
func dataSources(s *corev1.PersistentVolumeClaimSpec, path *field.Path) (errs field.ErrorList) {
	old, ref := s.DataSource, s.DataSourceRef
	if old != nil {
		errs = append(errs, dataSource(old.APIGroup, old.Kind, old.Name, path.Child("dataSource"))...)
	}
	if ref == nil {
		return errs
	}
	errs = append(errs, dataSource(ref.APIGroup, ref.Kind, ref.Name, path.Child("dataSourceRef"))...)
	across := ref.Namespace != nil && *ref.Namespace != ""
	if across {
		errs = append(errs, texts(path.Child("dataSourceRef", "namespace"), *ref.Namespace, validation.IsDNS1123Label(*ref.Namespace))...)
	}
	switch {
	case old == nil:
	case across:
		errs = append(errs, field.Invalid(path, path.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified"))
	case !equality.Semantic.DeepEqual(old.APIGroup, ref.APIGroup) || old.Kind != ref.Kind || old.Name != ref.Name:
		errs = append(errs, field.Invalid(path, path.Child("dataSource"), "must match dataSourceRef"))
	}
	return errs
}

func dataSource(group *string, kind, name string, at *field.Path) field.ErrorList {
	errs := append(required(at.Child("name"), name), required(at.Child("kind"), kind)...)
	switch {
	case group != nil && *group != "":
		errs = append(errs, texts(at.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group))...)
	case kind != "PersistentVolumeClaim":
		errs = append(errs, field.Invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
	}
	return errs
}

// TemplateMeta lets a template have labels and annotations and no other metadata.
func TemplateMeta(m *metav1.ObjectMeta, at *field.Path) field.ErrorList {
	errs := apivalidation.ValidateAnnotations(m.Annotations, at.Child("annotations"))
	errs = append(errs, metavalidation.ValidateLabels(m.Labels, at.Child("labels"))...)
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"name", m.Name != ""}, {"generateName", m.GenerateName != ""}, {"namespace", m.Namespace != ""}, {"selfLink", m.SelfLink != ""},
		{"uID", m.UID != ""}, {"resourceVersion", m.ResourceVersion != ""}, {"generation", m.Generation != 0},
		{"creationTimestamp", !m.CreationTimestamp.IsZero()}, {"deletionTimestamp", m.DeletionTimestamp != nil},
		{"deletionGracePeriodSeconds", m.DeletionGracePeriodSeconds != nil}, {"ownerReferences", m.OwnerReferences != nil},
		{"finalizers", m.Finalizers != nil}, {"managedFields", m.ManagedFields != nil},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(at.Child(f.name), "cannot be set"))
		}
	}
	return errs
}

// ClaimWarnings are texts for whoever makes a claim.
func ClaimWarnings(s *corev1.PersistentVolumeClaimSpec, path *field.Path) (warnings []string) {
	for _, r := range []struct {
		name string
		list corev1.ResourceList
	}{{"requests", s.Resources.Requests}, {"limits", s.Resources.Limits}} {
		if q := r.list[corev1.ResourceStorage]; q.MilliValue()%1000 != 0 {
			warnings = append(warnings, strings.Join([]string{path.Child("resources", r.name).Key(string(corev1.ResourceStorage)).String(),
				": fractional byte value \"", q.String(), "\" is invalid, must be an integer"}, ""))
		}
	}
	return warnings
}
