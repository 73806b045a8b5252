package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// reap is process 1 of a PID namespace that containers share. It ignores
// SIGCHLD, so the kernel itself reaps whatever is orphaned to it, and sleeps
// until the shim is gone; with process 1 the whole namespace then ends. It
// does not return.
func (s *setup) reap() {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		s.fail(linux.Wrap("set not dumpable", "reaper", err))
	}
	action := struct{ handler, flags, restorer, mask uintptr }{handler: 1} // SIG_IGN
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	if e != 0 {
		s.fail(linux.Wrap("ignore", "SIGCHLD", e))
	}
	if err := s.send(plan.MsgReady, ""); err != nil {
		unix.Exit(1)
	}
	_ = wait(s.syncFD)
	unix.Exit(0)
}
