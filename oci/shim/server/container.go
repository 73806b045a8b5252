package server

import (
	"errors"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// States, as package shim numbers them.
const (
	creating = iota
	created
	running
	stopped
)

// container is one container. Descriptors are -1 when closed.
type container struct {
	s  *server
	id string
	// number is larger than those of all that were made before.
	number uint64
	state  uint8
	pid    int
	pidfd  int
	enter  int // CLONE_NEW flags of namespaces that an exec joins as well
	sync   int // to the init, until it has exec'ed
	start  int // write end; one byte lets the init go
	// foreign containers are made by another runtime, whose program is under way while command is set. An end that comes
	// meanwhile is ended: it is looked at when the command has ended.
	foreign bool
	command *command
	ended   bool
	// creator and waiting are who asked for the change that is under way.
	creator  *connection
	waiting  *connection
	serial   uint64
	later    []func() // what is to be done when the start that is under way is over
	warnings []string
	problem  error // why the init gave up

	io      streams
	created time.Time
	started time.Time
	oomFile string
	cgroup  string
	exit    protocol.Exit
}

// create launches a container's init. The reply is sent when it is set up.
func (s *server) create(c *connection, r *protocol.Request, fds []int) error {
	defer func() { linux.CloseAll(fds...) }()
	if _, ok := s.containers[r.ID]; ok {
		return coded{protocol.Exists, "container " + r.ID + ": already exists"}
	}
	s.made++
	k := &container{s: s, id: r.ID, number: s.made, pidfd: -1, sync: -1, start: -1, creator: c, serial: r.Serial,
		oomFile: r.OOMFile, cgroup: r.CgroupPath, created: time.Now()}
	k.io.init(s)
	launch := k.launch
	if len(r.Command.Args) > 0 {
		launch = k.launchForeign
	}
	if err := launch(r, fds); err != nil {
		k.free()
		return err
	}
	s.containers[r.ID] = k
	s.order = append(s.order, r.ID)
	if k.foreign {
		return nil
	}
	s.watch(k.sync, unix.EPOLLIN, func(uint32) { k.message() })
	s.watch(k.pidfd, unix.EPOLLIN, func(uint32) { k.exited() })
	return nil
}

// attached sorts the descriptors of a launch into place; what is left are an
// exec's streams, or the init's further descriptors.
func attached(l *protocol.Launch, fds []int, p *launch.Process) (planFD int, rest []int, err error) {
	need := 1 + l.Tasks + len(l.Join)
	if l.HasCgroup {
		need++
	}
	if l.Tasks < 0 || len(fds) < need {
		return -1, nil, errors.New("descriptors are missing")
	}
	planFD, fds = fds[0], fds[1:]
	p.Cgroup = -1
	if l.HasCgroup {
		p.Cgroup, fds = fds[0], fds[1:]
	}
	p.Tasks, fds = fds[:l.Tasks], fds[l.Tasks:]
	for i, flags := range l.Join {
		p.Join = append(p.Join, launch.Namespace{FD: fds[i], Flags: int(flags)})
	}
	return planFD, fds[len(l.Join):], nil
}

func idMap(list []protocol.IDMap) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: m.Container, HostID: m.Host, Size: m.Size})
	}
	return out
}

func (k *container) launch(r *protocol.Request, fds []int) error {
	p := launch.Process{Exe: k.s.exe, Name: "yare-init", Role: launch.Container, CloneFlags: uintptr(r.Launch.CloneFlags),
		UIDs: idMap(r.Launch.UIDs), GIDs: idMap(r.Launch.GIDs), TimeOffsets: r.Launch.TimeOffsets, OOMScoreAdj: r.Launch.OOMScoreAdj}
	planFD, extras, err := attached(&r.Launch, fds, &p)
	if err != nil {
		return err
	}
	if k.s.reaper >= 0 && r.Launch.CloneFlags&unix.CLONE_NEWPID == 0 && !slices.Contains(r.Launch.Join, unix.CLONE_NEWPID) {
		p.Join = append(p.Join, launch.Namespace{FD: k.s.reaper, Flags: unix.CLONE_NEWPID})
	}
	k.enter = int(r.Launch.CloneFlags)
	for _, flags := range r.Launch.Join {
		k.enter |= int(flags)
	}
	k.enter &= unix.CLONE_NEWUSER | unix.CLONE_NEWTIME
	child, err := k.io.open(r)
	if err != nil {
		return err
	}
	defer child.close()
	sync, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("make", "socket pair", err)
	}
	defer unix.Close(sync[1])
	k.sync = sync[0]
	var start [2]int
	if err := unix.Pipe2(start[:], unix.O_CLOEXEC); err != nil {
		return linux.Wrap("make", "pipe", err)
	}
	defer unix.Close(start[0])
	k.start = start[1]
	p.Files = []int{child.fds[0], child.fds[1], child.fds[2], planFD, sync[1], start[0]}
	p.Files = append(p.Files, extras...)
	k.pid, k.pidfd, err = launch.Start(p)
	return err
}

// message takes one message from the init.
func (k *container) message() {
	var fds []int
	kind, text, err := receive(k.sync, &fds)
	if kind == plan.MsgConsole && len(fds) == 1 {
		k.io.terminal(fds[0])
		return
	}
	linux.CloseAll(fds...)
	switch {
	case err != nil || kind == 0:
		// The end: exec'ed, or dead, which the pidfd tells.
		k.s.close(&k.sync)
		if k.state == created && k.waiting != nil {
			k.ran()
		}
	case kind == plan.MsgWarning:
		k.warnings = append(k.warnings, text)
	case kind == plan.MsgHooks:
		k.creator.send(&protocol.Reply{Serial: k.serial, Phase: true, Pid: k.pid})
	case kind == plan.MsgReady:
		k.state = created
		k.creator.send(&protocol.Reply{Serial: k.serial, Pid: k.pid, Warnings: k.warnings})
		k.creator, k.warnings = nil, nil
	case kind == plan.MsgError:
		k.problem = coded{protocol.Failed, text}
	case kind == plan.MsgExec:
		k.problem = coded{protocol.NotExecutable, text}
	}
}

// ran is called when the sync socket has ended after Start: either the program
// runs, or the init is dying without a word.
func (k *container) ran() {
	if k.problem != nil {
		return // exited replies
	}
	k.state, k.started = running, time.Now()
	k.waiting.send(&protocol.Reply{Serial: k.serial, Pid: k.pid})
	k.waiting = nil
	k.goOn()
}

// goOn does what has waited for the start.
func (k *container) goOn() {
	later := k.later
	k.later = nil
	for _, f := range later {
		f()
	}
}

// exited is called when the process has ended.
func (k *container) exited() {
	if k.command != nil {
		k.ended = true
		k.s.pause(k.pidfd)
		k.command.limit(futile)
		return
	}
	for k.sync >= 0 && pending(k.sync) { // what it said last
		k.message()
	}
	k.s.close(&k.sync)
	k.exit = reap(k.pid)
	k.exit.OOM = linux.OOMKilled(k.oomFile)
	k.s.close(&k.pidfd)
	k.s.close(&k.start)
	if k.state == creating {
		k.vanish()
		return
	}
	k.io.finish()
	k.state = stopped
	if k.problem != nil {
		k.started = time.Time{} // it never ran
	}
	if err := k.s.persist(k.id, k.exit); err != nil {
		// The record is a help for a server that was away; one that is here
		// hears of the exit all the same.
		logLine(err)
	}
	if k.waiting != nil {
		err := k.problem
		if err == nil {
			err = coded{protocol.Failed, "container ended before it ran"}
		}
		k.waiting.fail(k.serial, err)
		k.waiting = nil
	}
	k.goOn()
	k.s.broadcast(k.id, k.exit)
}

// vanish takes back a container whose set-up did not succeed.
func (k *container) vanish() {
	err := k.problem
	if err == nil {
		err = coded{protocol.Failed, "container init died: " + exitText(k.exit)}
	}
	client, serial := k.creator, k.serial
	k.free()
	k.goOn()
	if client != nil {
		client.fail(serial, err)
	}
	k.s.broadcast(k.id, k.exit) // another client may wait for its end
}

// abandon gives up a set-up whose client is gone.
func (k *container) abandon() {
	k.creator = nil
	k.command.kill()
	_ = linux.SignalPidfd(k.pidfd, unix.SIGKILL)
}

// free closes everything and forgets the container. The process, if any, is dead.
func (k *container) free() {
	k.io.close()
	for _, fd := range []*int{&k.sync, &k.start, &k.pidfd} {
		k.s.close(fd)
	}
	delete(k.s.containers, k.id)
	k.s.order = slices.DeleteFunc(k.s.order, func(id string) bool { return id == k.id })
}

// serve carries out requests about one container.
func (k *container) serve(c *connection, r *protocol.Request) error {
	done := func() { c.send(&protocol.Reply{Serial: r.Serial, Pid: k.pid}) }
	switch r.Verb {
	case protocol.Continue:
		if k.state != creating || k.sync < 0 {
			return k.wrongState()
		}
		if err := linux.SendMessage(k.sync, []byte{1}); err != nil {
			return err
		}
		done()
	case protocol.Abandon:
		if k.state != creating && k.state != created {
			return k.wrongState()
		}
		k.state = creating // so that its end makes it vanish
		k.abandon()
		done()
	case protocol.Start:
		return k.begin(c, r)
	case protocol.Kill:
		if k.pidfd < 0 {
			return k.wrongState()
		}
		if err := linux.SignalPidfd(k.pidfd, unix.Signal(r.Signal)); err != nil {
			return err
		}
		done()
	case protocol.Delete:
		if k.pidfd >= 0 || k.command != nil {
			return k.wrongState()
		}
		k.free()
		done()
	case protocol.Resize:
		if err := k.io.resize(r.Width, r.Height); err != nil {
			return err
		}
		done()
	case protocol.CloseStdin:
		k.io.closeInput()
		done()
	case protocol.ReopenLog:
		if err := k.io.reopen(); err != nil {
			return err
		}
		done()
	default:
		return coded{protocol.Failed, "unknown request"}
	}
	return nil
}

func (k *container) begin(c *connection, r *protocol.Request) error {
	if k.state != created || k.released() {
		return k.wrongState()
	}
	if k.foreign {
		return k.beginForeign(c, r)
	}
	if _, err := unix.Write(k.start, []byte{1}); err != nil {
		return linux.Wrap("start container", k.id, err)
	}
	k.waiting, k.serial, k.started = c, r.Serial, time.Now()
	k.s.close(&k.start)
	return nil
}

// released tells whether a created container was let go.
func (k *container) released() bool {
	if k.foreign {
		return k.command != nil
	}
	return k.start < 0
}

func (k *container) wrongState() error {
	names := [...]string{"creating", "created", "running", "stopped"}
	return coded{protocol.WrongState, "the container is " + names[k.state]}
}

// record tells of the container. One that was let go runs, for all that its client can do about it.
func (k *container) record() protocol.Container {
	r := protocol.Container{ID: k.id, State: k.state, Pid: k.pid, Created: k.created.UnixNano(), Exit: k.exit, Cgroup: k.cgroup}
	if k.state == created && k.released() {
		r.State = running
	}
	if !k.started.IsZero() {
		r.Started = k.started.UnixNano()
	}
	return r
}

// pending tells whether a message waits.
func pending(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// reap waits for a dead child and returns how it ended.
func reap(pid int) protocol.Exit {
	var status unix.WaitStatus
	err := linux.Retry(func() error { _, e := unix.Wait4(pid, &status, 0, nil); return e })
	e := protocol.Exit{At: time.Now().UnixNano()}
	switch {
	case err != nil:
		e.Code = 255
	case status.Signaled():
		e.Signal = int32(status.Signal())
		e.Code = 128 + e.Signal
	default:
		e.Code = int32(status.ExitStatus())
	}
	return e
}

func exitText(e protocol.Exit) string {
	if e.Signal != 0 {
		return "killed by " + unix.Signal(e.Signal).String()
	}
	return "exit code " + strconv.Itoa(int(e.Code))
}

// persist writes the exit record: to a new file, synced, then renamed.
func (s *server) persist(id string, e protocol.Exit) error {
	path := s.dir + "/" + id + "/exit"
	fd, err := unix.Open(path+".new", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return linux.Wrap("create", path, err)
	}
	_, err = unix.Write(fd, wire.Marshal(&e))
	if err == nil {
		err = unix.Fsync(fd)
	}
	unix.Close(fd)
	if err == nil {
		err = unix.Rename(path+".new", path)
	}
	return linux.Wrap("write", path, err)
}

// logLine writes to the shim's own log.
func logLine(err error) { _, _ = unix.Write(2, []byte(err.Error()+"\n")) }
