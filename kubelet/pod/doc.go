// Package pod brings Pods to life on this node: one worker for each, from admission to the end of its last
// container. It replaces upstream's pod workers, kuberuntime manager, status manager and PLEG.
//
// Vocabulary: a View is what the runtime has of one pod; a Plan is what should happen next; a step is one stage of
// bringing a pod up; a job is something that takes long and runs beside the worker.
//
//	API pod ──┐
//	CRI event ┼─ wake ─> worker.sync: read View -> steps (Up) -> Plan -> jobs
//	probe ────┤                        │
//	job done ─┤                        └─> Status (pure) -> one write, if it differs from the last
//	timer ────┘
//
// A worker is level-triggered: it can be woken at any time, for no reason, and after any crash; each sync reads what is
// there and does what is missing. Nothing that a restarted kubelet needs is kept in memory only: sandboxes and containers are found
// by their labels, restart counts and hashes are annotations.
//
// Sync itself never waits for a container, an image or a person: pulls, hooks, stops and status writes are jobs, whose end wakes
// the worker.
//
// Invariants:
//   - Only a pod's worker starts or stops its containers.
//   - Containers start one after the other in the order of the spec; the next waits for the postStart hook before it.
//   - A pod that began to terminate never starts anything again. A static one of its name, or itself again, begins when nothing of it is left.
//   - The final status is written before the pod is deleted from the API, and the pod is deleted only when nothing of it
//     runs any more.
//
// Lock order: Pods.mu before worker.mu; no call out of the package is made with either held.
package pod
