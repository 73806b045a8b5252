package main

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// runHooks runs programs one after the other with the container's state as
// their standard input. The first that fails ends the set-up.
func runHooks(hooks []plan.Hook, state []byte, status string) *bare.Fault {
	if len(hooks) == 0 {
		return nil
	}
	pid, _ := bare.Call(unix.SYS_GETPID)
	input := bare.Text(`{"pid":`, bare.Number(pid), `,"status":"`, status, `",`, bare.View(state))
	for i := range hooks {
		if f := runHook(&hooks[i], input); f != nil {
			return f.In("run hook", hooks[i].Path)
		}
	}
	return nil
}

func runHook(h *plan.Hook, state string) *bare.Fault {
	input, f := bare.Sealed("state", state)
	if f != nil {
		return f
	}
	pid, pidfd, e := startHook(h, input)
	bare.Close(input)
	if e != 0 {
		return bare.Wrap("", "", e)
	}
	timeout := -1
	if h.Timeout > 0 {
		timeout = int(h.Timeout) * 1000
	}
	ready, e := bare.Poll(pidfd, timeout)
	if e == 0 && !ready {
		e = unix.ETIMEDOUT
		_, _ = bare.Call(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(pidfd), uintptr(unix.SIGKILL), 0, 0)
	}
	bare.Close(pidfd)
	var status int32
	if _, werr := bare.Pointer(unix.SYS_WAIT4, pid, &status, 0, 0); e == 0 {
		e = werr
	}
	if e != 0 {
		return bare.Wrap("", "", e)
	}
	return hookFailed(unix.WaitStatus(status))
}

// startHook starts a hook's program with the descriptor as its standard input.
func startHook(h *plan.Hook, input int) (pid, pidfd int, e bare.Errno) {
	args := h.Args
	if len(args) == 0 {
		args = bare.Make[string](1)
		args[0] = h.Path
	}
	told, tell, e := bare.Pipe()
	if e != 0 {
		return 0, -1, e
	}
	pid, pidfd, e = bare.Fork()
	if e == 0 && pid == 0 {
		if _, e = bare.Call(unix.SYS_DUP3, uintptr(input), 0, 0); e == 0 {
			e = bare.Execve(h.Path, args, h.Env)
		}
		why := bare.Make[byte](1)
		why[0] = byte(e)
		_, _ = bare.Write(tell, bare.View(why))
		bare.Exit(1)
	}
	bare.Close(tell)
	if e == 0 {
		why := bare.Make[byte](1)
		if n, _ := bare.Read(told, why); n == 1 { // its end is the exec
			e = bare.Errno(why[0])
			var status int32
			_, _ = bare.Pointer(unix.SYS_WAIT4, pid, &status, 0, 0)
			bare.Close(pidfd)
		}
	}
	bare.Close(told)
	return pid, pidfd, e
}

func hookFailed(s unix.WaitStatus) *bare.Fault {
	switch {
	case s == 0:
		return nil
	case s.Signaled():
		return bare.Because("", "", bare.Text("killed by ", bare.SignalName(s.Signal())))
	}
	return bare.Because("", "", bare.Text("exit code ", bare.Number(s.ExitStatus())))
}
