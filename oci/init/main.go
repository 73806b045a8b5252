// Command yare-init is the small program behind every container: the first
// process that sets a container up and becomes its program, the one that
// enters a running container, process 1 of a shared PID namespace, and the
// shim. It replaces runc init, the pause image and containerd-shim-runc-v2.
//
// It executes plans (package plan) and decides nothing. One runs per container,
// and all but the shim run before the Go runtime starts, which would take longer
// than they do: see package bare for what they must do without. As there is one thread,
// namespaces, credentials and filters are the process's, and it can join any namespace.
//
// # Set-up protocol
//
//	launcher                           init
//	   | clone into cgroup, namespaces  |
//	   |------------------------------->| read plan from PlanFD
//	   |                                | network namespace
//	   |--- MsgEnter + descriptors ---->| v1 groups (plan's Late only)
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
//   - Nothing is opened by a path that the image or another container can
//     redirect: targets are resolved with openat2 inside the root, procfs is the
//     host's, opened before anything else, or a private mount, and /dev/null is
//     the host's and checked.
package main

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/shim/server"
	"github.com/yare-dev/yare/oci/wire"
)

// main is reached by the shim, and by all where the linker was not told of entry.
func main() {
	role, _ := syscall.Getenv(launch.RoleVariable)
	fd, _ := syscall.Getenv(launch.FDVariable)
	runtime.LockOSThread() // whose namespaces, credentials and filters are set, and which execs; a shim's name is that of its first thread
	perform(role, fd)
	first, ok := number(fd)
	if !ok || launch.Role(role) != launch.Shim {
		_, _ = bare.Write(2, "yare-init: runs only when started by yare\n")
		bare.Exit(2)
	}
	if err := server.Run(first); err != nil {
		_, _ = bare.Write(2, "yare-shim: "+err.Error()+"\n")
		bare.Exit(1)
	}
	bare.Exit(0)
}

// after is what follows the prefix.
func after(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return "", false
	}
	return s[len(prefix):], true
}

// number is strconv.Atoi for descriptors.
func number(s string) (n int, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || n > 1<<20 {
			return 0, false
		}
		n = 10*n + int(s[i]-'0')
	}
	return n, n >= plan.PlanFD
}

// perform does what the process is for, unless it is a shim or was not started by yare. Only then it returns.
func perform(role, first string) {
	fd, ok := number(first)
	if !ok {
		return
	}
	s := &process
	s.planFD, s.syncFD, s.startFD, s.firstFD = fd, fd+plan.SyncFD-plan.PlanFD, fd+plan.StartFD-plan.PlanFD, fd+plan.FirstFD-plan.PlanFD
	s.proc, s.root, s.slave, s.outcome = -1, -1, -1, -1
	switch launch.Role(role) {
	case launch.Container:
		s.fail(s.container(&container))
	case launch.Exec:
		s.fail(s.exec(&container.Process))
	case launch.Reaper:
		s.reap()
	}
}

// What the process is, in variables because there is no heap.
var (
	process   setup
	container plan.Container
	codec     wire.Codec
)

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

// fail reports why the process could not become its program, and ends it.
func (s *setup) fail(f *bare.Fault) {
	kind, code, text := plan.MsgError, 1, f.Text()
	if f.Exit != 0 {
		kind, code = plan.MsgExec, f.Exit
	}
	_ = s.send(kind, text, -1)
	if s.outcome >= 0 {
		ignoreSignal(unix.SIGPIPE)
		_, _ = bare.Write(s.outcome, text)
	}
	bare.Exit(code)
}

// send sends a message, with a descriptor if that is not negative.
func (s *setup) send(kind byte, text string, fd int) *bare.Fault {
	b := bare.Make[byte](1)
	b[0] = kind
	return bare.Send(s.syncFD, bare.Text(bare.View(b), text), fd)
}

// warn reports what the container can live without.
func (s *setup) warn(f *bare.Fault) {
	if f != nil {
		_ = s.send(plan.MsgWarning, f.Text(), -1)
	}
}

// readPlan takes the plan in and hides all our descriptors from what we exec.
func (s *setup) readPlan(m wire.Message) *bare.Fault {
	if _, e := bare.Call(unix.SYS_CLOSE_RANGE, uintptr(s.planFD), ^uintptr(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC); e != 0 {
		return bare.Wrap("close on exec", "descriptors", e)
	}
	if e := bare.Prctl(unix.PR_SET_DUMPABLE, 0); e != 0 {
		return bare.Wrap("set not dumpable", "init", e)
	}
	var st unix.Stat_t
	if e := bare.Fstat(s.planFD, &st); e != 0 {
		return bare.Wrap("read", "plan", e)
	}
	if e := bare.Reserve(int(st.Size)); e != 0 {
		return bare.Wrap("reserve", "memory", e)
	}
	b := bare.Make[byte](int(st.Size))
	for n := 0; n < len(b); {
		part := b[n:]
		got, e := bare.Pread(s.planFD, part, n)
		if e != 0 {
			return bare.Wrap("read", "plan", e)
		}
		if got == 0 {
			break // shorter than it was: the decoder says so
		}
		n += got
	}
	bare.Close(s.planFD)
	codec.Read(b, bare.Allocate)
	m.Fields(&codec)
	if !codec.Complete() {
		return bare.Because("decode", "plan", "corrupt message")
	}
	return nil
}

// wait blocks until a byte arrives on a descriptor. The end of the file means
// that whoever should have sent it is gone for good: then so are we.
func wait(fd int) *bare.Fault {
	b := bare.Make[byte](1)
	n, e := bare.Read(fd, b)
	if e == 0 && n == 0 {
		e = unix.ECANCELED
	}
	return bare.Wrap("wait for", "launcher", e)
}
