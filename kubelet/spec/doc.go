// Package spec says what a Pod means in the words of the CRI: the configuration of its
// sandbox and containers, their environment, DNS, hosts file and security. It replaces the
// generating half of upstream's kuberuntime.
//
// Everything here is a pure function of objects that were fetched before. Acting on the outcome is
// the pod worker's (package pod).
//
// Labels and annotations of sandboxes and containers carry all that a restarted kubelet must know; their names are
// upstream's where upstream has one, so that crictl and monitoring agents show the same.
package spec
