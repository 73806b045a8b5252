package builtin

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

func persistentVolumes() *rest.Resource[*corev1.PersistentVolume] {
	type pv = *corev1.PersistentVolume
	doc, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	return &rest.Resource[pv]{
		NoGeneration:  true,
		AnswerDeleted: true,
		Default:       defaultPersistentVolume,
		Prepare: func(v pv) {
			now := metav1.Now()
			v.Status.Phase, v.Status.LastPhaseTransitionTime = corev1.VolumePending, &now
		},
		Validate:       validatePersistentVolume,
		ValidateUpdate: updatePersistentVolume,
		PrepareStatus: func(now, old pv) {
			is, was := &now.Status, &old.Status
			switch {
			case is.Phase == was.Phase && is.LastPhaseTransitionTime == nil:
				is.LastPhaseTransitionTime = was.LastPhaseTransitionTime
			case is.Phase != was.Phase && (is.LastPhaseTransitionTime == nil || is.LastPhaseTransitionTime.Equal(was.LastPhaseTransitionTime)):
				t := metav1.Now()
				is.LastPhaseTransitionTime = &t
			}
		},
		Warn: func(v, _ pv) []string { return volumeWarnings(v) },
		Columns: []rest.Column[pv]{
			{Name: "Capacity", Description: doc["capacity"], Cell: func(v pv) any { return v.Spec.Capacity.Storage().String() }},
			{Name: "Access Modes", Description: doc["accessModes"], Cell: func(v pv) any { return modesText(v.Spec.AccessModes) }},
			{Name: "Reclaim Policy", Description: doc["persistentVolumeReclaimPolicy"], Cell: func(v pv) any { return string(v.Spec.PersistentVolumeReclaimPolicy) }},
			{Name: "Status", Description: status["phase"], Cell: func(v pv) any {
				if v.DeletionTimestamp != nil {
					return "Terminating"
				}
				return string(v.Status.Phase)
			}},
			{Name: "Claim", Description: doc["claimRef"], Cell: func(v pv) any {
				if v.Spec.ClaimRef == nil {
					return ""
				}
				return v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
			}},
			{Name: "StorageClass", Description: "StorageClass of the pv", Cell: func(v pv) any { return classOf(v.Annotations, &v.Spec.StorageClassName) }},
			{Name: "VolumeAttributesClass", Description: "VolumeAttributesClass of the pv", Cell: func(v pv) any { return shown(v.Spec.VolumeAttributesClassName) }},
			{Name: "Reason", Description: status["reason"], Cell: func(v pv) any { return v.Status.Reason }},
			{Name: "Age"},
			{Name: "VolumeMode", Wide: true, Description: doc["volumeMode"], Cell: func(v pv) any { return shown(v.Spec.VolumeMode) }},
		},
	}
}

// classOf is the storage class of a volume or claim, which an old annotation may name.
func classOf(annotations map[string]string, name *string) string {
	if class, ok := annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return deref(name)
}

// modesText is access modes as columns show them.
func modesText(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.short)
		}
	}
	return strings.Join(out, ",")
}

func defaultPersistentVolume(v *corev1.PersistentVolume) {
	s := &v.Spec
	setDefault(&v.Status.Phase, corev1.VolumePending)
	setDefault(&s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	setPtr(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	podspec.RoundUp(s.Capacity)
	defaultVolumeSource(&s.PersistentVolumeSource)
}

func validatePersistentVolume(v *corev1.PersistentVolume) (errs field.ErrorList) {
	s, at := &v.Spec, field.NewPath("spec")
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(at.Child("accessModes"), ""))
	}
	errs = append(errs, podspec.AccessModes(s.AccessModes, at.Child("accessModes"))...)
	errs = append(errs, capacity(s.Capacity, at.Child("capacity"))...)
	if p := s.PersistentVolumeReclaimPolicy; p != "" {
		errs = append(errs, oneOf(at.Child("persistentVolumeReclaimPolicy"), p, corev1.PersistentVolumeReclaimDelete,
			corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	}
	if n := s.NodeAffinity; n != nil && n.Required == nil {
		errs = append(errs, field.Required(at.Child("nodeAffinity", "required"), "must specify required node constraints"))
	} else if n != nil {
		errs = append(errs, podspec.NodeSelector(n.Required, at.Child("nodeAffinity", "required"))...)
	}
	errs = append(errs, volumeSource(s, v.Name, at)...)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
	}
	if c := s.StorageClassName; c != "" {
		errs = append(errs, texts(at.Child("storageClassName"), c, isName(c))...)
	}
	errs = append(errs, podspec.VolumeMode(s.VolumeMode, at.Child("volumeMode"))...)
	if c := s.VolumeAttributesClassName; c != nil {
		if *c == "" {
			errs = append(errs, field.Required(at.Child("volumeAttributesClassName"), "an empty string is disallowed"))
		} else {
			errs = append(errs, texts(at.Child("volumeAttributesClassName"), *c, isName(*c))...)
		}
		if s.CSI == nil {
			errs = append(errs, field.Required(at.Child("csi"), "has to be specified when using volumeAttributesClassName"))
		}
	}
	if _, ok := v.Annotations[corev1.MountOptionAnnotation]; ok && !mountOptions(s) {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "annotations", corev1.MountOptionAnnotation), "may not specify mount options for this volume type"))
	}
	return errs
}

func capacity(l corev1.ResourceList, at *field.Path) (errs field.ErrorList) {
	if len(l) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	if _, ok := l[corev1.ResourceStorage]; !ok || len(l) > 1 {
		errs = append(errs, field.NotSupported(at, l, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		q, p := l[name], at.Key(string(name))
		errs = append(errs, notBelowZero(q, p)...)
		if q.Sign() <= 0 {
			errs = append(errs, field.Invalid(p, q.String(), "must be greater than zero"))
		}
	}
	return errs
}

func updatePersistentVolume(now, old *corev1.PersistentVolume) (errs field.ErrorList) {
	is, was := now.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource
	if was.CSI != nil && was.CSI.ControllerExpandSecretRef == nil && is.CSI != nil { // may be given later
		is.CSI = is.CSI.DeepCopy()
		is.CSI.ControllerExpandSecretRef = nil
	}
	if !equality.Semantic.DeepEqual(is, was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "persistentvolumesource"),
			fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(was, is))))
	}
	errs = append(errs, immutable(now.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	if a := old.Spec.NodeAffinity; a != nil && !equality.Semantic.DeepEqual(today(now.Spec.NodeAffinity), today(a)) {
		errs = append(errs, field.Invalid(field.NewPath("nodeAffinity"), now.Spec.NodeAffinity, "field is immutable, except for updating from beta label to GA"))
	}
	if old.Spec.VolumeAttributesClassName != nil && now.Spec.VolumeAttributesClassName == nil {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
	}
	return errs
}

// today is a volume's node affinity with the labels of nodes called what they are today.
func today(a *corev1.VolumeNodeAffinity) *corev1.VolumeNodeAffinity {
	if a == nil || a.Required == nil {
		return a
	}
	a = a.DeepCopy()
	for i := range a.Required.NodeSelectorTerms {
		for k := range a.Required.NodeSelectorTerms[i].MatchExpressions {
			r := &a.Required.NodeSelectorTerms[i].MatchExpressions[k]
			if key, ok := renamedLabels()[r.Key]; ok {
				r.Key = key
			}
		}
	}
	return a
}

func renamedLabels() map[string]string {
	return map[string]string{
		corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
		corev1.LabelInstanceType: corev1.LabelInstanceTypeStable, "beta.kubernetes.io/os": corev1.LabelOSStable, "beta.kubernetes.io/arch": corev1.LabelArchStable,
	}
}

func volumeWarnings(v *corev1.PersistentVolume) (warnings []string) {
	warn := func(on bool, where, text string) {
		if on {
			warnings = append(warnings, where+": "+text)
		}
	}
	s := &v.Spec
	_, class := v.Annotations[corev1.BetaStorageClassAnnotation]
	_, options := v.Annotations[corev1.MountOptionAnnotation]
	warn(class, "metadata.annotations["+corev1.BetaStorageClassAnnotation+"]", `deprecated since v1.8; use "storageClassName" attribute instead`)
	warn(options, "metadata.annotations["+corev1.MountOptionAnnotation+"]", `deprecated since v1.31; use "mountOptions" attribute instead`)
	warn(s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle, "spec.persistentVolumeReclaimPolicy",
		"The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	if s.NodeAffinity != nil && s.NodeAffinity.Required != nil {
		for i := range s.NodeAffinity.Required.NodeSelectorTerms {
			warnings = append(warnings, podspec.NodeTermWarnings(&s.NodeAffinity.Required.NodeSelectorTerms[i],
				field.NewPath("spec", "nodeAffinity", "required", "nodeSelectorTerms").Index(i))...)
		}
	}
	warn(s.CephFS != nil, "spec.cephfs", "deprecated in v1.28, non-functional in v1.31+")
	warn(s.PhotonPersistentDisk != nil, "spec.photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+")
	warn(s.ScaleIO != nil, "spec.scaleIO", "deprecated in v1.16, non-functional in v1.22+")
	warn(s.StorageOS != nil, "spec.storageOS", "deprecated in v1.22, non-functional in v1.25+")
	warn(s.Glusterfs != nil, "spec.glusterfs", "deprecated in v1.25, non-functional in v1.26+")
	warn(s.RBD != nil, "spec.rbd", "deprecated in v1.28, non-functional in v1.31+")
	return warnings
}
