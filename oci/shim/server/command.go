package server

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// command is the program of another OCI runtime under way. What it makes becomes a child of ours when it ends: we are the
// subreaper of all that it starts.
//
//	run --> fork: RUNTIME create ...  its child: the container's first process
//	         |                                     |
//	        ends: done reads the pid file          | orphaned: ours now
//	         `-----------------------------------> watched by its pidfd, as any other
type command struct {
	s       *server
	what    protocol.Command
	pid     int
	pidfd   int
	console int // the socket that a terminal's master comes to, or -1
	timer   int // how long it may take yet, or -1
	done    func(*command, error)
}

// run starts the program with streams that stay the caller's. done is called when it has ended, with an error unless it was
// with success.
func (s *server) run(what protocol.Command, stdio [3]int, done func(*command, error)) (*command, error) {
	if s.swept == nil {
		return nil, errors.New("the sandbox was not made for other runtimes")
	}
	c := &command{s: s, what: what, pidfd: -1, console: -1, timer: -1, done: done}
	if err := c.listen(); err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, // ours is for us alone
		Files: []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &c.pidfd},
	}
	var err error
	if c.pid, err = syscall.ForkExec(what.Args[0], what.Args, attr); err != nil {
		c.free()
		return nil, linux.Wrap("run", what.Args[0], err)
	}
	s.commands++
	s.watch(c.pidfd, unix.EPOLLIN, func(uint32) { c.ended() })
	s.ring()
	return c, nil
}

// longest is how long a program may take of whose client nobody knows whether it still waits.
const longest = 30 * time.Second

// runFor runs a program that makes no process. It is run here and not by the client because it is to find the sandbox's
// network namespace: runsc has an abstract socket in it.
func (s *server) runFor(client *connection, r *protocol.Request) error {
	c, err := s.run(r.Command, [3]int{s.null, s.null, s.null}, func(_ *command, err error) {
		if err != nil {
			client.fail(r.Serial, err)
			return
		}
		client.send(&protocol.Reply{Serial: r.Serial})
	})
	if err == nil {
		c.limit(longest)
	}
	return err
}

// listen makes the socket for the terminal. One connection with its message waits there until the program has ended.
func (c *command) listen() (err error) {
	if c.what.Console == "" {
		return nil
	}
	if c.console, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return linux.Wrap("make", "console socket", err)
	}
	if err = unix.Bind(c.console, &unix.SockaddrUnix{Name: c.what.Console}); err == nil {
		err = unix.Listen(c.console, 1)
	}
	if err != nil {
		c.free()
	}
	return linux.Wrap("listen on", c.what.Console, err)
}

func (c *command) ended() {
	status := reap(c.pid)
	c.s.close(&c.pidfd)
	var err error
	if status.Code != 0 {
		err = coded{protocol.Failed, c.what.Args[0] + ": " + exitText(status)}
	}
	c.done(c, err)
	c.free()
	c.s.commands--
	c.s.sweep()
}

func (c *command) free() {
	if c.console >= 0 {
		_ = unix.Unlink(c.what.Console) // else it goes with the state directory
	}
	c.s.close(&c.console)
	c.s.close(&c.timer)
}

// futile is how long a program may go on whose work is wanted no more: that starts what has ended already (crun waits for the
// dead without end), or an exec that was given up.
const futile = 2 * time.Second

// limit ends the program if it does not end by itself.
func (c *command) limit(most time.Duration) {
	c.s.close(&c.timer)
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err == nil {
		c.timer = fd
		err = unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(most))}, nil)
	}
	if err != nil {
		c.kill() // no descriptors or memory are left: rather now than never
		return
	}
	c.s.watch(fd, unix.EPOLLIN, func(uint32) {
		c.s.close(&c.timer)
		c.kill()
	})
}

// kill ends the program; without one it does nothing.
func (c *command) kill() {
	if c != nil {
		_ = linux.SignalPidfd(c.pidfd, unix.SIGKILL)
	}
}

// process returns the process that the program has made, whom nobody has reaped yet. It is a child of ours whom we do not know: any other
// would be somebody's whom we must not kill, and whose end is not told to us.
func (c *command) process() (pid, pidfd int, err error) {
	text, err := c.pidText()
	if err != nil {
		return 0, -1, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(text))
	if err != nil || pid <= 1 {
		return 0, -1, errors.New(c.what.Args[0] + " has written no process number but " + strconv.Quote(text))
	}
	if pidfd, err = linux.OpenPid(pid); err != nil {
		return 0, -1, err
	}
	if err = unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || c.s.owner(pid) != nil || pid == c.s.reaperPid {
		unix.Close(pidfd)
		return 0, -1, errors.New(c.what.Args[0] + " has written the number of process " + strconv.Itoa(pid) + ", which is no child of its own")
	}
	return pid, pidfd, nil
}

// pidText is what stands in the pid file: no more than a number has. Whatever the program has put there, the loop does not wait for it.
func (c *command) pidText() (string, error) {
	fd, err := unix.Open(c.what.PidFile, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", linux.Wrap("open", c.what.PidFile, err)
	}
	defer unix.Close(fd)
	b := make([]byte, 32)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), linux.Wrap("read", c.what.PidFile, err)
}

// terminal returns the master that the program has sent.
func (c *command) terminal() (int, error) {
	conn, _, err := unix.Accept4(c.console, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return -1, linux.Wrap("accept", "terminal", err)
	}
	defer unix.Close(conn)
	_, fds, err := linux.ReceiveMessage(conn, make([]byte, 4096))
	if err == nil && len(fds) != 1 {
		linux.CloseAll(fds...)
		err = errors.New(c.what.Args[0] + " has sent no terminal")
	}
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// launchForeign has another runtime create the container.
func (k *container) launchForeign(r *protocol.Request, _ []int) error {
	k.foreign = true
	child, err := k.io.open(r)
	if err != nil {
		return err
	}
	defer child.close()
	k.command, err = k.s.run(r.Command, child.fds, k.made)
	return err
}

// made is called when the program that creates the container has ended.
func (k *container) made(c *command, err error) {
	k.command = nil
	if err == nil && k.creator == nil {
		err = coded{protocol.Failed, "given up"}
	}
	if err == nil {
		k.pid, k.pidfd, err = c.process()
	}
	if err == nil && c.what.Console != "" {
		var master int
		if master, err = c.terminal(); err == nil {
			k.io.terminal(master)
		}
	}
	if err != nil {
		k.problem = err
		if k.pidfd >= 0 { // the client has the runtime delete what it knows, which a broken one does not
			_ = linux.SignalPidfd(k.pidfd, unix.SIGKILL)
		}
		k.s.close(&k.pidfd)
		k.vanish()
		return
	}
	k.s.watch(k.pidfd, unix.EPOLLIN, func(uint32) { k.exited() })
	k.state = created
	k.creator.send(&protocol.Reply{Serial: k.serial, Pid: k.pid})
	k.creator = nil
}

// beginForeign has the runtime start the container.
func (k *container) beginForeign(c *connection, r *protocol.Request) (err error) {
	before := time.Now()
	k.command, err = k.s.run(r.Command, [3]int{k.s.null, k.s.null, k.s.null}, k.begun)
	if err == nil {
		k.waiting, k.serial, k.started = c, r.Serial, before
	}
	return err
}

// begun is called when the program that starts the container has ended.
func (k *container) begun(_ *command, err error) {
	k.command = nil
	if err == nil {
		k.state = running
		k.waiting.send(&protocol.Reply{Serial: k.serial, Pid: k.pid})
	} else {
		k.started = time.Time{}
		if k.ended {
			err = coded{protocol.Failed, "container ended before it ran"}
		}
		k.waiting.fail(k.serial, err)
	}
	k.waiting = nil
	if k.ended {
		k.exited()
	}
	k.goOn()
}

// execForeign has the container's runtime make the process.
func (s *server) execForeign(c *connection, r *protocol.Request, streams []int) error {
	stdio, err := s.stdio(r.Streams, streams)
	if err != nil {
		return err
	}
	s.sessions++
	e := &exec{s: s, session: s.sessions, client: c, serial: r.Serial, pidfd: -1, sync: -1, master: -1}
	if e.command, err = s.run(r.Command, stdio, e.made); err == nil {
		s.execs[e.session] = e
	}
	return err
}

// made is called when the program that makes the process has ended. It may have been killed when the process was there already.
func (e *exec) made(c *command, err error) {
	e.command = nil
	pid, pidfd, noProcess := c.process()
	if err == nil {
		err = noProcess
	}
	if err == nil && c.what.Console != "" {
		e.master, err = c.terminal()
	}
	if noProcess == nil {
		e.pid, e.pidfd = pid, pidfd
		e.s.watch(e.pidfd, unix.EPOLLIN, func(uint32) { e.exited() })
		if e.killed || err != nil {
			e.kill()
		}
	}
	switch {
	case err == nil:
		e.reply()
	case noProcess == nil:
		e.problem = err // told when it has ended
	default:
		delete(e.s.execs, e.session)
		e.client.fail(e.serial, err)
	}
}

// adoptOrphans makes us the parent of what other runtimes leave behind, and of what their containers do where these have no PID
// namespace of their own. A second goroutine sleeps in the kernel until a child has ended, and rings a bell then: containers and
// execs are watched by their pidfds, but nobody else is.
func (s *server) adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return linux.Wrap("become", "subreaper", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return linux.Wrap("make", "eventfd", err)
	}
	s.swept = make(chan struct{}, 1)
	s.watch(bell, unix.EPOLLIN, func(uint32) {
		_, _ = unix.Read(bell, make([]byte, 8))
		s.sweep()
	})
	go func() {
		for {
			// An error is that there is no child: the next one is heralded by a token.
			if linux.Retry(func() error { return unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil) }) == nil {
				_, _ = unix.Write(bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			}
			<-s.swept
		}
	}()
	return nil
}

// ring lets the bell ring again.
func (s *server) ring() {
	select {
	case s.swept <- struct{}{}:
	default:
	}
}

// sweep takes all ended children away. While a runtime's program is under way nobody knows yet which of them are containers.
func (s *server) sweep() {
	if s.commands > 0 {
		return
	}
	for pid := endedChild(); pid > 0; pid = endedChild() {
		if ended := s.owner(pid); ended != nil {
			ended()
		} else {
			reap(pid)
		}
	}
	s.ring()
}

// owner finds who is to be told of the end of a process.
func (s *server) owner(pid int) (ended func()) {
	for _, k := range s.containers {
		if k.pidfd >= 0 && k.pid == pid {
			return k.exited
		}
	}
	for _, e := range s.execs {
		if e.pidfd >= 0 && e.pid == pid {
			return e.exited
		}
	}
	return nil
}
