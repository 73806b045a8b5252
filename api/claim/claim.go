// Package claim is what PersistentVolumeClaims want of PersistentVolumes. All of it is pure. It replaces upstream's
// component-helpers/storage/volume.
//
// Two bind them: the volume binder at once, the scheduler where the claim's class says that volumes wait for the node of their
// first pod.
package claim

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

const (
	// Completed is the annotation of a claim whose binding has come to an end.
	Completed = "pv.kubernetes.io/bind-completed"
	// Ours is the annotation of bindings that we made, and not somebody who asked for them.
	Ours = "pv.kubernetes.io/bound-by-controller"
	// SelectedNode is the annotation that tells provisioners for which node a claim's volume is to be made. A provisioner that
	// cannot takes it away again.
	SelectedNode = "volume.kubernetes.io/selected-node"
	// ProvisionedBy is the annotation of a volume that names the provisioner which made it, and which therefore deletes it.
	ProvisionedBy = "pv.kubernetes.io/provisioned-by"
	// DefaultClass is the annotation of the StorageClass of claims that name none; DefaultClassBeta was its name once.
	DefaultClass     = "storageclass.kubernetes.io/is-default-class"
	DefaultClassBeta = "storageclass.beta.kubernetes.io/is-default-class"
	// Unprovisioned is the provisioner of classes whose volumes people make.
	Unprovisioned = "kubernetes.io/no-provisioner"
)

// Class and VolumeClass return the name of the storage class; the annotation is older than the field.
func Class(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

// VolumeClass is Class of a volume.
func VolumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

// provisioner and its elder are the annotations by which provisioners know their claims.
const (
	provisioner     = "volume.kubernetes.io/storage-provisioner"
	provisionerBeta = "volume.beta.kubernetes.io/storage-provisioner"
)

// Provisioner returns who was asked to make c's volume; "" when nobody was.
func Provisioner(c *corev1.PersistentVolumeClaim) string {
	if name, ok := c.Annotations[provisioner]; ok {
		return name
	}
	return c.Annotations[provisionerBeta]
}

// Ask names the provisioner that is to make c's volume.
func Ask(c *corev1.PersistentVolumeClaim, name string) {
	for _, a := range []string{provisioner, provisionerBeta} {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, a, name)
	}
}

// Default returns the class of claims that name none, the youngest where several are marked; nil when none is.
func Default(classes []*storagev1.StorageClass) (found *storagev1.StorageClass) {
	for _, c := range classes {
		if c.Annotations[DefaultClass] != "true" && c.Annotations[DefaultClassBeta] != "true" {
			continue
		}
		if found == nil || cmp.Or(found.CreationTimestamp.Compare(c.CreationTimestamp.Time), cmp.Compare(c.Name, found.Name)) < 0 {
			found = c
		}
	}
	return found
}

// Classless says that c neither names a class nor says that it wants none: it gets the default one.
func Classless(c *corev1.PersistentVolumeClaim) bool {
	_, annotated := c.Annotations[corev1.BetaStorageClassAnnotation]
	return !annotated && c.Spec.StorageClassName == nil
}

// Waits says whether volumes of a class, which may be nil, wait for the node of the first pod that uses them.
func Waits(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// Name returns the name of the claim that v is of, a volume of the pod; "" for volumes without.
func Name(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// Bound says that c has its volume for good.
func Bound(c *corev1.PersistentVolumeClaim) bool {
	_, completed := c.Annotations[Completed]
	return completed && c.Spec.VolumeName != ""
}

// ReservedFor says whether v's claimRef names c. Without a UID somebody reserved v for a claim of that name.
func ReservedFor(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	r := v.Spec.ClaimRef
	return r != nil && r.Namespace == c.Namespace && r.Name == c.Name && (r.UID == "" || r.UID == c.UID)
}

// Reserve makes v c's.
func Reserve(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
	r := v.Spec.ClaimRef
	if r != nil && r.UID == c.UID {
		return
	}
	if r == nil {
		metav1.SetMetaDataAnnotation(&v.ObjectMeta, Ours, "yes")
	}
	v.Spec.ClaimRef = &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID,
		ResourceVersion: c.ResourceVersion}
}

// Unsuited says why v cannot serve c, whoever wants it to.
func Unsuited(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) string {
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case have.Cmp(want) < 0:
		return "requested PV is too small"
	case VolumeClass(v) != Class(c):
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

// Reaches says whether v can be used on n.
func Reaches(n *corev1.Node, v *corev1.PersistentVolume) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	ok, err := nodeaffinity.NewLazyErrorNodeSelector(v.Spec.NodeAffinity.Required).Match(n)
	return ok && err == nil
}

// Candidates returns the volumes for a claim that names none: the one that is reserved for it, else those that suit it and are
// free, the smallest first.
func Candidates(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) (free []*corev1.PersistentVolume) {
	selector := labels.Everything()
	if c.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(c.Spec.Selector); err != nil {
			selector = labels.Nothing() // validation lets none pass
		}
	}
	for _, v := range volumes {
		switch {
		case v.DeletionTimestamp != nil || Unsuited(v, c) != "":
		case ReservedFor(v, c):
			return []*corev1.PersistentVolume{v}
		case v.Spec.ClaimRef == nil && v.Status.Phase == corev1.VolumeAvailable && selector.Matches(labels.Set(v.Labels)):
			free = append(free, v)
		}
	}
	slices.SortFunc(free, func(a, b *corev1.PersistentVolume) int {
		x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
		return cmp.Or(x.Cmp(y), cmp.Compare(a.Name, b.Name))
	})
	return free
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
