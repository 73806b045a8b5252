// Package devices gives pods what device plugins offer: GPUs, network functions, anything that a node has in pieces
// (https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/). It replaces upstream's device manager and its
// server of the pod resources API.
//
// Vocabulary: a plugin is a program that serves one resource name; a stock is what the node has of it; a grant is the devices of one stock that
// one container has, with what the plugin said that the container needs for them.
//
//	plugin ── Register, or a socket in plugins_registry ──> Set ── ListAndWatch ──> stock ──> capacity and allocatable of the Node
//	pod is admitted ─> Allocate: choose and reserve ─> GetPreferredAllocation, Allocate of the plugin ─> grants on disk ─> sandbox
//	container starts ─> Prepare (PreStartContainer, where the plugin wants it) ─> Additions: environment, mounts, device nodes, annotations, CDI
//	pod has ended ─> Free
//
// Invariants:
//   - A device belongs to one pod at most. It is reserved before the plugin is asked, and the grant is on disk before the container is made. Init
//     containers leave theirs to the containers after them; restartable ones keep them.
//   - No plugin is called with a lock held, and every call ends after 10 s (PreStartContainer: 30 s, by its API).
//   - Grants outlast the kubelet. They do not outlast the boot: what a plugin said of device nodes may be wrong then. A pod that had some before it
//     waits for its plugin, and is given the same devices again if they are there.
//   - A stock whose plugin has gone has nothing to give at once, keeps its capacity for the grace period, and goes then. One that was known
//     before the kubelet began is waited for as long.
//   - Without plugins there are two listening sockets, and nothing else.
//
// Devices are not aligned with each other or with processors by NUMA nodes: there is no topology manager. A plugin that offers preferred allocations
// sees to that itself; what it says of NUMA nodes is passed on by the pod resources API.
//
// Lock order: Set.writing before Set.mu.
package devices
