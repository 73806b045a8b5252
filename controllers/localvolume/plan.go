package localvolume

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/yare-dev/yare/api/claim"
)

// driver is the driver's CSIDriver. Pods that need it are kept off nodes that do not have it, such as those of other kubelets.
func driver() *storagev1.CSIDriver {
	policy := storagev1.FileFSGroupPolicy
	return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: claim.LocalDriver}, Spec: storagev1.CSIDriverSpec{
		AttachRequired: new(false), PodInfoOnMount: new(false), VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent},
		StorageCapacity: new(false), FSGroupPolicy: &policy, RequiresRepublish: new(false), SELinuxMount: new(false),
		PreventPodSchedulingIfMissing: new(true),
	}}
}

// class is the StorageClass that a cluster has at first.
func class(isDefault bool) *storagev1.StorageClass {
	reclaim, mode := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: claim.LocalClass, Annotations: map[string]string{
		"kubernetes.io/description": "Folders on the disk of the node of the first pod. Sizes are not enforced."}},
		Provisioner: claim.LocalDriver, ReclaimPolicy: &reclaim, VolumeBindingMode: &mode, AllowVolumeExpansion: new(true)}
	if isDefault {
		c.Annotations[claim.DefaultClass] = "true"
	}
	return c
}

// refuse says what a claim and its class ask for that a folder cannot give.
func refuse(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (errs []error) {
	if !claim.Waits(class) {
		errs = append(errs, errors.New("its volumeBindingMode must be WaitForFirstConsumer: a local volume is on the node of its first pod"))
	}
	for _, p := range slices.Sorted(maps.Keys(class.Parameters)) {
		errs = append(errs, fmt.Errorf("it has the parameter %q: there are none", p))
	}
	if m := c.Spec.VolumeMode; m != nil && *m == corev1.PersistentVolumeBlock {
		errs = append(errs, errors.New("volumeMode Block is not supported: local volumes are folders"))
	}
	for _, m := range c.Spec.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			errs = append(errs, fmt.Errorf("accessMode %s is not supported: a local volume is on one node", m))
		}
	}
	if c.Spec.Selector != nil {
		errs = append(errs, errors.New("a selector is for volumes that exist"))
	}
	if c.Spec.DataSource != nil || c.Spec.DataSourceRef != nil {
		errs = append(errs, errors.New("dataSource is not supported: local volumes begin empty"))
	}
	if n := c.Spec.VolumeAttributesClassName; n != nil && *n != "" {
		errs = append(errs, errors.New("volumeAttributesClassName is not supported: local volumes have no attributes"))
	}
	return errs
}

// unfit says why a node cannot have volumes.
func unfit(n *corev1.Node) string {
	if n.Labels[corev1.LabelHostname] == "" {
		return "node " + n.Name + " has no label " + corev1.LabelHostname
	}
	if errs := validation.IsValidLabelValue(n.Name); len(errs) > 0 {
		return "node " + n.Name + " has a name that no label can have: " + errs[0]
	}
	return ""
}

// volume is the volume of a claim on the node that was chosen.
func volume(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, n *corev1.Node) *corev1.PersistentVolume {
	name, filesystem := "pvc-"+string(c.UID), corev1.PersistentVolumeFilesystem
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{claim.ProvisionedBy: claim.LocalDriver}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: c.Spec.AccessModes, VolumeMode: &filesystem, StorageClassName: class.Name, MountOptions: class.MountOptions,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID,
				ResourceVersion: c.ResourceVersion},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: claim.LocalDriver, VolumeHandle: name, VolumeAttributes: map[string]string{claim.LocalNode: n.Name}}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn,
					Values: []string{n.Labels[corev1.LabelHostname]}}}}}}},
		},
	}
	if p := class.ReclaimPolicy; p != nil {
		v.Spec.PersistentVolumeReclaimPolicy = *p
	}
	mend(v)
	return v
}

// ours says whether a volume was made here.
func ours(v *corev1.PersistentVolume) bool {
	return v.Annotations[claim.ProvisionedBy] == claim.LocalDriver && claim.OfLocal(v) != ""
}

// deletes says whether a volume's data goes with its claim.
func deletes(v *corev1.PersistentVolume) bool {
	return v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// mend gives a volume the label by which its node finds it, and the finalizer that its policy asks for. One that is being deleted gets
// none, and keeps it only while its policy is Delete.
func mend(v *corev1.PersistentVolume) {
	if v.Labels[claim.LocalNode] != claim.OfLocal(v) {
		metav1.SetMetaDataLabel(&v.ObjectMeta, claim.LocalNode, claim.OfLocal(v))
	}
	has := slices.Contains(v.Finalizers, claim.LocalData)
	switch {
	case deletes(v) && !has && v.DeletionTimestamp == nil:
		v.Finalizers = append(v.Finalizers, claim.LocalData)
	case !deletes(v) && has:
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == claim.LocalData })
	}
}
