// Package eviction keeps a node usable that runs out of memory, disk or process ids: it says so in the Node's conditions, has what nobody
// needs removed, and at last evicts pods, one at a time. It replaces upstream's pkg/kubelet/eviction; the rules are those of the page
// "Node-pressure Eviction" and of KubeletConfiguration.
//
//	Settings ── Thresholds (signal, quantity, grace) ─┐
//	machine ─── Observations (signal: available of) ──┼─> State (pure): conditions, what to act upon
//	                                                  └─> Evictor: reclaim ─> measure pods ─> Rank (pure) ─> evict the first
//
// Vocabulary: a signal is what is observed (memory.available), a threshold is where it is too little; one is acute when it was met for its
// grace period, and stays so until its minimum reclaim is reached. A condition holds while a threshold of it is met, and for the transition
// period after.
//
// Invariants:
//   - What decides is pure; time and observations are arguments.
//   - A machine at ease costs a few small files and a statfs each interval: pods are measured only when one is to be evicted.
//   - At most one pod is evicted in an interval, and the next not before that one has ended, or had half a minute to.
//   - Static pods and those with a system priority are never chosen.
//   - An observation that fails changes nothing.
//
// Signals: memory.available is the capacity without the working set of all, nodefs.* the file system of the kubelet's folder,
// pid.available what is left of the kernel's process ids. imagefs.* is there when images are on another file system than that. Where containers'
// layers are is found out, so containerfs.* follows nodefs or imagefs and has no thresholds of its own, as upstream.
// allocatableMemory.available is not there: the memory of all pods together has no limit of its own, which it would be about.
package eviction
