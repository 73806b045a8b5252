package oci

import (
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
)

// sleeper is a process that holds a unit until the container is born there.
type sleeper struct{ life, pidfd int }

// createUnit has systemd make the group around a sleeper.
func (p *Prepared) createUnit(o *PrepareOptions) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("make", "socket pair", err)
	}
	defer unix.Close(pair[1])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(pair[0])
		return linux.Wrap("open", "/dev/null", err)
	}
	defer unix.Close(null)
	// The reaper of shared PID namespaces does nothing but wait for us.
	pid, pidfd, err := launch.Start(launch.Process{Exe: o.Init.FD(), Name: "yare-init", Role: launch.Reaper,
		Files: []int{null, null, null, null, pair[1]}, Cgroup: -1})
	if err != nil {
		unix.Close(pair[0])
		return err
	}
	p.unit = &sleeper{life: pair[0], pidfd: pidfd}
	if err := p.Group.CreateUnit(pid, o.Spec.Linux.Resources); err != nil {
		return err
	}
	p.furnished = true
	p.Entry, err = p.Group.Entry()
	return err
}

// end ends the process, if there is one, and returns when it has ended.
func (s *sleeper) end() {
	if s == nil {
		return
	}
	unix.Close(s.life)
	_ = linux.Retry(func() error { return unix.Waitid(unix.P_PIDFD, s.pidfd, nil, unix.WEXITED, nil) })
	unix.Close(s.pidfd)
}
