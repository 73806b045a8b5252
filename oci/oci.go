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
//   - state directory: Root/<id>/ with state.json, the lock and the start fifo.
//
// # The container never sees our binary
//
// The init runs from a sealed memory file made from the embedded program, so
// /proc/<pid>/exe cannot be written to whoever gets hold of it; it is not
// dumpable; all its descriptors are closed on exec.
package oci

import "errors"

// ErrNoInit means that the binary was built without the embedded init program.
var ErrNoInit = errors.New("built without the container init: run make")

// Init is the container init program, ready to be executed. One per process
// is enough; it may be used from any goroutine.
type Init struct{}

// OpenInit makes the init program ready: it copies the embedded program into a
// sealed memory file. Close frees it; running containers and shims keep their
// own reference.
func OpenInit() (*Init, error) { return nil, ErrNoInit }

// Close frees the memory file.
func (i *Init) Close() error { return nil }
