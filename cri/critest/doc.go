// Package critest is the suite of the Container Runtime Interface: what a kubelet may expect of a server of CRI v1,
// call by call. It stands where upstream's cri-tools/critest stands, and holds our server and foreign ones (containerd)
// to the same expectations.
//
// # Vocabulary
//
//   - target: the server under test, reached by its two clients, with the little that a test must know of where it runs.
//   - case: one expectation, named after its call. Cases are independent of each other and run side by side.
//   - deviation: a case that a foreign server is known to fail, with the reason. It must fail: one that passes is to be
//     taken off the list.
//   - revision: the minor release of Kubernetes whose CRI a target speaks. A case that a later one brought is not run.
//
// A case never asks what target it has: expectations differ by nothing but their revision. They come from the comments of
// CRI's own api.proto and from what upstream's kubelet does with the answers; where CRI is silent and servers differ, a
// case asks for what they have in common.
//
// # What is run
//
// The images are made of the host's busybox and pulled from registries in the test's process. Everything is looked at
// through CRI, from inside containers, in logs and in cgroups: a target may have mounts and a network of its own. Pods
// have a cgroup of their own below the target's, which the suite removes as a kubelet would.
//
// Nothing waits for a time: what takes a while is asked for again until it is there, for as long as patience lasts.
package critest
