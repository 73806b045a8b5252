// Package volume gives pods their volumes: emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, and those of
// claims (persistentVolumeClaim, ephemeral) that are bound to hostPath or local volumes with a file system. It replaces upstream's
// volume manager and the in-tree plugins of these types. Any other type is refused by name.
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
// What a claim is bound to is asked for until its volume is up, and not again. A hostPath volume is used where it is; the folder of a
// local volume is mounted anew for each pod that has it, read-only and with the volume's mount options where it is to be. The first
// pod on the node makes a local volume's files those of its fsGroup, before it can be seen below the root: so a mount that is there is
// done with. The content of both is never removed.
//
// Invariants: everything is idempotent; a subPath is opened within its volume by descriptor and mounted by
// descriptor, so that no race leads outside the volume; Down unmounts before it removes, never follows a mount or a
// link, and removes nothing while something is still mounted.
//
// An emptyDir's sizeLimit is enforced by the kernel for medium Memory; on disk by the kubelet, which evicts the pod.
package volume
