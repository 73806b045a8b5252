package claim

import corev1 "k8s.io/api/core/v1"

// What the parts of the built-in local storage say to each other: the controller that makes and deletes its volumes, the driver on
// each node that has their data, and the node authorizer between the two.
const (
	// LocalDriver is the driver's name: of its CSIDriver, and the provisioner of its classes.
	LocalDriver = "local.csi.yare.dev"
	// LocalClass is the StorageClass that a cluster has at first.
	LocalClass = "local"
	// LocalNode is the attribute of a volume that names its node, for good. The volume has a label of that name and value, by which
	// nodes ask for what is theirs.
	LocalNode = LocalDriver + "/node"
	// LocalData is the finalizer of volumes whose data goes with them: the node takes it away when it has removed the data.
	LocalData = LocalDriver + "/data"
	// LocalMade is the annotation, with the value true, of volumes whose folder their node has made: one that is missing afterwards is lost.
	LocalMade = LocalDriver + "/made"
)

// OfLocal returns the node on which v's data is; "" for volumes that are not the built-in local storage's.
func OfLocal(v *corev1.PersistentVolume) string {
	if v.Spec.CSI == nil || v.Spec.CSI.Driver != LocalDriver {
		return ""
	}
	return v.Spec.CSI.VolumeAttributes[LocalNode]
}
