package compile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/capability"
	"github.com/yare-dev/yare/oci/plan"
)

// Process compiles one process, with the container's seccomp profile.
func Process(s *specs.Process, profile *specs.LinuxSeccomp, h Host) (*plan.Process, error) {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return nil, errors.New("process.args: required")
	case !path.IsAbs(s.Cwd):
		return nil, fmt.Errorf("process.cwd %q: must be absolute", s.Cwd)
	case s.ApparmorProfile != "" && s.ApparmorProfile != "unconfined" && !h.AppArmor:
		return nil, fmt.Errorf("process.apparmorProfile %q: this host has no AppArmor", s.ApparmorProfile)
	case s.SelinuxLabel != "" && !h.SELinux:
		return nil, fmt.Errorf("process.selinuxLabel %q: this host has no SELinux", s.SelinuxLabel)
	}
	p := &plan.Process{
		Args: s.Args, Env: s.Env, Cwd: path.Clean(s.Cwd), UID: s.User.UID, GID: s.User.GID, Groups: s.User.AdditionalGids, Umask: -1,
		NoNewPrivs: s.NoNewPrivileges, Terminal: s.Terminal, Keyring: true, SetGroups: true,
		SELinux: s.SelinuxLabel,
	}
	if h.AppArmor {
		p.AppArmor = s.ApparmorProfile
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
	capabilities(p, s.Capabilities, h.Grantable)
	if err := rlimits(p, s.Rlimits); err != nil {
		return nil, err
	}
	if err := errors.Join(scheduling(p, s), affinity(p, s.ExecCPUAffinity)); err != nil {
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
// that does not know one yet); the rest is granted, as other runtimes do. The specification wants a warning for an unknown one.
func capabilities(p *plan.Process, c *specs.LinuxCapabilities, grantable uint64) {
	if c == nil {
		// No set given: the launcher's own, as the specification has it.
		p.Bounding, p.Permitted, p.Effective = grantable, grantable, grantable
		return
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
				p.Warnings = append(p.Warnings, fmt.Sprintf("process.capabilities.%s %q: unknown", set.field, name))
				continue
			}
			*set.bits |= 1 << bit & grantable
		}
	}
}

func rlimits(p *plan.Process, list []specs.POSIXRlimit) error {
	for i, l := range list {
		resource, ok := rlimit(l.Type)
		switch {
		case !ok:
			return fmt.Errorf("process.rlimits[%d].type %q: unknown", i, l.Type)
		case l.Soft > l.Hard:
			return fmt.Errorf("process.rlimits[%d].soft: above hard", i)
		case slices.ContainsFunc(p.Rlimits, func(r plan.Rlimit) bool { return r.Resource == resource }):
			return fmt.Errorf("process.rlimits[%d].type %q: given twice", i, l.Type)
		}
		p.Rlimits = append(p.Rlimits, plan.Rlimit{Resource: resource, Soft: l.Soft, Hard: l.Hard})
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
