package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// connection is one client.
type connection struct {
	s  *server
	fd int
}

// accept takes a client in, after all that those before it have asked for: a server that was killed may have asked for
// starts, which its successor must not find undone and then done.
func (s *server) accept(listener int) {
	for _, c := range slices.Clone(s.connections) {
		for c.fd >= 0 && pending(c.fd) {
			c.ready(unix.EPOLLIN)
		}
	}
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return // gone before we looked
	}
	c := &connection{s: s, fd: fd}
	s.connections = append(s.connections, c)
	s.watch(fd, unix.EPOLLIN, c.ready)
}

// close forgets the client. What it was in the middle of creating is undone;
// its execs are killed, because nobody can hear of their end.
func (c *connection) close() {
	if c.fd < 0 {
		return
	}
	c.s.close(&c.fd)
	c.s.connections = slices.DeleteFunc(c.s.connections, func(o *connection) bool { return o == c })
	for _, id := range slices.Clone(c.s.order) {
		if k := c.s.containers[id]; k.creator == c {
			k.abandon()
		}
	}
	for _, e := range c.s.execs {
		if e.client == c {
			e.kill()
		}
	}
}

func (c *connection) ready(events uint32) {
	if events&unix.EPOLLIN == 0 {
		c.close()
		return
	}
	n, fds, err := linux.ReceiveMessage(c.fd, c.s.message[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNRESET) {
		return // a client that went without hearing all answers: told once, before what it had asked for
	}
	var r protocol.Request
	if err != nil || n == 0 || wire.Unmarshal(c.s.message[:n], &r) != nil {
		linux.CloseAll(fds...)
		c.close()
		return
	}
	if err := c.serve(&r, fds); err != nil {
		c.fail(r.Serial, err)
	}
}

// serve carries out a request. It owns the descriptors. A nil error means that
// the reply was sent or will be.
func (c *connection) serve(r *protocol.Request, fds []int) error {
	switch r.Verb {
	case protocol.Create:
		return c.s.create(c, r, fds)
	case protocol.Exec:
		return c.s.exec(c, r, fds)
	case protocol.Attach:
		return c.s.attach(c, r, fds)
	}
	linux.CloseAll(fds...)
	switch r.Verb {
	case protocol.Hello:
		c.send(&protocol.Reply{Serial: r.Serial, Version: protocol.Version, Pid: unix.Getpid(), Reaper: c.s.reaperPid})
		return nil
	case protocol.List:
		c.list(r)
		return nil
	case protocol.KillExec:
		for _, e := range c.s.execs {
			if e.session == r.Session || r.Session == 0 && e.client == c && e.serial == r.Call {
				e.signal(unix.Signal(r.Signal))
			}
		}
		c.send(&protocol.Reply{Serial: r.Serial})
		return nil
	case protocol.Run:
		return c.s.runFor(c, r)
	case protocol.Shutdown:
		if err := c.s.shutdown(); err != nil {
			return err
		}
		c.send(&protocol.Reply{Serial: r.Serial})
		return nil
	}
	k, ok := c.s.containers[r.ID]
	if !ok {
		return coded{protocol.NotFound, "container " + r.ID + ": not found"}
	}
	return k.serve(c, r)
}

// coded is an error with its class.
type coded struct {
	code protocol.Code
	text string
}

func (e coded) Error() string { return e.text }

func (c *connection) fail(serial uint64, err error) {
	r := protocol.Reply{Serial: serial, Code: protocol.Failed, Error: err.Error()}
	if e, ok := err.(coded); ok {
		r.Code = e.code
	}
	c.send(&r)
}

// send never blocks: a client that does not read is dropped. Descriptors stay
// the caller's.
func (c *connection) send(r *protocol.Reply, fds ...int) {
	if c == nil || c.fd < 0 {
		return
	}
	switch err := linux.SendMessage(c.fd, wire.Marshal(r), fds...); {
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		// Gone. What it had asked for is still to be read, and then its end.
	case err != nil:
		c.close()
	}
}

// listed is what a piece of a list may have, in bytes: with the last one's it is still a message.
const listed = protocol.MaxMessage / 2

// list tells of the containers that were not told of in earlier pieces, as far as they fit.
func (c *connection) list(r *protocol.Request) {
	answer := &protocol.Reply{Serial: r.Serial}
	size, last := 0, uint64(0)
	for _, id := range c.s.order {
		k := c.s.containers[id]
		if k.number <= r.Session || r.ID != "" && r.ID != id {
			continue
		}
		if size > listed {
			answer.Session = last
			break
		}
		answer.List = append(answer.List, k.record())
		size, last = size+len(id)+len(k.cgroup)+mostNumbers, k.number
	}
	c.send(answer)
}

// mostNumbers is more than a container's numbers have in a message, in bytes.
const mostNumbers = 100

// broadcast tells every client of a container's exit.
func (s *server) broadcast(id string, e protocol.Exit) {
	for _, c := range slices.Clone(s.connections) {
		c.send(&protocol.Reply{ID: id, Exit: e})
	}
}

// shutdown ends the loop if no container runs any more.
func (s *server) shutdown() error {
	for _, id := range s.order {
		if k := s.containers[id]; k.pidfd >= 0 || k.command != nil {
			return coded{protocol.WrongState, "container " + id + ": still running"}
		}
	}
	s.stop = true
	return nil
}
