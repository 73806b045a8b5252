package compile

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/capability"
	"github.com/yare-dev/yare/oci/plan"
)

// Process compiles one process, with the container's seccomp profile.
func Process(s *specs.Process, profile *specs.LinuxSeccomp, grantable uint64) (*plan.Process, error) {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return nil, errors.New("process.args: required")
	case !path.IsAbs(s.Cwd):
		return nil, fmt.Errorf("process.cwd %q: must be absolute", s.Cwd)
	case s.ExecCPUAffinity != nil:
		return nil, errors.New("process.execCPUAffinity: not supported")
	}
	p := &plan.Process{
		Args: s.Args, Env: s.Env, Cwd: path.Clean(s.Cwd), UID: s.User.UID, GID: s.User.GID, Groups: s.User.AdditionalGids, Umask: -1,
		NoNewPrivs: s.NoNewPrivileges, Terminal: s.Terminal, SetGroups: true,
		AppArmor: s.ApparmorProfile, SELinux: s.SelinuxLabel,
	}
	if err := texts(s); err != nil {
		return nil, err
	}
	if u := s.User.Umask; u != nil {
		p.Umask = int32(*u & 0o777)
	}
	if c := s.ConsoleSize; c != nil {
		p.Width, p.Height = uint16(min(c.Width, 65535)), uint16(min(c.Height, 65535))
	}
	if n := s.OOMScoreAdj; n != nil {
		if *n < -1000 || *n > 1000 {
			return nil, fmt.Errorf("process.oomScoreAdj %d: must be from -1000 to 1000", *n)
		}
		score := int32(*n)
		p.OOMScoreAdj = &score
	}
	if err := capabilities(p, s.Capabilities, grantable); err != nil {
		return nil, err
	}
	for i, l := range s.Rlimits {
		resource, ok := rlimit(l.Type)
		if !ok {
			return nil, fmt.Errorf("process.rlimits[%d].type %q: unknown", i, l.Type)
		}
		p.Rlimits = append(p.Rlimits, plan.Rlimit{Resource: resource, Soft: l.Soft, Hard: l.Hard})
	}
	if err := scheduling(p, s); err != nil {
		return nil, err
	}
	return p, filter(p, profile)
}

// texts refuses what execve cannot carry.
func texts(s *specs.Process) error {
	for i, a := range s.Args {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("process.args[%d]: contains a zero byte", i)
		}
	}
	for i, e := range s.Env {
		if strings.IndexByte(e, 0) >= 0 {
			return fmt.Errorf("process.env[%d]: contains a zero byte", i)
		}
	}
	return nil
}

// capabilities translates the sets. What the launcher has not, it cannot grant (a host that is itself confined, a kernel
// that does not know one yet); the rest is granted, as other runtimes do.
func capabilities(p *plan.Process, c *specs.LinuxCapabilities, grantable uint64) error {
	if c == nil {
		// No set given: the launcher's own, as the specification has it.
		p.Bounding, p.Permitted, p.Effective = grantable, grantable, grantable
		return nil
	}
	for _, set := range []struct {
		field string
		names []string
		bits  *uint64
	}{
		{"bounding", c.Bounding, &p.Bounding}, {"effective", c.Effective, &p.Effective},
		{"permitted", c.Permitted, &p.Permitted}, {"inheritable", c.Inheritable, &p.Inheritable},
		{"ambient", c.Ambient, &p.Ambient},
	} {
		for _, name := range set.names {
			bit, ok := capability.Bit(name)
			if !ok {
				return fmt.Errorf("process.capabilities.%s %q: unknown", set.field, name)
			}
			*set.bits |= 1 << bit & grantable
		}
	}
	return nil
}

func rlimit(name string) (int32, bool) {
	n, ok := map[string]int32{
		"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	}[name]
	return n, ok
}

func scheduling(p *plan.Process, s *specs.Process) error {
	if io := s.IOPriority; io != nil {
		class, ok := map[specs.IOPriorityClass]int32{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		if !ok || io.Priority < 0 || io.Priority > 7 {
			return fmt.Errorf("process.ioPriority %s %d: unknown class or not from 0 to 7", io.Class, io.Priority)
		}
		n := class<<13 | int32(io.Priority)
		p.IOPriority = &n
	}
	sc := s.Scheduler
	if sc == nil {
		return nil
	}
	policy, ok := map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2,
		specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6}[sc.Policy]
	if !ok {
		return fmt.Errorf("process.scheduler.policy %q: unknown", sc.Policy)
	}
	p.Scheduler = &plan.Scheduler{Policy: policy, Nice: sc.Nice, Priority: uint32(sc.Priority), Runtime: sc.Runtime,
		Deadline: sc.Deadline, Period: sc.Period}
	for _, flag := range sc.Flags {
		bit, ok := map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2,
			specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 16,
			specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64}[flag]
		if !ok {
			return fmt.Errorf("process.scheduler.flags %q: unknown", flag)
		}
		p.Scheduler.Flags |= bit
	}
	return nil
}
