// Package criserver is Yare's Container Runtime Interface v1 server: sandboxes
// and containers for a kubelet, ours or another's. It replaces containerd (its
// CRI plugin) or CRI-O. One file per call, or per pair of calls; it puts
// together image (root file systems), cni (networks) and oci/shim (processes),
// and does no kernel work of its own beyond a tmpfs for /dev/shm.
//
// # Vocabulary
//
//   - sandbox: what a pod's containers share: a network namespace, a shim that
//     holds the IPC and UTS namespaces, a /dev/shm, name files. There is no
//     pause container.
//   - handler: the OCI runtime that a pod's RuntimeClass names: ours, or another
//     of the configuration. A sandbox is the same with every one of them.
//   - record: the JSON file that says what is known of a sandbox or container.
//   - adopt: take up, after a restart, what an earlier process left running.
//
// # On disk
//
//	<Dir>/sandboxes/<id>/sandbox.json     record
//	<Dir>/sandboxes/<id>/{hosts,hostname,resolv.conf,shm/}
//	<Dir>/containers/<id>/container.json  record
//	<RunDir>/<id, shortened>/             the shim's state directory
//
// A record is written before the thing that it speaks of is made, and marked
// Complete after. So a restarted server finds everything that an interrupted
// call made: what is not Complete is removed, the rest adopted. Records are
// replaced by rename and not synced: after a power cut no container runs, and
// an unreadable record is removed like an incomplete one. Exit codes are the
// shims' to keep until they are in a record.
//
// # A container's states
//
//	CreateContainer -> Created -> StartContainer -> Running -> exit -> Exited
//	                      \__________ shim died, or killed _________/
//
// Nobody polls: each sandbox has one goroutine that waits for its shim's events
// and for its death. A shim is dead when there is nobody to connect to; one that
// is not reached otherwise is tried again for a while, in which its containers
// count as what they were and calls that need it are Unavailable.
//
// # Security modules
//
// Where the host has AppArmor, every container that is not privileged is under a profile: one that it names, which must be loaded, or the default
// one. Where Config.SELinux says so, a sandbox has a level of its own in its record, and containers the contexts that the policy has for them with that
// level: of their processes, and of all that is theirs (images, kernel file systems, /dev/shm, name files, mounts that CRI says are to be relabelled).
//
// # Locks
//
//	sandbox.op    exclusive to stop and remove, shared to create containers
//	container.op  one of start and remove at a time
//	mu            of Server, sandbox, container: fields only, never while waiting
//
// A holder of container.op takes no sandbox.op; mu is taken last, one at a time.
// StopContainer holds no op lock: it waits for a start that is under way, then
// signals and waits, so that another call with a shorter grace period overtakes it.
package criserver
