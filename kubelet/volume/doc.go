// Package volume gives pods their volumes: emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, and those of
// claims (persistentVolumeClaim, ephemeral) that are bound to hostPath, local or CSI volumes, and pods' own CSI volumes. It replaces
// upstream's volume manager, the in-tree plugins of these types and pkg/volume/csi. Any other type is refused by name.
//
// Layout below the root (upstream's):
//
//	<root>/<pod uid>/volumes/kubernetes.io~<type>/<volume>       what containers see
//	<root>/<pod uid>/volume-subpaths/<volume>/<container>/<n>    bind mounts of subPaths
//
// Volumes of files (configMap, secret, downwardAPI, projected) are written so that a reader sees either all old or all
// new files:
//
//	..2026_11_23_08_33_01.123456/key   the files
//	..data -> ..2026_11_23_...         replaced by rename
//	key -> ..data/key                  what the user opens
//
// They live on tmpfs, so that secrets reach no disk.
//
// What a claim is bound to is asked for until its volume is up, and not again but for CSI volumes that may grow. A hostPath volume is used where it is; the folder of a
// local volume is mounted anew for each pod that has it, read-only and with the volume's mount options where it is to be. The first
// pod on the node makes a local volume's files those of its fsGroup, before it can be seen below the root: so a mount that is there is
// done with. The content of both is never removed.
//
// Invariants: everything is idempotent; a subPath is opened within its volume by descriptor and mounted by
// descriptor, so that no race leads outside the volume; Down unmounts before it removes, never follows a mount or a
// link, and removes nothing while something is still mounted.
//
// Volumes of CSI drivers (disk*.go) lie where drivers look for them, and their records are upstream's with more in them:
//
//	<root>/<pod uid>/volumes/kubernetes.io~csi/<name>/mount            the target of a file system; <name> is the PersistentVolume's
//	<root>/<pod uid>/volumes/kubernetes.io~csi/<name>/vol_data.json    the record of either
//	<plugins>/<driver>/<hash of handle>/globalmount, vol_data.json     where a file system is staged, and its record
//	<plugins>/volumeDevices/publish/<name>/<pod uid>                   the target of a block volume
//	<plugins>/volumeDevices/staging/<name>, <name>/data/vol_data.json  where it is staged, and its record
//
// The record comes first and goes last, so a kubelet that was killed anywhere finds what it has to complete or to undo. Records name the boot
// of the machine in which the volume was staged or published: mounts do not outlive it. One call at a time is made about a volume. A
// volume is staged before it is published, and unstaged when the last pod of the node that the driver may know of has gone.
//
// An emptyDir's sizeLimit is enforced by the kernel for medium Memory; on disk by the kubelet, which evicts the pod.
package volume
