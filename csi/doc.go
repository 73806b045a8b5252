// Package csi is the seam to storage drivers: the node service of the Container Storage Interface, version 1, as the
// kubelet calls it over a driver's unix socket. It stands where upstream's csiDriverClient stands. The messages are the
// specification's own (github.com/container-storage-interface/spec).
//
//	kubelet --> Node --(Dial: gRPC on a unix socket)--> a driver's program or pod
//
// Vocabulary: a driver serves CSI under a name (hostpath.csi.k8s.io); a volume has a handle, which is the driver's; staging makes a
// volume ready once per node, publishing shows it to one pod; capabilities say which optional calls a driver has.
//
//	Stage ─> Publish, for each pod ─> Unpublish, for each pod ─> Unstage
//
// All of these are idempotent by the specification: whoever does not know whether a call was carried out repeats it, or undoes it.
//
// Invariants: an error of a Client is an *Error: it names the driver, the call and gRPC's code, and says what to do; it has no secret of the
// request in it, even where the driver's own text does. Every call has a deadline. Nothing is retried here: callers back off.
package csi
