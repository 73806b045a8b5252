// Package runtimepeers holds Yare's OCI runtime to what its users expect of one: containerd and Podman, Debian's packages, run
// containers with it in runc's place. Everything they keep is in folders of the test's own, and is gone when it ends.
package runtimepeers
