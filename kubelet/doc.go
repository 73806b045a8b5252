// Package kubelet runs the pods of one node: it registers the Node, starts and stops containers through the CRI, mounts
// volumes, probes, reports, and serves logs and sessions. It replaces upstream's kubelet.
//
//	            ┌ node    the Node object and its Lease
//	            ├ static  pods of a folder
//	API ─ watch ┤ pod     a worker for each pod ── CRI ──> sandboxes and containers
//	            │   ├ spec       what a Pod means in CRI words (pure)
//	            │   ├ volume     files and mounts      ├ probe  liveness, readiness, startup
//	            │   ├ resources  cgroups               ├ logs   read and rotate
//	            │   ├ keyring    pull credentials      └ users  ranges of ids for user namespaces
//	            │   └ field      what a Pod says of itself (pure)
//	            ├ eviction  what to do when memory, disk or process ids run out
//	            ├ server  what others ask of the node
//	            └ stats   what pods use
//
// The kubelet knows the CRI contract only, never our runtime; any runtime that serves CRI v1 with container events
// will do. Nothing is polled on a pod's way to Running: the API's watch, the runtime's events, and the ends of jobs wake
// its worker.
//
// Invariants: a kubelet that is stopped, killed or replaced disturbs no container; what it finds at start that belongs to no
// pod any more (after the API has told which there are) is removed; nothing outside its folders, cgroups and labels is touched.
//
// Not here yet, and never pretended: volumes of other types than package volume lists, devices.
package kubelet
