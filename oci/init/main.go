// Command yare-init is the small program behind every container: the first
// process that sets a container up and becomes its program, the one that
// enters a running container, process 1 of a shared PID namespace, and the
// shim. It replaces runc init, the pause image and containerd-shim-runc-v2.
//
// It executes plans (package plan) and decides nothing. Because one runs per
// container it links neither fmt, os, net nor encoding/json; note that
// importing os would also raise RLIMIT_NOFILE, which the container's program
// would inherit.
//
// # Set-up protocol
//
//	launcher                           init
//	   | clone into cgroup, namespaces  |
//	   |------------------------------->| read plan from PlanFD
//	   |--- MsgEnter + descriptors ---->| network namespace, v1 groups (plan's Late only)
//	   |                                | mounts, devices, console
//	   |<-- MsgConsole + master --------|   (terminal only)
//	   |<-- MsgHooks -------------------|   (runtime hooks only)
//	   |--- one byte ------------------>|
//	   |                                | pivot, mask, credentials, look program up
//	   |<-- MsgListener + fd -----------|   (seccomp agent only)
//	   |--- one byte ------------------>|
//	   |<-- MsgReady -------------------|
//	   |        ... StartFD: one byte ->|
//	   |                                | seccomp, exec
//	   |<-- end of file ----------------|   or MsgError / MsgExec + text at any time
//
// # Invariants
//
//   - What sets a process up stays on the program's first thread; namespaces,
//     credentials and filters are set on that thread only, and it is the one
//     that execs.
//   - Nothing is opened by a path that the image or another container can
//     redirect: targets are resolved with openat2 inside the root, procfs is the
//     host's, opened before anything else, or a private mount, and /dev/null is
//     the host's and checked.
package main

import (
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/shim/server"
	"github.com/yare-dev/yare/oci/wire"
)

// started is the descriptor from which ours count, or -1 if yare has not started us.
var started = -1

// init does what is not to go on for long, here because init functions run on the program's first thread: to be locked to it in
// main would take the Go runtime another thread, which exec would then have to end.
func init() {
	number, _ := syscall.Getenv(launch.FDVariable)
	fd, err := strconv.Atoi(number)
	if err != nil || fd < plan.PlanFD {
		return
	}
	started = fd
	s := &setup{planFD: fd, syncFD: fd + plan.SyncFD - plan.PlanFD, startFD: fd + plan.StartFD - plan.PlanFD,
		firstFD: fd + plan.FirstFD - plan.PlanFD, proc: -1, root: -1, outcome: -1}
	switch role() {
	case launch.Container:
		s.fail(s.container())
	case launch.Exec:
		s.fail(s.exec())
	case launch.Reaper:
		s.reap()
	}
}

func role() launch.Role {
	role, _ := syscall.Getenv(launch.RoleVariable)
	return launch.Role(role)
}

func main() {
	runtime.LockOSThread()
	if started < 0 || role() != launch.Shim {
		_, _ = unix.Write(2, []byte("yare-init: runs only when started by yare\n"))
		unix.Exit(2)
	}
	if err := server.Run(started); err != nil {
		_, _ = unix.Write(2, []byte("yare-shim: "+err.Error()+"\n"))
		unix.Exit(1)
	}
	unix.Exit(0)
}

// setup is one container or exec being set up.
type setup struct {
	planFD, syncFD, startFD, firstFD int

	proc    int // procfs, see openProc; or -1
	root    int // the root directory: new before pivoting, "/" after; or -1
	devNull int // the host's, checked
	slave   int // the terminal's, or -1
	outcome int // where errors go as well, or -1
}

// extra is one of the descriptors beyond the usual ones.
func (s *setup) extra(number int32) int { return s.firstFD + int(number) - 1 }

// execError is a program that cannot be executed.
type execError struct {
	err  error
	code int
}

func (e *execError) Error() string { return e.err.Error() }

// fail reports the error and ends the process; it does not return.
func (s *setup) fail(err error) {
	kind, code, text := plan.MsgError, 1, "exec returned"
	if err != nil {
		text = err.Error()
	}
	if e, ok := err.(*execError); ok {
		kind, code = plan.MsgExec, e.code
	}
	_ = linux.SendMessage(s.syncFD, append([]byte{kind}, text...))
	if s.outcome >= 0 {
		_, _ = unix.Write(s.outcome, []byte(text))
	}
	unix.Exit(code)
}

func (s *setup) send(kind byte, text string, fds ...int) error {
	return linux.SendMessage(s.syncFD, append([]byte{kind}, text...), fds...)
}

// warn reports what the container can live without.
func (s *setup) warn(err error) {
	if err != nil {
		_ = s.send(plan.MsgWarning, err.Error())
	}
}

// readPlan takes the plan in and hides all our descriptors from what we exec.
func (s *setup) readPlan(m wire.Message) error {
	if err := unix.CloseRange(uint(s.planFD), ^uint(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return linux.Wrap("close on exec", "descriptors", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return linux.Wrap("set not dumpable", "init", err)
	}
	if _, err := unix.Seek(s.planFD, 0, unix.SEEK_SET); err != nil {
		return linux.Wrap("read", "plan", err)
	}
	b, err := linux.ReadAll(s.planFD)
	if err != nil {
		return linux.Wrap("read", "plan", err)
	}
	unix.Close(s.planFD)
	return linux.Wrap("decode", "plan", wire.Unmarshal(b, m))
}

// wait blocks until a byte arrives on a descriptor. The end of the file means
// that whoever should have sent it is gone for good: then so are we.
func wait(fd int) error {
	var b [1]byte
	n := 0
	err := linux.Retry(func() (err error) { n, err = unix.Read(fd, b[:]); return err })
	if err == nil && n == 0 {
		err = unix.ECANCELED
	}
	return linux.Wrap("wait for", "launcher", err)
}
