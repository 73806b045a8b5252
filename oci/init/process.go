package main

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// exec turns this process into a further one of a running container. It
// returns only with an error.
func (s *setup) exec() error {
	p := new(plan.Process)
	if err := s.readPlan(p); err != nil {
		return err
	}
	s.slave = -1
	if err := s.openProc(); err != nil {
		return err
	}
	if p.JoinMount {
		if err := s.joinMounts(s.firstFD); err != nil {
			return err
		}
		// A user namespace has no say over the host's cgroup namespace; that it
		// is in already.
		if err := unix.Setns(s.firstFD, unix.CLONE_NEWCGROUP); err != nil && err != unix.EPERM {
			return linux.Wrap("join", "cgroup namespace", err)
		}
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", "/", err)
	}
	s.root = fd
	if p.Terminal {
		if err := s.console(p, false); err != nil {
			return err
		}
	}
	return s.become(p, nil)
}

// become gives the process the plan's identity and execs its program, when
// c is not nil after the start byte. It returns only with an error.
func (s *setup) become(p *plan.Process, c *plan.Container) error {
	if p.Terminal {
		if err := s.takeTerminal(); err != nil {
			return err
		}
	}
	if err := s.limits(p); err != nil {
		return err
	}
	if err := s.labels(p); err != nil {
		return err
	}
	s.closeProc() // what is the host's stays open no longer than it must
	if err := attributes(p); err != nil {
		return err
	}
	s.ownStreams(p)
	cwdErr := enter(p.Cwd) // before a filter can be in the way
	if !p.NoNewPrivs {
		// Without no_new_privs loading a filter takes CAP_SYS_ADMIN, which is
		// about to go.
		if err := s.loadSeccomp(p); err != nil {
			return err
		}
	}
	if err := s.credentials(p); err != nil {
		return err
	}
	if cwdErr != nil { // a directory that only the user may enter
		if cwdErr = enter(p.Cwd); cwdErr != nil {
			return cwdErr
		}
	}
	program, err := lookUp(p)
	if err != nil {
		return err
	}
	if p.NoNewPrivs && p.Notify { // while the launcher is there to send the listener on
		if err := s.loadSeccomp(p); err != nil {
			return err
		}
	}
	if c != nil {
		if err := s.send(plan.MsgReady, ""); err != nil {
			return err
		}
		if err := wait(s.startFD); err != nil {
			return err
		}
		if err := runHooks(c.StartContainer, c.State, "created"); err != nil {
			return err
		}
	}
	if p.NoNewPrivs && !p.Notify {
		if err := s.loadSeccomp(p); err != nil {
			return err
		}
	}
	err = syscall.Exec(program, p.Args, p.Env)
	return notExecutable(program, err)
}

func notExecutable(program string, err error) error {
	code := 126
	if err == syscall.ENOENT || err == syscall.ENOTDIR {
		code = 127
	}
	return &execError{linux.Wrap("exec", program, err), code}
}

// limits sets resource limits and the OOM score. Raising either takes
// CAP_SYS_RESOURCE, which the whole host may lack: that is a warning.
func (s *setup) limits(p *plan.Process) error {
	for _, l := range p.Rlimits {
		err := unix.Prlimit(0, int(l.Resource), &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		if err == unix.EPERM {
			s.warn(linux.Wrap("raise resource limit", strconv.Itoa(int(l.Resource)), err))
		} else if err != nil {
			return linux.Wrap("set resource limit", strconv.Itoa(int(l.Resource)), err)
		}
	}
	if p.OOMScoreAdj != nil {
		err := s.writeProc("self/oom_score_adj", strconv.Itoa(int(*p.OOMScoreAdj)))
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			s.warn(err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// labels asks the security modules to confine the program from exec on. They
// are written by way of the thread, which is the one that execs.
func (s *setup) labels(p *plan.Process) error {
	if p.AppArmor != "" {
		err := s.writeProc("thread-self/attr/apparmor/exec", "exec "+p.AppArmor)
		if errors.Is(err, unix.ENOENT) { // apparmor(7)
			return errors.New("AppArmor has no profile " + strconv.Quote(p.AppArmor) + " loaded")
		}
		if err != nil {
			return err
		}
	}
	if p.SELinux != "" {
		return s.writeProc("thread-self/attr/exec", p.SELinux)
	}
	return nil
}

func attributes(p *plan.Process) error {
	if p.Umask >= 0 {
		unix.Umask(int(p.Umask))
	}
	if p.Personality != nil {
		if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(*p.Personality), 0, 0); e != 0 {
			return linux.Wrap("set", "personality", e)
		}
	}
	if m := p.Memory; m != nil {
		var nodes, bits uintptr
		if len(m.Nodes) > 0 {
			nodes, bits = uintptr(unsafe.Pointer(&m.Nodes[0])), uintptr(64*len(m.Nodes)+1) // the kernel takes one less
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(m.Mode), nodes, bits); e != 0 {
			return linux.Wrap("set", "memory policy", e)
		}
	}
	if len(p.CPUs) > 0 {
		_, _, e := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(p.CPUs)), uintptr(unsafe.Pointer(&p.CPUs[0])))
		if e != 0 {
			return linux.Wrap("set", "processor affinity", e)
		}
	}
	if p.IOPriority != nil {
		const whoProcess = 1
		if _, _, e := unix.RawSyscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(*p.IOPriority)); e != 0 {
			return linux.Wrap("set", "input/output priority", e)
		}
	}
	if sc := p.Scheduler; sc != nil {
		attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: sc.Policy, Flags: sc.Flags, Nice: sc.Nice,
			Priority: sc.Priority, Runtime: sc.Runtime, Deadline: sc.Deadline, Period: sc.Period}
		return linux.Wrap("set", "scheduler", unix.SchedSetAttr(0, attr, 0))
	}
	return nil
}

// ownStreams gives pipes and terminals of the standard streams to the user,
// who may want to open them by /dev/stdout.
func (s *setup) ownStreams(p *plan.Process) {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Uid == p.UID {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO, unix.S_IFSOCK:
		case unix.S_IFCHR:
			if s.slave < 0 { // /dev/null of the host
				continue
			}
		default:
			continue
		}
		_ = unix.Fchown(fd, int(p.UID), -1) // what cannot be owned can still be written
	}
}

// enter changes the working directory and makes sure that it lies below the
// root: a descriptor of the host's that leaked would be "(unreachable)".
func enter(cwd string) error {
	if err := unix.Chdir(cwd); err != nil {
		return linux.Wrap("enter", cwd, err)
	}
	b := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(b)
	if err == nil && (n < 1 || b[0] != '/') {
		err = errors.New("outside of the container's root")
	}
	return linux.Wrap("enter", cwd, err)
}

// credentials drops from what we are to what the plan says. All calls are raw:
// they change this thread alone, which is the one that execs.
func (s *setup) credentials(p *plan.Process) error {
	for bit := uintptr(0); bit <= 63; bit++ {
		if p.Bounding&(1<<bit) != 0 {
			continue
		}
		if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0); e == unix.EINVAL {
			break // beyond the last capability of this kernel
		} else if e != 0 {
			return linux.Wrap("drop", "bounding capability", e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); e != 0 {
		return linux.Wrap("keep", "capabilities", e)
	}
	if p.SetGroups {
		var list uintptr
		if len(p.Groups) > 0 {
			list = uintptr(unsafe.Pointer(&p.Groups[0]))
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.Groups)), list, 0); e != 0 {
			return linux.Wrap("set", "groups", e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(p.GID), uintptr(p.GID), uintptr(p.GID)); e != 0 {
		return linux.Wrap("set", "group", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(p.UID), uintptr(p.UID), uintptr(p.UID)); e != 0 {
		return linux.Wrap("set", "user", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0); e != 0 {
		return linux.Wrap("keep", "capabilities", e)
	}
	return s.capabilities(p)
}

func (s *setup) capabilities(p *plan.Process) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	for i := range sets {
		shift := 32 * i
		sets[i] = unix.CapUserData{Effective: uint32(p.Effective >> shift), Permitted: uint32(p.Permitted >> shift),
			Inheritable: uint32(p.Inheritable >> shift)}
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return linux.Wrap("set", "capabilities", err)
	}
	if _, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); e != 0 {
		return linux.Wrap("clear", "ambient capabilities", e)
	}
	for bit := uintptr(0); bit <= 63; bit++ {
		if p.Ambient&(1<<bit) == 0 {
			continue
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit, 0, 0, 0); e == unix.EPERM {
			// Not permitted and inheritable as well; the specification wants it known, not refused.
			s.warn(linux.Wrap("raise ambient capability", strconv.Itoa(int(bit)), e))
		} else if e != 0 {
			return linux.Wrap("raise", "ambient capability", e)
		}
	}
	if p.NoNewPrivs {
		return linux.Wrap("set", "no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	}
	return nil
}

// loadSeccomp confines this thread from here on. With an agent it returns when that has the listener.
func (s *setup) loadSeccomp(p *plan.Process) error {
	if len(p.Seccomp) == 0 {
		return nil
	}
	filter := unsafe.Slice((*unix.SockFilter)(unsafe.Pointer(&p.Seccomp[0])), len(p.Seccomp)/8)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const setModeFilter = 1
	listener, _, e := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, uintptr(p.SeccompFlags), uintptr(unsafe.Pointer(&program)))
	if e != 0 {
		return linux.Wrap("load", "seccomp filter", e)
	}
	if !p.Notify {
		return nil
	}
	err := s.send(plan.MsgListener, "", int(listener))
	unix.Close(int(listener))
	if err != nil {
		return err
	}
	return wait(s.syncFD)
}

// lookUp finds the program as execvp does, with the plan's PATH and the
// user's rights, so that a missing one is known before start.
func lookUp(p *plan.Process) (string, error) {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", notExecutable(name, err)
		}
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range p.Env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value
		}
	}
	result := error(syscall.ENOENT)
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = "."
		}
		err := executable(dir + "/" + name)
		if err == nil {
			return dir + "/" + name, nil
		}
		if err == syscall.EACCES {
			result = err
		}
	}
	return "", &execError{errors.New("exec " + name + ": " + executableText(result)), notExecutable(name, result).(*execError).code}
}

func executableText(err error) string {
	if err == syscall.ENOENT {
		return "executable file not found in $PATH"
	}
	return err.Error()
}

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return syscall.EACCES
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}
