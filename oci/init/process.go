package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/plan"
)

// exec turns this process into a further one of a running container. It
// returns only with a fault.
func (s *setup) exec(p *plan.Process) *bare.Fault {
	if f := s.readPlan(p); f != nil {
		return f
	}
	if f := s.openProc(); f != nil {
		return f
	}
	if p.JoinMount {
		if f := s.joinMounts(s.firstFD); f != nil {
			return f
		}
		// A user namespace has no say over the host's cgroup namespace; that it
		// is in already.
		if _, e := bare.Call(unix.SYS_SETNS, uintptr(s.firstFD), unix.CLONE_NEWCGROUP); e != 0 && e != unix.EPERM {
			return bare.Wrap("join", "cgroup namespace", e)
		}
	}
	fd, e := bare.Open("/", unix.O_PATH|unix.O_DIRECTORY)
	if e != 0 {
		return bare.Wrap("open", "/", e)
	}
	s.root = fd
	if p.Terminal {
		if f := s.console(p, false); f != nil {
			return f
		}
	}
	return s.become(p, nil)
}

// become gives the process the plan's identity and execs its program, when
// c is not nil after the start byte. It returns only with a fault.
func (s *setup) become(p *plan.Process, c *plan.Container) *bare.Fault {
	if p.Terminal {
		if f := s.takeTerminal(); f != nil {
			return f
		}
	}
	if f := s.score(p); f != nil {
		return f
	}
	if f := s.labels(p); f != nil {
		return f
	}
	if f := s.keyring(p); f != nil {
		return f
	}
	s.closeProc()                   // what is the host's stays open no longer than it must
	if f := s.limits(p); f != nil { // which may leave no descriptor to open
		return f
	}
	if f := attributes(p); f != nil {
		return f
	}
	s.ownStreams(p)
	outside := enter(p.Cwd) // before a filter can be in the way
	if !p.NoNewPrivs {
		// Without no_new_privs loading a filter takes CAP_SYS_ADMIN, which is
		// about to go.
		if f := s.loadSeccomp(p); f != nil {
			return f
		}
	}
	if f := s.credentials(p); f != nil {
		return f
	}
	if outside != nil { // a directory that only the user may enter
		if outside = enter(p.Cwd); outside != nil {
			return outside
		}
	}
	program, f := lookUp(p)
	if f != nil {
		return f
	}
	if p.NoNewPrivs && p.Notify { // while the launcher is there to send the listener on
		if f := s.loadSeccomp(p); f != nil {
			return f
		}
	}
	if c != nil {
		if f := s.start(c); f != nil {
			return f
		}
	}
	if p.NoNewPrivs && !p.Notify {
		if f := s.loadSeccomp(p); f != nil {
			return f
		}
	}
	return notExecutable(program, bare.Execve(program, p.Args, p.Env))
}

// start waits for the container's start.
func (s *setup) start(c *plan.Container) *bare.Fault {
	if f := s.send(plan.MsgReady, "", -1); f != nil {
		return f
	}
	if f := wait(s.startFD); f != nil {
		return f
	}
	return runHooks(c.StartContainer, c.State, "created")
}

func notExecutable(program string, e bare.Errno) *bare.Fault {
	f := bare.Wrap("exec", program, e)
	f.Exit = 126
	if e == unix.ENOENT || e == unix.ENOTDIR {
		f.Exit = 127
	}
	return f
}

// limits sets resource limits. To raise them, and to lower the OOM score, takes
// CAP_SYS_RESOURCE, which the whole host may lack: that is a warning.
func (s *setup) limits(p *plan.Process) *bare.Fault {
	for i := range p.Rlimits {
		l := &p.Rlimits[i]
		limit := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		_, e := bare.Second(unix.SYS_PRLIMIT64, 0, uintptr(l.Resource), &limit)
		if e == unix.EPERM {
			s.warn(bare.Wrap("raise resource limit", bare.Number(int(l.Resource)), e))
		} else if e != 0 {
			return bare.Wrap("set resource limit", bare.Number(int(l.Resource)), e)
		}
	}
	return nil
}

// score sets the OOM score.
func (s *setup) score(p *plan.Process) *bare.Fault {
	if p.OOMScoreAdj == nil {
		return nil
	}
	f := s.writeProc("self/oom_score_adj", bare.Number(int(*p.OOMScoreAdj)))
	if f.Is(unix.EACCES) || f.Is(unix.EPERM) {
		s.warn(f)
		return nil
	}
	return f
}

// labels asks the security modules to confine the program from exec on.
func (s *setup) labels(p *plan.Process) *bare.Fault {
	if p.AppArmor != "" {
		f := s.writeProc("thread-self/attr/apparmor/exec", bare.Text("exec ", p.AppArmor))
		if f.Is(unix.ENOENT) { // apparmor(7)
			return bare.Because("", "", bare.Text(`AppArmor has no profile "`, p.AppArmor, `" loaded`))
		}
		if f != nil {
			return f
		}
	}
	if p.SELinux != "" {
		return s.writeProc("thread-self/attr/exec", p.SELinux)
	}
	return nil
}

// keyring leaves the launcher's session keyring for a new one, where the kernel has any and lets us.
func (s *setup) keyring(p *plan.Process) *bare.Fault {
	if !p.Keyring {
		return nil
	}
	_, e := bare.Call(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	switch e {
	case 0, unix.ENOSYS, unix.EPERM: // none in this kernel, or none for those that we are confined with
		return nil
	case unix.EDQUOT: // keyrings(7)
		return bare.Because("make", "session keyring", "its user has as many keys as kernel.keys.maxkeys allows: raise it")
	}
	return bare.Wrap("make", "session keyring", e)
}

func attributes(p *plan.Process) *bare.Fault {
	if p.Umask >= 0 {
		_, _ = bare.Call(unix.SYS_UMASK, uintptr(p.Umask))
	}
	if p.Personality != nil {
		if _, e := bare.Call(unix.SYS_PERSONALITY, uintptr(*p.Personality)); e != 0 {
			return bare.Wrap("set", "personality", e)
		}
	}
	if m := p.Memory; m != nil {
		bits := uintptr(0)
		if len(m.Nodes) > 0 {
			bits = uintptr(64*len(m.Nodes) + 1) // the kernel takes one less
		}
		if _, e := bare.Pointer(unix.SYS_SET_MEMPOLICY, int(m.Mode), unsafe.SliceData(m.Nodes), bits); e != 0 {
			return bare.Wrap("set", "memory policy", e)
		}
	}
	if len(p.CPUs) > 0 {
		if _, e := bare.Second(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(p.CPUs)), &p.CPUs[0]); e != 0 {
			return bare.Wrap("set", "processor affinity", e)
		}
	}
	if p.IOPriority != nil {
		const whoProcess = 1
		if _, e := bare.Call(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(*p.IOPriority)); e != 0 {
			return bare.Wrap("set", "input/output priority", e)
		}
	}
	if sc := p.Scheduler; sc != nil {
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: sc.Policy, Flags: sc.Flags, Nice: sc.Nice,
			Priority: sc.Priority, Runtime: sc.Runtime, Deadline: sc.Deadline, Period: sc.Period}
		_, e := bare.Pointer(unix.SYS_SCHED_SETATTR, 0, &attr, 0)
		return bare.Wrap("set", "scheduler", e)
	}
	return nil
}

// ownStreams gives pipes and terminals of the standard streams to the user,
// who may want to open them by /dev/stdout.
func (s *setup) ownStreams(p *plan.Process) {
	for fd := range 3 {
		var st unix.Stat_t
		if bare.Fstat(fd, &st) != 0 || st.Uid == p.UID {
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
		_, _ = bare.Call(unix.SYS_FCHOWN, uintptr(fd), uintptr(p.UID), ^uintptr(0)) // what cannot be owned can still be written
	}
}

// enter changes the working directory and makes sure that it lies below the
// root: a descriptor of the host's that leaked would be "(unreachable)".
func enter(cwd string) *bare.Fault {
	if _, e := bare.Name(unix.SYS_CHDIR, cwd); e != 0 {
		return bare.Wrap("enter", cwd, e)
	}
	b := bare.Make[byte](unix.PathMax)
	n, e := bare.Getcwd(b)
	if e == 0 && (n < 1 || b[0] != '/') {
		return bare.Because("enter", cwd, "outside of the container's root")
	}
	return bare.Wrap("enter", cwd, e)
}

// credentials drops from what we are to what the plan says.
func (s *setup) credentials(p *plan.Process) *bare.Fault {
	for bit := uintptr(0); bit <= 63; bit++ {
		if p.Bounding&(1<<bit) != 0 {
			continue
		}
		if e := bare.Prctl(unix.PR_CAPBSET_DROP, bit); e == unix.EINVAL {
			break // beyond the last capability of this kernel
		} else if e != 0 {
			return bare.Wrap("drop", "bounding capability", e)
		}
	}
	if e := bare.Prctl(unix.PR_SET_KEEPCAPS, 1); e != 0 {
		return bare.Wrap("keep", "capabilities", e)
	}
	if p.SetGroups {
		if _, e := bare.Pointer(unix.SYS_SETGROUPS, len(p.Groups), unsafe.SliceData(p.Groups)); e != 0 {
			return bare.Wrap("set", "groups", e)
		}
	}
	if _, e := bare.Call(unix.SYS_SETRESGID, uintptr(p.GID), uintptr(p.GID), uintptr(p.GID)); e != 0 {
		return bare.Wrap("set", "group", e)
	}
	if _, e := bare.Call(unix.SYS_SETRESUID, uintptr(p.UID), uintptr(p.UID), uintptr(p.UID)); e != 0 {
		return bare.Wrap("set", "user", e)
	}
	if e := bare.Prctl(unix.PR_SET_KEEPCAPS, 0); e != 0 {
		return bare.Wrap("keep", "capabilities", e)
	}
	return s.capabilities(p)
}

func (s *setup) capabilities(p *plan.Process) *bare.Fault {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	for i := range sets {
		shift := 32 * i
		sets[i] = unix.CapUserData{Effective: uint32(p.Effective >> shift), Permitted: uint32(p.Permitted >> shift),
			Inheritable: uint32(p.Inheritable >> shift)}
	}
	if e := bare.Capset(&header, &sets); e != 0 {
		return bare.Wrap("set", "capabilities", e)
	}
	if e := bare.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); e != 0 {
		return bare.Wrap("clear", "ambient capabilities", e)
	}
	for bit := uintptr(0); bit <= 63; bit++ {
		if p.Ambient&(1<<bit) == 0 {
			continue
		}
		if e := bare.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, bit); e == unix.EPERM {
			// Not permitted and inheritable as well; the specification wants it known, not refused.
			s.warn(bare.Wrap("raise ambient capability", bare.Number(int(bit)), e))
		} else if e != 0 {
			return bare.Wrap("raise", "ambient capability", e)
		}
	}
	if p.NoNewPrivs {
		return bare.Wrap("set", "no_new_privs", bare.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1))
	}
	return nil
}

// loadSeccomp confines the process from here on. With an agent it returns when that has the listener.
func (s *setup) loadSeccomp(p *plan.Process) *bare.Fault {
	if len(p.Seccomp) == 0 {
		return nil
	}
	program := unix.SockFprog{Len: uint16(len(p.Seccomp) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Seccomp[0]))}
	const setModeFilter = 1
	listener, e := bare.Second(unix.SYS_SECCOMP, setModeFilter, uintptr(p.SeccompFlags), &program)
	if e != 0 {
		return bare.Wrap("load", "seccomp filter", e)
	}
	if !p.Notify {
		return nil
	}
	f := s.send(plan.MsgListener, "", listener)
	bare.Close(listener)
	if f != nil {
		return f
	}
	return wait(s.syncFD)
}

// lookUp finds the program as execvp does, with the plan's PATH and the
// user's rights, so that a missing one is known before start.
func lookUp(p *plan.Process) (string, *bare.Fault) {
	name := p.Args[0]
	for i := range len(name) {
		if name[i] == '/' {
			if e := executable(name); e != 0 {
				return "", notExecutable(name, e)
			}
			return name, nil
		}
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range p.Env {
		if value, ok := after(e, "PATH="); ok {
			path = value
		}
	}
	var result bare.Errno = unix.ENOENT
	for begin := 0; begin <= len(path); {
		end := begin
		for end < len(path) && path[end] != ':' {
			end++
		}
		dir := path[begin:end]
		if dir == "" {
			dir = "."
		}
		mark := bare.Mark()
		program := bare.Text(dir, "/", name)
		e := executable(program)
		if e == 0 {
			return program, nil
		}
		bare.Release(mark)
		if e == unix.EACCES {
			result = e
		}
		begin = end + 1
	}
	return "", notFound(name, result)
}

func notFound(name string, e bare.Errno) *bare.Fault {
	reason := bare.Reason(e)
	if e == unix.ENOENT {
		reason = "executable file not found in $PATH"
	}
	f := bare.Because("exec", name, reason)
	f.Exit = notExecutable(name, e).Exit
	return f
}

func executable(path string) bare.Errno {
	var st unix.Stat_t
	if e := bare.Stat(unix.AT_FDCWD, path, 0, &st); e != 0 {
		return e
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EACCES
	}
	e := bare.Path(unix.SYS_FACCESSAT2, unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	if e == unix.ENOSYS || e == unix.EPERM { // a filter of an older list of system calls
		e = bare.Path(unix.SYS_FACCESSAT, unix.AT_FDCWD, path, unix.X_OK)
	}
	if (e == unix.ENOSYS || e == unix.EPERM) && st.Mode&0o111 != 0 { // and of one that has neither: exec will tell
		e = 0
	}
	return e
}
