package volumebinder

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api/claim"
)

// verdict is what is true of a claim.
type verdict struct {
	volume *corev1.PersistentVolume // to bind to
	maker  string                   // who is asked to make one
	// classless: it is to get the default class, if there is one.
	classless bool
	phase     corev1.PersistentVolumeClaimPhase
	warning   bool
	reason    string // of an event, when there is something to tell
	message   string
}

// judge decides about a claim, whose class is nil when there is none.
func judge(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, class *storagev1.StorageClass) verdict {
	_, bound := c.Annotations[claim.Completed]
	if c.Spec.VolumeName == "" {
		if bound {
			return verdict{phase: corev1.ClaimLost, warning: true, reason: "ClaimLost", message: "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"}
		}
		return seek(c, volumes, class)
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
	case claim.ReservedFor(v, c):
		return verdict{volume: v, phase: corev1.ClaimBound}
	case v.Spec.ClaimRef != nil && bound:
		return verdict{phase: corev1.ClaimLost, warning: true, reason: "ClaimMisbound", message: "Two claims are bound to the same volume, this one is bound incorrectly"}
	case v.Spec.ClaimRef != nil:
		return verdict{phase: corev1.ClaimPending, warning: true, reason: "FailedBinding", message: "volume \"" + v.Name + "\" already bound to a different claim."}
	}
	if why := claim.Unsuited(v, c); why != "" && !bound {
		return verdict{phase: corev1.ClaimPending, warning: true, reason: "VolumeMismatch", message: "Cannot bind to requested volume \"" + v.Name + "\": " + why}
	}
	return verdict{volume: v, phase: corev1.ClaimBound}
}

// seek decides about a claim that names no volume.
func seek(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, class *storagev1.StorageClass) verdict {
	waits := claim.Waits(class) && c.Annotations[claim.SelectedNode] == ""
	// The scheduler, who waits, reserves volumes.
	if vs := claim.Candidates(c, volumes); len(vs) > 0 && (!waits || claim.ReservedFor(vs[0], c)) {
		return verdict{volume: vs[0], phase: corev1.ClaimBound}
	}
	out := verdict{phase: corev1.ClaimPending}
	switch {
	case waits:
		out.reason, out.message = "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
	case claim.Class(c) == "":
		out.classless = claim.Classless(c)
		out.reason, out.message = "FailedBinding", "no persistent volumes available for this claim and no storage class is set"
	case class == nil:
		out.warning, out.reason, out.message = true, "ProvisioningFailed", fmt.Sprintf("storageclass.storage.k8s.io %q not found", claim.Class(c))
	case strings.HasPrefix(class.Provisioner, "kubernetes.io/"):
		out.warning, out.reason, out.message = true, "ProvisioningFailed", "no volume plugin matched name: "+class.Provisioner
	case class.Provisioner == claim.LocalDriver: // whose controller says what is to be said
		out.maker = class.Provisioner
	default:
		out.maker, out.reason = class.Provisioner, "ExternalProvisioning"
		out.message = "Waiting for a volume to be created either by the external provisioner '" + class.Provisioner + "' or manually by the system " +
			"administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
	}
	return out
}

// take makes c point to v.
func take(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
	if c.Spec.VolumeName == "" {
		c.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, claim.Ours, "yes")
	}
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, claim.Completed, "yes")
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
