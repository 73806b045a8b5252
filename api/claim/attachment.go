package claim

import (
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// AttachmentName is the name of the VolumeAttachment of a CSI volume to a node: the controller makes it, the kubelet looks for it,
// and attachers outside rely on there being one per volume and node.
func AttachmentName(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// OnNode is the name of a CSI volume in a Node's status: in volumesInUse, by which a kubelet forbids to detach it, and in
// volumesAttached, without which it does not mount it.
func OnNode(driver, handle string) corev1.UniqueVolumeName {
	return corev1.UniqueVolumeName("kubernetes.io/csi/" + driver + "^" + handle)
}

// NeedsAttaching says whether volumes of a driver are attached before they are mounted: unless its CSIDriver, nil where there is none, denies it.
func NeedsAttaching(d *storagev1.CSIDriver) bool {
	return d == nil || d.Spec.AttachRequired == nil || *d.Spec.AttachRequired
}
