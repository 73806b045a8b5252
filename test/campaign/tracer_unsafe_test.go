package campaign_test

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// changing are the system calls by which a process changes what outlives it, or tells others to: the moments between two of
// them are all that a kill can tell apart.
var changing = map[uint64]string{
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_LINKAT: "linkat", unix.SYS_MKNODAT: "mknodat", unix.SYS_OPENAT: "openat",
	unix.SYS_OPENAT2: "openat2", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWNAT: "fchownat",
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FSETXATTR: "fsetxattr",
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_MOUNT_SETATTR: "mount_setattr",
	unix.SYS_FSCONFIG: "fsconfig", unix.SYS_OPEN_TREE: "open_tree", unix.SYS_FSMOUNT: "fsmount",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_EXIT: "exit",
	unix.SYS_BIND: "bind", unix.SYS_CONNECT: "connect", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_IOCTL: "ioctl",
	unix.SYS_KILL: "kill", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
}

// trace is a traced process.
type trace struct {
	pid int
	// ended is closed when the process is dead and reaped; then the others may be read.
	ended  chan struct{}
	calls  int
	before string // the call that it was killed before; empty if it was not the tracer that killed it
	err    error
}

// startTraced starts a program that is killed before its nth call of changing ones; 0: never.
func startTraced(nth int, args []string, log *os.File) (*trace, error) {
	t := &trace{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(t.ended)
		runtime.LockOSThread() // who is traced is traced by this thread, and waited for by it alone
		defer runtime.UnlockOSThread()
		var err error
		t.pid, err = syscall.ForkExec(args[0], args, &syscall.ProcAttr{Env: os.Environ(),
			Files: []uintptr{log.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Ptrace: true}})
		started <- err
		if err == nil {
			t.err = t.follow(nth)
		}
	}()
	return t, <-started
}

// follow resumes the process's threads whenever they stop, until it is dead.
func (t *trace) follow(nth int) error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(t.pid, &status, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait for exec: %w", err)
	}
	// With the last option it dies with us.
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return fmt.Errorf("set options: %w", err)
	}
	tid, signal := t.pid, 0
	for {
		// A thread that was killed meanwhile cannot be resumed.
		if err := unix.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH {
			return fmt.Errorf("resume: %w", err)
		}
		var err error
		if tid, err = unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil); err != nil {
			return fmt.Errorf("wait for threads: %w", err)
		}
		signal = 0
		switch {
		case status.Exited() || status.Signaled():
			if tid == t.pid {
				return nil
			}
		case status.StopSignal() == unix.SIGTRAP|0x80:
			t.called(tid, nth)
		case status.StopSignal() != unix.SIGTRAP && status.StopSignal() != unix.SIGSTOP: // those are the tracer's
			signal = int(status.StopSignal())
		}
	}
}

// called is told of each begin and end of a call.
func (t *trace) called(tid, nth int) {
	var info struct {
		op     uint8
		_      [23]byte
		number uint64
		_      [56]byte
	}
	const getSyscallInfo, entry = 0x420e, 1
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	name, ok := changing[info.number]
	if e != 0 || info.op != entry || !ok {
		return
	}
	if t.calls++; t.calls == nth {
		t.before = name
		_ = unix.Kill(t.pid, unix.SIGKILL) // it stands still and is not reaped: it is there
	}
}
