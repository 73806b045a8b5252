package volumebinder

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/reconcile"
)

// The annotations by which bindings are told apart that we made and those that somebody else asked for.
const (
	completed = "pv.kubernetes.io/bind-completed"
	ours      = "pv.kubernetes.io/bound-by-controller"
)

// claimClass and volumeClass return the name of the storage class; the annotation is older than the field.
func claimClass(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

func volumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

func mode(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// reserved says whether v's claimRef names c. Without a UID somebody reserved v for a claim of that name.
func reserved(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	r := v.Spec.ClaimRef
	return r != nil && r.Namespace == c.Namespace && r.Name == c.Name && (r.UID == "" || r.UID == c.UID)
}

// unsuited says why v cannot serve c, whoever wants it to.
func unsuited(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) string {
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case have.Cmp(want) < 0:
		return "requested PV is too small"
	case volumeClass(v) != claimClass(c):
		return "storageClassName does not match"
	case text(v.Spec.VolumeAttributesClassName) != text(c.Spec.VolumeAttributesClassName):
		return "volumeAttributesClassName does not match"
	case mode(v.Spec.VolumeMode) != mode(c.Spec.VolumeMode):
		return "incompatible volumeMode"
	}
	for _, m := range c.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return "incompatible accessMode"
		}
	}
	return ""
}

// match returns the volume for a claim that names none: one that is reserved for it, else the smallest that suits it.
func match(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) *corev1.PersistentVolume {
	selector := labels.Everything()
	if c.Spec.Selector != nil {
		selector = reconcile.Selector(c.Spec.Selector)
	}
	var free []*corev1.PersistentVolume
	for _, v := range volumes {
		switch {
		case v.DeletionTimestamp != nil || unsuited(v, c) != "":
		case reserved(v, c):
			return v
		case v.Spec.ClaimRef == nil && v.Status.Phase == corev1.VolumeAvailable && selector.Matches(labels.Set(v.Labels)):
			free = append(free, v)
		}
	}
	if len(free) == 0 {
		return nil
	}
	return slices.MinFunc(free, func(a, b *corev1.PersistentVolume) int {
		x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
		return cmp.Or(x.Cmp(y), cmp.Compare(a.Name, b.Name))
	})
}

// verdict is what is true of a claim.
type verdict struct {
	volume  *corev1.PersistentVolume // to bind to
	phase   corev1.PersistentVolumeClaimPhase
	warning bool
	reason  string // of an event, when there is something to tell
	message string
}

// judge decides about a claim.
func judge(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) verdict {
	_, bound := c.Annotations[completed]
	if c.Spec.VolumeName == "" {
		if bound {
			return verdict{phase: corev1.ClaimLost, warning: true, reason: "ClaimLost", message: "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"}
		}
		if v := match(c, volumes); v != nil {
			return verdict{volume: v, phase: corev1.ClaimBound}
		}
		if claimClass(c) != "" {
			return verdict{phase: corev1.ClaimPending}
		}
		return verdict{phase: corev1.ClaimPending, reason: "FailedBinding",
			message: "no persistent volumes available for this claim and no storage class is set"}
	}
	at := slices.IndexFunc(volumes, func(v *corev1.PersistentVolume) bool { return v.Name == c.Spec.VolumeName })
	switch {
	case at < 0 && bound:
		return verdict{phase: corev1.ClaimLost, warning: true, reason: "ClaimLost", message: "Bound claim has lost its PersistentVolume. Data on the volume is lost!"}
	case at < 0:
		return verdict{phase: corev1.ClaimPending}
	}
	v := volumes[at]
	switch {
	case reserved(v, c):
		return verdict{volume: v, phase: corev1.ClaimBound}
	case v.Spec.ClaimRef != nil && bound:
		return verdict{phase: corev1.ClaimLost, warning: true, reason: "ClaimMisbound", message: "Two claims are bound to the same volume, this one is bound incorrectly"}
	case v.Spec.ClaimRef != nil:
		return verdict{phase: corev1.ClaimPending, warning: true, reason: "FailedBinding", message: "volume \"" + v.Name + "\" already bound to a different claim."}
	}
	if why := unsuited(v, c); why != "" && !bound {
		return verdict{phase: corev1.ClaimPending, warning: true, reason: "VolumeMismatch", message: "Cannot bind to requested volume \"" + v.Name + "\": " + why}
	}
	return verdict{volume: v, phase: corev1.ClaimBound}
}

// reserve makes v c's.
func reserve(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
	r := v.Spec.ClaimRef
	if r != nil && r.UID == c.UID {
		return
	}
	if r == nil {
		metav1.SetMetaDataAnnotation(&v.ObjectMeta, ours, "yes")
	}
	v.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID,
		ResourceVersion: c.ResourceVersion}
}

// take makes c point to v.
func take(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
	if c.Spec.VolumeName == "" {
		c.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, ours, "yes")
	}
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, completed, "yes")
}

// fill writes what a bound claim has of v. Its capacity is not touched later, when the claim has grown.
func fill(s *corev1.PersistentVolumeClaimStatus, v *corev1.PersistentVolume) {
	s.AccessModes = v.Spec.AccessModes
	if s.Phase != corev1.ClaimBound {
		if s.Capacity == nil {
			s.Capacity = corev1.ResourceList{}
		}
		s.Capacity[corev1.ResourceStorage] = v.Spec.Capacity[corev1.ResourceStorage]
		s.CurrentVolumeAttributesClassName = v.Spec.VolumeAttributesClassName
	}
	s.Phase = corev1.ClaimBound
}

// settle decides about a volume, given the claim that it is reserved for, nil when there is none (any more). Loose says that
// its reservation is to be given up.
func settle(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) (phase corev1.PersistentVolumePhase, loose bool) {
	r := v.Spec.ClaimRef
	switch {
	case r == nil || r.UID == "":
		return corev1.VolumeAvailable, false
	case c == nil || c.UID != r.UID:
		if v.Status.Phase == corev1.VolumeFailed {
			return corev1.VolumeFailed, false
		}
		return corev1.VolumeReleased, false
	case c.Spec.VolumeName == "" || c.Spec.VolumeName == v.Name:
		return corev1.VolumeBound, false
	}
	// The claim went to another volume.
	return corev1.VolumeAvailable, true
}
