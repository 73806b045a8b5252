// Package resources is cpu and memory for the kubelet: quality-of-service classes,
// the numbers that a Pod's requests and limits become in the kernel, and the cgroups
// of Pods. It replaces upstream's kubelet/cm, without its CPU and memory managers.
//
// The tree of groups has upstream's shape, so that tools find their way:
//
//	/kubepods                       all pods: what the node gives them
//	/kubepods/pod<uid>              a Guaranteed pod
//	/kubepods/burstable/pod<uid>
//	/kubepods/besteffort/pod<uid>
//
// What numbers are right is decided by pure functions (QOS, Container, PodLimits);
// Groups writes them to whatever hierarchies the host has mounted, v1, hybrid or v2.
//
// Invariant: Groups creates and removes groups only below its own root.
package resources
