// Package oci is Yare's OCI runtime 1.3 for Linux, one file per verb. It
// replaces runc, in process and (by package oci/cli) on the command line.
//
// # Vocabulary
//
//   - bundle: a directory with config.json, the OCI spec, and a root file system.
//   - plan: what the spec means for this host, fully decided: a flat list of
//     mounts, capability sets, a compiled seccomp program, paths. Package
//     compile makes it, a pure function that golden tests cover.
//   - init: the program yare-init (oci/init). It executes a plan inside the
//     new namespaces and then execs the container's program. It decides nothing.
//   - launch: bringing an init to life in its cgroup and namespaces (oci/launch).
//   - state directory: Root/<id>/ with the record and the fifos of the start.
//
// # The container never sees our binary
//
// The init runs from a sealed memory file made from the embedded program, so
// /proc/<pid>/exe cannot be written to whoever gets hold of it; it is not
// dumpable; all its descriptors are closed on exec. The command line, which is
// a process per verb, has a file that can only be read through its overlay in
// the memory file's place (OpenInitIn).
package oci
