package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a netlink socket to nftables. Its methods may be called by any
// goroutine; one at a time is served.
type Conn struct {
	port uint32 // our address, which notifications carry

	mu  sync.Mutex
	fd  int
	buf int    // send buffer of the socket
	seq uint32 // of the last message: every one has its own, so that a late answer is nobody else's
	in  []byte // what is received
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, port, err := socket()
	if err != nil {
		return nil, err
	}
	return &Conn{fd: fd, port: port, in: make([]byte, datagram)}, nil
}

func socket() (fd int, port uint32, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, 0, fmt.Errorf("open netfilter socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("bind netfilter socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("name netfilter socket: %w", err)
	}
	// Refused on old kernels: errors then lack the kernel's words.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return fd, name.(*unix.SockaddrNetlink).Pid, nil
}

// Close closes the socket. The table stays.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return unix.Close(c.fd)
}

// Commit sends the batch as one transaction: all of it holds afterwards, or an
// error says why nothing does. An empty batch is not sent.
func (c *Conn) Commit(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if b.Empty() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seq + 1
	c.seq += uint32(b.count) + 2
	msg := make([]byte, 0, len(b.buf)+40)
	msg = appendHeader(msg, unix.NFNL_MSG_BATCH_BEGIN, 0, first, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	msg = append(msg, b.buf...)
	for at := len(msg) - len(b.buf); at < len(msg); at += int(binary.NativeEndian.Uint32(msg[at:])) {
		n := msg[at+8:] // which message of the batch it is
		binary.NativeEndian.PutUint32(n, first+binary.NativeEndian.Uint32(n))
	}
	msg = appendHeader(msg, unix.NFNL_MSG_BATCH_END, 0, c.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if err := c.room(len(msg)); err != nil {
		return err
	}
	if err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send nftables batch of %d bytes: %w", len(msg), err)
	}
	return c.acknowledged(b.count, first)
}

// MakeWhole makes the table of that name equal to want, whatever it was; a nil want is a table that must not be. What is right already is
// not touched, unless somebody changed the table between the look and the change, or made something that Diff cannot undo: then the
// table is replaced as a whole, and because says why.
func (c *Conn) MakeWhole(name string, want *Table) (because, err error) {
	have, because := c.Read(name)
	if because == nil {
		if because = c.Commit(Diff(have, want)); because == nil {
			return nil, nil
		}
	}
	if want == nil {
		return because, c.Commit(Diff(NewTable(name), nil))
	}
	return because, c.Commit(Replace(want))
}

// Remove removes the table of that name, if there is one, in the network namespace of the calling thread.
func Remove(name string) error {
	c, err := Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	have, err := c.Read(name)
	if err != nil || have == nil {
		return err
	}
	return c.Commit(Diff(have, nil))
}

// room makes the send buffer large enough for a batch of n bytes: the kernel takes
// a transaction in one piece. Half of a buffer is for the kernel's own use.
func (c *Conn) room(n int) error {
	if n = 2*n + 1<<16; n <= c.buf {
		return nil
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, n); err != nil {
		return fmt.Errorf("set netfilter send buffer to %d: %w", n, err)
	}
	c.buf = n
	return nil
}

// acknowledged reads the answers to a batch of so many messages after the one numbered begin, which the kernel has queued by the
// time the send returns. Answers to what came before, if any are left, are passed over.
func (c *Conn) acknowledged(count int, begin uint32) error {
	var first error
	acked := false
	for {
		msgs, err := c.receive(unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) {
			continue // some answers did not fit; what did says enough, or nothing does
		}
		if err != nil {
			return fmt.Errorf("read nftables answer: %w", err)
		}
		for _, m := range msgs {
			n := m.Header.Seq - begin // a message before begin has a large one
			if m.Header.Type != unix.NLMSG_ERROR || n > uint32(count)+1 {
				continue
			}
			err := ackError(m.Data)
			if err != nil && first == nil {
				first = fmt.Errorf("nftables transaction, message %d of %d: %w", n, count, err)
			}
			acked = acked || err == nil && n == uint32(count)
		}
	}
	if first == nil && !acked {
		return errors.New("nftables transaction: no answer from the kernel")
	}
	return first
}

// ackError is the error of an NLMSG_ERROR, nil for an acknowledgement.
func ackError(data []byte) error {
	errno := -int32(binary.NativeEndian.Uint32(data))
	if errno == 0 {
		return nil
	}
	// The header of our message follows, then, by NETLINK_CAP_ACK, the attributes.
	for _, a := range parseAttrs(data[min(20, len(data)):]) {
		if a.typ == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%s: %w", cstring(a.data), unix.Errno(errno))
		}
	}
	return unix.Errno(errno)
}

// receive returns messages that hold until the next call.
func (c *Conn) receive(flags int) ([]message, error) { return receive(c.fd, c.in, flags) }

// datagram is the largest datagram that the kernel sends.
const datagram = 1 << 16

type message struct {
	Header unix.NlMsghdr
	Data   []byte
}

// receive reads one datagram of messages into buf.
func receive(fd int, buf []byte, flags int) ([]message, error) {
	n, _, err := unix.Recvfrom(fd, buf, flags)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(fd, buf, flags)
	}
	if err != nil {
		return nil, err
	}
	var out []message
	for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		h := unix.NlMsghdr{Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]), Pid: binary.NativeEndian.Uint32(b[12:])}
		if int(h.Len) < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return nil, fmt.Errorf("netlink message of %d bytes in %d", h.Len, len(b))
		}
		out = append(out, message{h, b[unix.SizeofNlMsghdr:h.Len]})
		b = b[min(len(b), int(h.Len+3)&^3):]
	}
	return out, nil
}

// attrTypeMask leaves out the flags for nesting and byte order.
const attrTypeMask = 0x3fff

type attr struct {
	typ  uint16
	data []byte
}

// parseAttrs splits attributes; what is malformed ends the list.
func parseAttrs(b []byte) []attr {
	var out []attr
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		out = append(out, attr{binary.NativeEndian.Uint16(b[2:]) & attrTypeMask, b[4:n]})
		b = b[min(len(b), (n+3)&^3):]
	}
	return out
}

func cstring(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}
