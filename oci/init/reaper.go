package main

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// reap is process 1 of a PID namespace that containers share. It ignores
// SIGCHLD, so the kernel itself reaps whatever is orphaned to it, and sleeps
// until the shim is gone; with process 1 the whole namespace then ends. It
// does not return.
func (s *setup) reap() {
	if e := bare.Reserve(0); e != 0 {
		bare.Exit(1)
	}
	if e := bare.Prctl(unix.PR_SET_DUMPABLE, 0); e != 0 {
		s.fail(bare.Wrap("set not dumpable", "reaper", e))
	}
	if e := ignoreSignal(unix.SIGCHLD); e != 0 {
		s.fail(bare.Wrap("ignore", "SIGCHLD", e))
	}
	if f := s.send(plan.MsgReady, "", -1); f != nil {
		bare.Exit(1)
	}
	_ = wait(s.syncFD)
	bare.Exit(0)
}
