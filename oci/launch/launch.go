// Package launch brings a yare-init to life: in its cgroup, joined to
// namespaces that exist and in new ones of its own. The shim uses it for the
// sandbox's containers, the runtime for those of the command line, and the
// shim client for the shim itself. It replaces runc's nsexec.c.
//
// Everything that must hold for the child from its first instruction on is
// given to the forking thread, from which the child inherits it. What takes long
// to make follows by a message, if the plan says so (plan.MsgEnter).
//
//	thread (where it moves: locked to its goroutine, never reused)
//	  |  "0" -> <v1 group>/tasks      moves this thread only: no RCU wait
//	  |  setns(net, ipc, uts, pid...)
//	  |  clone(new namespaces, into the v2 cgroup by descriptor, pidfd)
//	  |      `-- child: exec yare-init from its sealed memory file
//	  `- ends with the goroutine
//
// It is linked into yare-init: neither fmt nor os/exec.
package launch

import (
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Process says what to start. All descriptors remain the caller's.
type Process struct {
	// Exe is the program as a descriptor.
	Exe int
	// Name is argv[0].
	Name string
	// Role is what the program is to be.
	Role Role
	// Preserve is the number of Files from 3 on that are not yare-init's.
	Preserve int
	// Files become the child's descriptors from 0 on.
	Files []int
	// CloneFlags are the CLONE_NEW flags of namespaces to make.
	CloneFlags uintptr
	// UIDs and GIDs are the mappings of a new user namespace.
	UIDs, GIDs []syscall.SysProcIDMap
	// TimeOffsets are the lines of a new time namespace's offsets.
	TimeOffsets []string
	// Join are namespaces to join before, except for mount ones.
	Join []Namespace
	// OOMScoreAdj is set from outside where a user namespace is joined or made, in which the process cannot.
	OOMScoreAdj *int32
	// CPUs is what the process may run on before it is in its cgroup; nil: as the caller.
	CPUs *unix.CPUSet
	// Tasks are the tasks files of v1 groups, opened for writing.
	Tasks []int
	// Cgroup is the directory of the v2 group; negative: the caller's group.
	Cgroup int
}

// OpenFiles is the limit of open files that this program was started with; zeros if it is not known. The Go runtime raises the soft one
// to the hard one, which [syscall.ForkExec] takes back for its children, and package launch where it forks by itself.
var OpenFiles unix.Rlimit

// Role is what a yare-init process is to be.
type Role string

// The roles.
const (
	Container Role = "container" // executes a plan.Container
	Exec      Role = "exec"      // executes a plan.Process in a container
	Reaper    Role = "reaper"    // process 1 of a shared PID namespace
	Shim      Role = "shim"      // a sandbox's shim
)

// RoleVariable and FDVariable are the environment variables that tell a
// yare-init its role and which descriptor plan.PlanFD has become. They are not
// seen by the container's program, whose environment is the plan's.
const (
	RoleVariable = "YARE_ROLE"
	FDVariable   = "YARE_FD"
)

// environment tells the process what it is for. It keeps the Go runtime of a shim, the only one that has any, small: one processor's
// worth of scheduling, garbage collection from 200 kB on, and no huge pages for such a heap.
func (p *Process) environment() []string {
	env := []string{RoleVariable + "=" + string(p.Role), FDVariable + "=" + strconv.Itoa(3+p.Preserve)}
	if p.Role == Shim {
		env = append(env, "GOMAXPROCS=1", "GODEBUG=disablethp=1", "GOGC=5")
	}
	return env
}

// Namespace is one to join: a descriptor of a namespace, or a pidfd of a
// process, with the CLONE_NEW flags of what to join.
type Namespace struct {
	FD    int
	Flags int
}

// Before are the namespaces of a container that a further process joins before it
// starts. It enters the others by itself: the mount namespace, and the cgroup
// namespace, from within which we, who are outside it, could not put anybody
// into a group where v2 is mounted with nsdelegate. A user namespace would have
// to be the first.
const Before = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Start starts the process in a session of its own. The caller owns the pidfd
// and must reap the child.
func Start(p Process) (pid, pidfd int, err error) {
	if !p.moves() {
		return start(p)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end. It stands still here, so that the next
			// goroutine gets another.
			defer runtime.UnlockOSThread()
			pid, pidfd, err = Start(p)
			return
		}
		// Never unlocked: the thread has changed and dies with the goroutine.
		pid, pidfd, err = start(p)
	}()
	<-done
	return pid, pidfd, err
}

// moves tells whether the thread itself goes where the process is to be.
func (p *Process) moves() bool {
	return p.CPUs != nil || len(p.Tasks)+len(p.Join) > 0 || p.CloneFlags&unix.CLONE_NEWTIME != 0
}

func start(p Process) (int, int, error) {
	if p.CPUs != nil {
		if err := unix.SchedSetaffinity(0, p.CPUs); err != nil {
			return 0, -1, linux.Wrap("set", "processor affinity", err)
		}
	}
	for _, fd := range p.Tasks {
		if err := enter(fd); err != nil {
			return 0, -1, err
		}
	}
	apart := p.CloneFlags&inChild != 0
	for _, n := range p.Join {
		apart = apart || n.Flags&inChild != 0
		if n.Flags&^inChild == 0 {
			continue
		}
		if err := unix.Setns(n.FD, n.Flags&^inChild); err != nil {
			return 0, -1, linux.Wrap("join", "namespace", err)
		}
	}
	if p.CloneFlags&unix.CLONE_NEWTIME != 0 {
		if err := newTime(p.TimeOffsets); err != nil {
			return 0, -1, err
		}
	}
	files := make([]uintptr, len(p.Files))
	for i, fd := range p.Files {
		files[i] = uintptr(fd)
	}
	// Above all that are shuffled into the child's own places before exec.
	above := slices.Max(append([]int{3}, p.Files...)) + len(p.Files) + 2
	exe, err := unix.FcntlInt(uintptr(p.Exe), unix.F_DUPFD_CLOEXEC, above)
	if err != nil {
		return 0, -1, linux.Wrap("duplicate", p.Name, err)
	}
	defer unix.Close(exe)
	if apart {
		return startApart(&p, exe)
	}
	pidfd := -1
	sys := &syscall.SysProcAttr{
		Setsid:      true,
		Cloneflags:  p.CloneFlags,
		UseCgroupFD: p.Cgroup >= 0,
		CgroupFD:    max(p.Cgroup, 0),
		PidFD:       &pidfd,
	}
	attr := &syscall.ProcAttr{Env: p.environment(), Files: files, Sys: sys}
	pid, err := syscall.ForkExec(linux.FDPath(exe), []string{p.Name}, attr)
	if err != nil {
		return 0, -1, linux.Wrap("start", p.Name, err)
	}
	return pid, pidfd, nil
}

// enter moves this thread, and it alone, into the v1 group of a tasks file.
func enter(tasks int) error {
	return linux.Wrap("join", "cgroup", linux.Retry(func() error { _, err := unix.Write(tasks, []byte("0")); return err }))
}

// newTime makes a time namespace for this thread's children. Its offsets can be set until the first of them is in it.
func newTime(offsets []string) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return linux.Wrap("make", "time namespace", err)
	}
	file := "/proc/" + strconv.Itoa(unix.Gettid()) + "/timens_offsets" // thread-self has none
	for _, line := range offsets {
		if err := linux.WriteFile(unix.AT_FDCWD, file, line); err != nil {
			return err
		}
	}
	return nil
}
