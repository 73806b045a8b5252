package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// streams are a container's standard streams: pipes or a terminal on its side,
// the log and any number of attached sessions on the other.
type streams struct {
	s        *server
	in       int // our end of its standard input, or -1
	once     bool
	master   int // terminal, for resizing, or -1
	outputs  []*output
	log      log
	sessions []*session
	// backlog is input that the container has not taken yet, of the session
	// that waits for it.
	backlog []byte
	writer  *session
}

// child are the container's ends until it has them.
type child struct {
	fds [3]int
	own []int // to be closed after the launch
}

func (c *child) close() { linux.CloseAll(c.own...) }

func (t *streams) init(s *server) {
	*t = streams{s: s, in: -1, master: -1, log: log{fd: -1}}
}

// open makes the pipes and opens the log.
func (t *streams) open(r *protocol.Request) (*child, error) {
	t.once = r.StdinOnce
	c := &child{fds: [3]int{t.s.null, t.s.null, t.s.null}}
	if err := t.log.open(r.LogPath); err != nil {
		return nil, err
	}
	if r.Terminal {
		if !r.Stdin {
			t.once = false
		}
		return c, nil
	}
	for i := range c.fds {
		if i == 0 && !r.Stdin {
			continue
		}
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			c.close()
			return nil, linux.Wrap("make", "pipe", err)
		}
		ours, theirs := pipe[0], pipe[1]
		if i == 0 {
			ours, theirs = pipe[1], pipe[0]
		}
		c.fds[i], c.own = theirs, append(c.own, theirs)
		if err := unix.SetNonblock(ours, true); err != nil {
			unix.Close(ours)
			c.close()
			return nil, linux.Wrap("set not blocking", "pipe", err)
		}
		if i == 0 {
			t.input(ours)
		} else {
			t.output(ours, [...]string{"", "stdout", "stderr"}[i])
		}
	}
	return c, nil
}

// terminal takes the master that the init has sent.
func (t *streams) terminal(master int) {
	in, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(master, true)
	}
	if err != nil {
		linux.CloseAll(master, in)
		return
	}
	t.master = master
	t.output(master, "stdout")
	t.input(in)
}

func (t *streams) input(fd int) {
	t.in = fd
	// Without events: only that the reader is gone.
	t.s.watch(fd, 0, func(events uint32) {
		if events&unix.EPOLLOUT != 0 {
			t.flushInput()
		} else if t.master < 0 {
			t.closeInput()
		} else {
			t.s.close(&t.in)
		}
	})
}

// closeInput ends the container's standard input. A terminal has no end; its
// input stays.
func (t *streams) closeInput() {
	if t.master >= 0 || t.in < 0 {
		return
	}
	t.s.close(&t.in)
	t.backlog = nil
	if t.writer != nil {
		w := t.writer
		t.writer = nil
		t.s.close(&w.in)
	}
}

// write passes a session's input on; what the container does not take waits,
// and the session with it.
func (t *streams) write(from *session, data []byte) {
	if t.in < 0 {
		return
	}
	n, err := unix.Write(t.in, data)
	if err != nil && err != unix.EAGAIN && err != unix.EINTR {
		t.closeInput()
		return
	}
	if rest := data[max(n, 0):]; len(rest) > 0 {
		t.backlog, t.writer = slices.Clone(rest), from
		for _, s := range t.sessions {
			s.hold()
		}
		t.s.interest(t.in, unix.EPOLLOUT)
	}
}

func (t *streams) flushInput() {
	n, err := unix.Write(t.in, t.backlog)
	if err != nil && err != unix.EAGAIN && err != unix.EINTR {
		t.closeInput()
		return
	}
	if t.backlog = t.backlog[max(n, 0):]; len(t.backlog) > 0 {
		return
	}
	t.backlog, t.writer = nil, nil
	t.s.interest(t.in, 0)
	for _, s := range t.sessions {
		s.resume()
	}
}

func (t *streams) resize(width, height uint16) error {
	if t.master < 0 {
		return coded{protocol.WrongState, "resize: container has no terminal"}
	}
	return linux.Wrap("resize", "terminal", unix.IoctlSetWinsize(t.master, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width}))
}

func (t *streams) reopen() error { return t.log.open(t.log.path) }

// finish takes what the ended container has left in its pipes, then lets the
// sessions go. Processes that outlive it may write on into the log: theirs is
// what comes after as much as there can have been, and waits for its turn.
func (t *streams) finish() {
	for _, o := range slices.Clone(t.outputs) {
		for left := o.holds(); o.fd >= 0 && left > 0; {
			n, more := o.read()
			if !more {
				break
			}
			left -= n
		}
		if t.master >= 0 {
			o.end()
		}
	}
	for _, s := range slices.Clone(t.sessions) {
		s.end()
	}
	t.closeInput()
}

func (t *streams) close() {
	for _, o := range slices.Clone(t.outputs) {
		o.end()
	}
	for _, s := range slices.Clone(t.sessions) {
		s.close()
	}
	t.s.close(&t.in)
	linux.CloseAll(t.log.fd)
	t.log.fd = -1
}

// output is one stream of a container.
type output struct {
	t    *streams
	fd   int
	name string
	line []byte // an unfinished line, of less than maxLine bytes
}

// mostHeld is more than a terminal holds.
const mostHeld = 128 << 10

// holds is how much there can be to read at once.
func (o *output) holds() int {
	if n, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETPIPE_SZ, 0); err == nil {
		return n
	}
	return mostHeld
}

func (t *streams) output(fd int, name string) {
	o := &output{t: t, fd: fd, name: name}
	t.outputs = append(t.outputs, o)
	t.s.watch(fd, unix.EPOLLIN, func(uint32) { o.read() })
}

// read takes what there is, once, and says how much that was. more is false
// when there is nothing for now.
func (o *output) read() (n int, more bool) {
	n, err := unix.Read(o.fd, o.t.s.buffer)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, false
	case err == unix.EINTR:
		return 0, true
	case err != nil || n == 0: // a terminal's end is EIO
		o.end()
		return 0, false
	}
	data := o.t.s.buffer[:n]
	o.t.log.write(o, data)
	full := false
	for _, s := range slices.Clone(o.t.sessions) {
		full = s.write(o, data) || full
	}
	if full && o.fd >= 0 {
		o.t.s.interest(o.fd, 0) // until every session has taken it
	}
	return n, true
}

// resume reads on if no session is behind.
func (o *output) resume() {
	for _, s := range o.t.sessions {
		if len(s.behind[s.stream(o)]) > 0 {
			return
		}
	}
	if o.fd >= 0 {
		o.t.s.interest(o.fd, unix.EPOLLIN)
	}
}

// end closes the stream; an unfinished line is written as it is.
func (o *output) end() {
	if o.fd < 0 {
		return
	}
	o.t.log.flush(o)
	if o.fd == o.t.master {
		o.t.master = -1
	}
	o.t.s.close(&o.fd)
	o.t.outputs = slices.DeleteFunc(o.t.outputs, func(x *output) bool { return x == o })
	if len(o.t.outputs) > 0 {
		return
	}
	for _, s := range slices.Clone(o.t.sessions) {
		s.end()
	}
}
