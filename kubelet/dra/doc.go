// Package dra gives pods what their ResourceClaims were allocated, by the drivers that serve it (dynamic resource allocation, KEP-4381,
// https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/). It replaces upstream's DRA manager and its plugin.
//
// Vocabulary: a driver is a program that offers itself by a socket in plugins_registry and prepares devices; a record is what is known here of one
// claim that pods of this node use: which pods, which drivers, and what each driver said of the devices.
//
//	pod, before its sandbox ─> Prepare: claim is allocated and reserved for it? ─> record on disk ─> NodePrepareResources ─> record on disk
//	container is made ─> Devices: names of CDI devices, which the runtime knows
//	pod's containers have ended ─> Release: last pod of the claim? ─> record says unprepared ─> NodeUnprepareResources ─> record removed
//	driver ── NodeWatchResources ──> Health ──> allocatedResourcesStatus of containers (KEP-4680), kept on disk while the kubelet is away
//	driver gone for 30 s, or 5 s after the kubelet began ─> its ResourceSlices of this node are deleted: nothing more is allocated of them
//
// Invariants:
//   - A driver is called only for claims whose records are on disk and name it, so whatever end the kubelet comes to, what was prepared will be
//     unprepared. Drivers are called again for what they may have done already, which their API allows for.
//   - A claim is prepared or unprepared by one pod at a time; claims of one pod go to a driver in one call, to all drivers at once. No driver is called
//     with Set.mu held, and each call ends after 45 s, upstream's limit; pods tell of one that takes longer than 5 s.
//   - What was prepared before the host booted is prepared anew, since device nodes and the files of CDI may be others then.
//   - A record belongs to a claim's UID and to one allocation of it: a claim that was allocated anew waits until the old devices are unprepared.
//   - Of drivers of one name, as there are two for a moment while one is upgraded, the newest is called.
//   - Without claims and drivers there is one goroutine that waits, and one list of ResourceSlices that is asked for once.
//
// The claim that the scheduler makes for extended resources for which a DeviceClass stands (KEP-5004) is one like those that the pod names; which
// of its requests a container has is in the pod's status.
//
// What upstream has behind feature gates of its own is not here: claims of pod groups, calls that a driver has skipped (the API server drops skipNodeOperations), and metadata of devices in containers.
package dra
