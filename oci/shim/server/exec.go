package server

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// exec is a further process in a container. Its streams are the client's own
// pipes, so the shim copies nothing; a terminal's master goes to the client too.
type exec struct {
	s        *server
	session  uint64
	client   *connection
	serial   uint64
	pid      int
	pidfd    int
	sync     int
	master   int
	command  *command // of another runtime, which makes the process; nil when it is made
	killed   bool     // meanwhile
	replied  bool
	warnings []string
	problem  error
}

// exec launches a process. The reply is sent when the program has been exec'ed. In a container whose start is under way, which
// runs as far as anybody is told, it waits for that.
func (s *server) exec(c *connection, r *protocol.Request, fds []int) error {
	k, ok := s.containers[r.ID]
	if ok && k.state == created && k.released() {
		k.later = append(k.later, func() {
			if c.fd < 0 { // nobody would hear of it, or end it
				linux.CloseAll(fds...)
			} else if err := s.exec(c, r, fds); err != nil {
				c.fail(r.Serial, err)
			}
		})
		return nil
	}
	defer func() { linux.CloseAll(fds...) }()
	if !ok {
		return coded{protocol.NotFound, "container " + r.ID + ": not found"}
	}
	if k.state != running {
		return k.wrongState()
	}
	if len(r.Command.Args) > 0 {
		return s.execForeign(c, r, fds)
	}
	s.sessions++
	e := &exec{s: s, session: s.sessions, client: c, serial: r.Serial, pidfd: -1, sync: -1, master: -1}
	p := launch.Process{Exe: s.exe, Name: "yare-init", Role: launch.Exec, OOMScoreAdj: r.Launch.OOMScoreAdj}
	planFD, streams, err := attached(&r.Launch, fds, &p)
	if err != nil {
		return err
	}
	// The container's process is our child and not reaped, so its pidfd is
	// its namespaces; what is not joined now is by the init itself.
	p.Join = append(p.Join, launch.Namespace{FD: k.pidfd, Flags: launch.Before | k.enter})
	stdio, err := s.stdio(r.Streams, streams)
	if err != nil {
		return err
	}
	sync, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("make", "socket pair", err)
	}
	defer unix.Close(sync[1])
	p.Files = []int{stdio[0], stdio[1], stdio[2], planFD, sync[1], s.null, k.pidfd}
	if e.pid, e.pidfd, err = launch.Start(p); err != nil {
		unix.Close(sync[0])
		return err
	}
	e.sync = sync[0]
	s.execs[e.session] = e
	s.watch(e.sync, unix.EPOLLIN, func(uint32) { e.message() })
	s.watch(e.pidfd, unix.EPOLLIN, func(uint32) { e.exited() })
	return nil
}

// stdio are an exec's streams: the client's, and /dev/null for those that it does not want.
func (s *server) stdio(mask uint8, streams []int) ([3]int, error) {
	stdio := [3]int{s.null, s.null, s.null}
	for i := range stdio {
		if mask&(1<<i) == 0 {
			continue
		}
		if len(streams) == 0 {
			return stdio, errors.New("descriptors are missing")
		}
		stdio[i], streams = streams[0], streams[1:]
	}
	return stdio, nil
}

func (e *exec) message() {
	var fds []int
	kind, text, err := receive(e.sync, &fds)
	if kind == plan.MsgConsole && len(fds) == 1 {
		e.master = fds[0]
		return
	}
	linux.CloseAll(fds...)
	switch {
	case err != nil || kind == 0:
		e.s.close(&e.sync)
		if e.problem == nil {
			e.reply()
		}
	case kind == plan.MsgWarning:
		e.warnings = append(e.warnings, text)
	case kind == plan.MsgError:
		e.problem = coded{protocol.Failed, text}
	case kind == plan.MsgExec:
		e.problem = coded{protocol.NotExecutable, text}
	}
}

// reply tells the client that the program runs.
func (e *exec) reply() {
	if e.replied {
		return
	}
	e.replied = true
	r := &protocol.Reply{Serial: e.serial, Pid: e.pid, Session: e.session, Warnings: e.warnings}
	if e.master < 0 {
		e.client.send(r)
		return
	}
	e.client.send(r, e.master)
	e.s.close(&e.master)
}

func (e *exec) exited() {
	for e.sync >= 0 && pending(e.sync) {
		e.message()
	}
	status := reap(e.pid)
	delete(e.s.execs, e.session)
	for _, fd := range []*int{&e.sync, &e.pidfd, &e.master} {
		e.s.close(fd)
	}
	switch {
	case e.replied:
		e.client.send(&protocol.Reply{Session: e.session, Exit: status})
	case e.problem != nil:
		e.client.fail(e.serial, e.problem)
	default:
		e.client.fail(e.serial, coded{protocol.Failed, "exec init died: " + exitText(status)})
	}
}

// signal reaches the process group: the session that exec made for it.
func (e *exec) signal(sig unix.Signal) {
	if e.command != nil {
		// It tells whom to kill when it has ended: killed itself, it may leave a process that nobody knows.
		if !e.killed {
			e.killed = true
			e.command.limit(futile)
		}
		return
	}
	if e.pidfd < 0 {
		return
	}
	// Not reaped yet, so the number is still its own.
	if err := unix.Kill(-e.pid, sig); err != nil {
		_ = linux.SignalPidfd(e.pidfd, sig)
	}
}

func (e *exec) kill() { e.signal(unix.SIGKILL) }
