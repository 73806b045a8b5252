package launch

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// A user or time namespace is entered only by a process with one thread, which a Go program never is. So these are joined
// between fork and exec, by code that must do without the runtime: raw system calls on memory that is made before.
//
//	launcher            first                            child
//	  | clone(FILES) ----> | setns(user, time)
//	  |                    | clone(new namespaces, PARENT, PIDFD) -> |
//	  | <-- pidfd -------- | exit                                  | wait
//	  | uid_map, gid_map, oom_score_adj                            |
//	  |----------------------------------------------- one byte -> |
//	  |                                                            | root of the user namespace, session, exec
//
// New namespaces are made by whoever is in the user namespace already, so that they belong to it.

// inChild are the namespaces that only a process with one thread joins.
const inChild = unix.CLONE_NEWUSER | unix.CLONE_NEWTIME

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// nursery is all that the two processes need, made before the fork.
type nursery struct {
	joins []Namespace // flags among inChild
	clone cloneArgs
	root  bool // become root of the user namespace
	hold  bool // only wait, to keep a namespace alive
	exe   int
	files []int // each above all places
	argv  []*byte
	envv  []*byte
	empty *byte
	// go: one byte is read before exec; its end is the order to give up. told: the child's pidfd, then perhaps an errno.
	goRead, goWrite, toldWrite int
	group                      int         // the v2 group's directory, or -1
	said                       int32       // what is told; not on the stack, which may move after its address is taken
	openFiles                  unix.Rlimit // see OpenFiles
}

// birth forks twice. Only the launcher returns from it, with the first process's pid. The first shares the launcher's
// descriptors, so that the pidfd of the child, whose number it may see in another PID namespace, is the launcher's.
//
//go:noinline
//go:norace
func birth(n *nursery) (pid int, err syscall.Errno) {
	var one [4]byte
	var r uintptr
	first := cloneArgs{flags: unix.CLONE_FILES, exitSignal: uint64(unix.SIGCHLD)}
	if n.group >= 0 { // here: whoever has joined a user namespace may not
		first.flags |= unix.CLONE_INTO_CGROUP
		first.cgroup = uint64(n.group)
	}
	n.clone.flags |= unix.CLONE_PARENT | unix.CLONE_PIDFD
	n.clone.pidfd = uint64(uintptr(unsafe.Pointer(&n.said)))
	beforeFork()
	r, _, err = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&first)), unsafe.Sizeof(first), 0)
	if err != 0 || r != 0 {
		afterFork()
		return int(r), err
	}
	afterForkInChild()
	for i := range n.joins {
		if _, _, err = syscall.RawSyscall(unix.SYS_SETNS, uintptr(n.joins[i].FD), uintptr(n.joins[i].Flags), 0); err != 0 {
			goto fail
		}
	}
	r, _, err = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&n.clone)), unsafe.Sizeof(n.clone), 0)
	if err != 0 {
		goto fail
	}
	if r != 0 {
		syscall.RawSyscall(unix.SYS_WRITE, uintptr(n.toldWrite), uintptr(unsafe.Pointer(&n.said)), 4)
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	syscall.RawSyscall(unix.SYS_CLOSE, uintptr(n.goWrite), 0, 0)
	r, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(n.goRead), uintptr(unsafe.Pointer(&one)), 1)
	if r != 1 || n.hold {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
	if n.root {
		if _, _, err = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); err != 0 {
			goto fail
		}
		if _, _, err = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); err != 0 {
			goto fail
		}
	}
	syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	for i := range n.files {
		if _, _, err = syscall.RawSyscall(unix.SYS_DUP3, uintptr(n.files[i]), uintptr(i), 0); err != 0 {
			goto fail
		}
	}
	if n.openFiles.Max != 0 {
		syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&n.openFiles)), 0, 0, 0)
	}
	_, _, err = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(n.exe), uintptr(unsafe.Pointer(n.empty)),
		uintptr(unsafe.Pointer(&n.argv[0])), uintptr(unsafe.Pointer(&n.envv[0])), unix.AT_EMPTY_PATH, 0)
fail:
	n.said = -int32(err)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(n.toldWrite), uintptr(unsafe.Pointer(&n.said)), 4)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// told reads a number from the pipe; 0 is its end.
func told(fd int) (int, error) {
	var b [4]byte
	n := 0
	err := linux.Retry(func() (err error) { n, err = unix.Read(fd, b[:]); return err })
	if err != nil || n == 0 {
		return 0, err
	}
	number := int(*(*int32)(unsafe.Pointer(&b)))
	if number < 0 {
		return 0, syscall.Errno(-number)
	}
	return number, nil
}

// bear starts a process by way of birth. act is done with it before it may go on.
func bear(n *nursery, act func(pid int) error) (pid, pidfd int, err error) {
	var order, answer [2]int
	if err := unix.Pipe2(order[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, err
	}
	defer func() { linux.CloseAll(order[0], order[1]) }()
	if err := unix.Pipe2(answer[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, err
	}
	defer func() { linux.CloseAll(answer[0], answer[1]) }()
	// Out of the way of the places that the child fills.
	for _, fd := range []*int{&order[0], &answer[1]} {
		high, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, len(n.files)+3)
		if err != nil {
			return 0, -1, err
		}
		unix.Close(*fd)
		*fd = high
	}
	n.goRead, n.goWrite, n.toldWrite = order[0], order[1], answer[1]
	syscall.ForkLock.Lock()
	first, errno := birth(n)
	syscall.ForkLock.Unlock()
	if errno != 0 {
		return 0, -1, errno
	}
	// It does not wait for anything, and shares our end of the pipe until it has ended.
	_ = linux.Retry(func() error { _, e := unix.Wait4(first, nil, 0, nil); return e })
	unix.Close(answer[1])
	unix.Close(order[0])
	order[0], answer[1] = -1, -1
	if pidfd, err = told(answer[0]); err != nil {
		return 0, -1, err
	}
	if pidfd == 0 {
		return 0, -1, syscall.ECHILD
	}
	if pid, err = linux.PidOf(pidfd); err == nil {
		err = act(pid)
	}
	if err == nil {
		_, err = unix.Write(order[1], []byte{1})
	}
	if err == nil && !n.hold {
		_, err = told(answer[0]) // its end is the exec
	}
	if err != nil {
		_ = linux.SignalPidfd(pidfd, unix.SIGKILL)
		if pid > 0 {
			_ = linux.Retry(func() error { _, e := unix.Wait4(pid, nil, 0, nil); return e })
		}
		unix.Close(pidfd)
		return 0, -1, err
	}
	return pid, pidfd, nil
}

// startApart starts a process that joins or makes a user or time namespace.
func startApart(p *Process, exe int) (int, int, error) {
	n := &nursery{exe: exe, group: p.Cgroup, root: p.CloneFlags&unix.CLONE_NEWUSER != 0, openFiles: OpenFiles}
	n.clone.flags = uint64(p.CloneFlags &^ unix.CLONE_NEWTIME)
	for _, j := range p.Join {
		if flags := j.Flags & inChild; flags != 0 {
			n.joins = append(n.joins, Namespace{FD: j.FD, Flags: flags})
			n.root = n.root || flags&unix.CLONE_NEWUSER != 0
		}
	}
	defer func() { linux.CloseAll(n.files...) }()
	for _, fd := range p.Files {
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, len(p.Files)+3)
		if err != nil {
			return 0, -1, linux.Wrap("start", p.Name, err)
		}
		n.files = append(n.files, high)
	}
	var err error
	if n.empty, err = syscall.BytePtrFromString(""); err == nil {
		n.argv, err = syscall.SlicePtrFromStrings([]string{p.Name})
	}
	if err == nil {
		n.envv, err = syscall.SlicePtrFromStrings(p.environment())
	}
	if err != nil {
		return 0, -1, linux.Wrap("start", p.Name, err)
	}
	pid, pidfd, err := bear(n, func(pid int) error { return p.settle(pid, n.root) })
	return pid, pidfd, linux.Wrap("start", p.Name, err)
}

// settle does what only the launcher may: the mappings, the owner of the standard streams, and the OOM score, which a process
// in a user namespace cannot set.
func (p *Process) settle(pid int, users bool) error {
	proc := "/proc/" + strconv.Itoa(pid)
	if p.CloneFlags&unix.CLONE_NEWUSER != 0 {
		if err := writeMaps(proc, p.UIDs, p.GIDs); err != nil {
			return err
		}
	}
	if users {
		if err := p.giveStreams(proc); err != nil {
			return err
		}
	}
	if p.OOMScoreAdj == nil {
		return nil
	}
	return linux.WriteFile(unix.AT_FDCWD, proc+"/oom_score_adj", strconv.Itoa(int(*p.OOMScoreAdj)))
}

// giveStreams gives pipes among the standard streams to root of the process's user namespace, who can pass them on: their owner
// may open them by /dev/stdout.
func (p *Process) giveStreams(proc string) error {
	uid, err := rootIn(proc + "/uid_map")
	if err != nil {
		return err
	}
	gid, err := rootIn(proc + "/gid_map")
	if err != nil {
		return err
	}
	for _, fd := range p.Files[:min(len(p.Files), 3)] {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue
		}
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return linux.Wrap("change owner of", "stream", err)
		}
	}
	return nil
}

// rootIn returns what 0 is outside, by a file of mappings as the kernel shows it.
func rootIn(file string) (int, error) {
	b, err := linux.ReadFile(unix.AT_FDCWD, file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "0" {
			n, err := strconv.Atoi(f[1])
			return n, linux.Wrap("read", file, err)
		}
	}
	return 0, linux.Wrap("find 0 in", file, syscall.EINVAL)
}

func writeMaps(proc string, uids, gids []syscall.SysProcIDMap) error {
	for _, m := range []struct {
		name string
		list []syscall.SysProcIDMap
	}{{"/uid_map", uids}, {"/gid_map", gids}} {
		text := ""
		for _, l := range m.list {
			text += strconv.Itoa(l.ContainerID) + " " + strconv.Itoa(l.HostID) + " " + strconv.Itoa(l.Size) + "\n"
		}
		if err := linux.WriteFile(unix.AT_FDCWD, proc+m.name, text); err != nil {
			return err
		}
	}
	return nil
}

// UserNamespace returns a descriptor of a new user namespace with the mappings, in which no process is: for id-mapped mounts.
func UserNamespace(uids, gids []syscall.SysProcIDMap) (fd int, err error) {
	fd = -1
	err = UserNamespaces(0, uids, gids, func(proc string) (err error) {
		fd, err = unix.Open(proc+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		linux.CloseAll(fd)
		return -1, err
	}
	return fd, nil
}

// UserNamespaces makes a user namespace with the mappings, and those of the CLONE_NEW flags to belong to it. hold is called
// with the folder in /proc of a process that does nothing but be in them; what it does not take hold of goes with that.
func UserNamespaces(flags uintptr, uids, gids []syscall.SysProcIDMap, hold func(proc string) error) error {
	n := &nursery{hold: true, group: -1, clone: cloneArgs{flags: uint64(flags) | unix.CLONE_NEWUSER}}
	pid, pidfd, err := bear(n, func(pid int) error {
		proc := "/proc/" + strconv.Itoa(pid)
		if err := writeMaps(proc, uids, gids); err != nil {
			return err
		}
		return hold(proc)
	})
	if err != nil {
		return linux.Wrap("make", "user namespace", err)
	}
	unix.Close(pidfd)
	return linux.Wrap("make", "user namespace", linux.Retry(func() error { _, e := unix.Wait4(pid, nil, 0, nil); return e }))
}
