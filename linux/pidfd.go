package linux

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenPid returns a pidfd of the process.
func OpenPid(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return fd, wrap("open process", strconv.Itoa(pid), err)
}

// PidOf returns the number of a pidfd's process.
func PidOf(pidfd int) (int, error) {
	path := "/proc/self/fdinfo/" + strconv.Itoa(pidfd)
	b, err := ReadFile(unix.AT_FDCWD, path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if number, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(number))
			if err == nil && pid > 0 {
				return pid, nil
			}
		}
	}
	return 0, wrap("find process of", path, unix.ESRCH)
}

// SignalPidfd sends a signal to the process of a pidfd.
func SignalPidfd(pidfd int, sig unix.Signal) error {
	return wrap("signal process", sig.String(), unix.PidfdSendSignal(pidfd, sig, nil, 0))
}

// StartTime returns when the process started, in clock ticks since boot. With
// the pid it identifies a process until the next boot.
func StartTime(pid int) (uint64, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	b, err := ReadFile(unix.AT_FDCWD, path)
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, and may contain anything.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, wrap("parse", path, unix.EINVAL)
	}
	// Zombies have ended; only their parent has not looked yet.
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, wrap("find process", strconv.Itoa(pid), unix.ESRCH)
	}
	n, err := strconv.ParseUint(fields[19], 10, 64)
	return n, wrap("parse", path, err)
}
