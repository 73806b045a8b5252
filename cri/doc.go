// Package cri is the seam between the kubelet and a container runtime: the
// Container Runtime Interface, v1.
//
// It stands where upstream's k8s.io/cri-client stands. The messages and the
// gRPC interfaces are upstream's own (k8s.io/cri-api): they are the wire
// contract. What is added here is the one value that the kubelet holds, a
// Client, and its two makings:
//
//	kubelet --> Client --(Dial, gRPC on a unix socket)--> containerd, CRI-O, a foreign kubelet's view of ours
//	               \----(InProcess, plain calls)--------> cri/criserver in the same process
//
// The kubelet cannot tell one from the other: errors are gRPC status errors
// (ask with Code), streams end with io.EOF, a cancelled context ends a stream.
//
// Vocabulary: a sandbox is what a Pod's containers share (namespaces, cgroup
// parent, address); a container is one process tree with a root file system of
// its own; an image ID is the digest of the image's configuration, an image
// reference a name with a tag or a digest.
//
// In process nothing is serialised and the messages are shared: whoever
// receives a message, be it a request in the server or a response in the
// kubelet, must not change it, and the sender must not change it after sending.
package cri
