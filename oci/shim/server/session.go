package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// session is one attached client: pipes whose other ends the client has. It
// ends when the client closes them or the container ends.
type session struct {
	t   *streams
	in  int    // we read, or -1
	out [2]int // we write, or -1
	// behind is output that the client has not taken yet; the container's
	// output waits for it.
	behind [2][]byte
	ending bool
}

func (s *server) attach(c *connection, r *protocol.Request, fds []int) error {
	k, ok := s.containers[r.ID]
	if !ok {
		linux.CloseAll(fds...)
		return coded{protocol.NotFound, "container " + r.ID + ": not found"}
	}
	if k.state != created && k.state != running {
		linux.CloseAll(fds...)
		return k.wrongState()
	}
	e := &session{t: &k.io, in: -1, out: [2]int{-1, -1}}
	for i, target := range []*int{&e.in, &e.out[0], &e.out[1]} {
		if r.Streams&(1<<i) != 0 && len(fds) > 0 {
			*target, fds = fds[0], fds[1:]
			_ = unix.SetNonblock(*target, true) // a pipe of the client: it can
		}
	}
	linux.CloseAll(fds...)
	k.io.sessions = append(k.io.sessions, e)
	if e.in >= 0 {
		s.watch(e.in, unix.EPOLLIN, func(uint32) { e.read() })
	}
	for i := range e.out {
		if e.out[i] >= 0 {
			s.watch(e.out[i], 0, func(events uint32) { e.writable(i, events) })
		}
	}
	if len(k.io.backlog) > 0 {
		e.hold()
	}
	c.send(&protocol.Reply{Serial: r.Serial, Pid: k.pid})
	return nil
}

// read takes input once.
func (e *session) read() {
	if len(e.t.backlog) > 0 {
		return // an event of before the pause
	}
	n, err := unix.Read(e.in, e.t.s.buffer)
	switch {
	case errors.Is(err, unix.EAGAIN), err == unix.EINTR:
	case err != nil || n == 0:
		e.t.s.close(&e.in)
		if e.t.once {
			e.t.closeInput()
		}
		e.settle()
	default:
		e.t.write(e, e.t.s.buffer[:n])
	}
}

// hold and resume stop and continue reading input.
func (e *session) hold() {
	if e.in >= 0 {
		e.t.s.pause(e.in)
	}
}

func (e *session) resume() {
	if e.in >= 0 {
		e.t.s.interest(e.in, unix.EPOLLIN)
	}
}

// stream is the index of an output's stream.
func (e *session) stream(o *output) int {
	if o.name == "stderr" {
		return 1
	}
	return 0
}

// write passes output on and reports whether the session is behind.
func (e *session) write(o *output, data []byte) bool {
	i := e.stream(o)
	if e.out[i] < 0 {
		return false
	}
	if len(e.behind[i]) == 0 {
		n, err := unix.Write(e.out[i], data)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			e.drop(i)
			return false
		}
		data = data[max(n, 0):]
	}
	if len(data) == 0 {
		return false
	}
	e.behind[i] = append(e.behind[i], data...)
	e.t.s.interest(e.out[i], unix.EPOLLOUT)
	return true
}

// writable is called when there is room, or the reader is gone.
func (e *session) writable(i int, events uint32) {
	if events&unix.EPOLLERR != 0 || events&unix.EPOLLOUT == 0 {
		e.drop(i)
		return
	}
	n, err := unix.Write(e.out[i], e.behind[i])
	if err != nil && err != unix.EAGAIN && err != unix.EINTR {
		e.drop(i)
		return
	}
	if e.behind[i] = e.behind[i][max(n, 0):]; len(e.behind[i]) > 0 {
		return
	}
	e.behind[i] = nil
	e.t.s.interest(e.out[i], 0)
	e.proceed(i)
	e.settle()
}

// drop closes one output of the session.
func (e *session) drop(i int) {
	e.t.s.close(&e.out[i])
	e.behind[i] = nil
	e.proceed(i)
	e.settle()
}

// proceed lets the container's output go on.
func (e *session) proceed(i int) {
	for _, o := range e.t.outputs {
		if e.stream(o) == i {
			o.resume()
		}
	}
}

// end closes the session as soon as the client has taken all output.
func (e *session) end() {
	e.ending = true
	e.t.s.close(&e.in)
	for i := range e.out {
		if len(e.behind[i]) == 0 {
			e.t.s.close(&e.out[i])
		}
	}
	e.settle()
}

// settle forgets the session when nothing of it is left.
func (e *session) settle() {
	if e.ending {
		for i := range e.out {
			if len(e.behind[i]) == 0 {
				e.t.s.close(&e.out[i])
			}
		}
	}
	if e.in < 0 && e.out[0] < 0 && e.out[1] < 0 {
		e.t.sessions = slices.DeleteFunc(e.t.sessions, func(x *session) bool { return x == e })
	}
}

func (e *session) close() {
	for _, fd := range []*int{&e.in, &e.out[0], &e.out[1]} {
		e.t.s.close(fd)
	}
	e.behind = [2][]byte{}
	e.settle()
}
