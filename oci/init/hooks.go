package main

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// runHooks runs programs one after the other with the container's state as
// their standard input. The first that fails ends the set-up.
func runHooks(hooks []plan.Hook, state []byte, status string) error {
	if len(hooks) == 0 {
		return nil
	}
	input := []byte(`{"pid":` + strconv.Itoa(unix.Getpid()) + `,"status":"` + status + `",` + string(state))
	for i := range hooks {
		if err := runHook(&hooks[i], input); err != nil {
			return linux.Wrap("run hook", hooks[i].Path, err)
		}
	}
	return nil
}

func runHook(h *plan.Hook, state []byte) error {
	input, err := linux.SealedFile("state", state, false)
	if err != nil {
		return err
	}
	defer unix.Close(input)
	if _, err := unix.Seek(input, 0, unix.SEEK_SET); err != nil {
		return err
	}
	pidfd := -1
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pid, err := syscall.ForkExec(h.Path, args, &syscall.ProcAttr{
		Env: h.Env, Files: []uintptr{uintptr(input), 1, 2}, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
	})
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	timeout := -1
	if h.Timeout > 0 {
		timeout = int(h.Timeout) * 1000
	}
	n := 0
	err = linux.Retry(func() (err error) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, timeout)
		return err
	})
	if err == nil && n == 0 {
		err = unix.ETIMEDOUT
		_ = linux.SignalPidfd(pidfd, unix.SIGKILL)
	}
	var status unix.WaitStatus
	werr := linux.Retry(func() error { _, e := unix.Wait4(pid, &status, 0, nil); return e })
	switch {
	case err != nil:
		return err
	case werr != nil:
		return werr
	case status != 0:
		return hookFailed(status)
	}
	return nil
}

type hookFailed unix.WaitStatus

func (h hookFailed) Error() string {
	if s := unix.WaitStatus(h); s.Signaled() {
		return "killed by " + s.Signal().String()
	}
	return "exit code " + strconv.Itoa(unix.WaitStatus(h).ExitStatus())
}
