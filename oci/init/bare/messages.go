package bare

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxFDs is the most descriptors that a message to us carries: those of all hierarchies of cgroups and a namespace.
const MaxFDs = 32

// control is the space of one control message with descriptors.
type control struct {
	header unix.Cmsghdr
	fds    [MaxFDs]int32
}

// Send sends a datagram, with a descriptor if that is not negative.
func Send(sock int, data string, fd int) *Fault {
	part := unix.Iovec{Base: unsafe.StringData(data)}
	part.SetLen(len(data))
	header := unix.Msghdr{Iov: &part}
	header.SetIovlen(1)
	var c control
	if fd >= 0 {
		c.header.Level, c.header.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		c.header.SetLen(unix.SizeofCmsghdr + 4)
		c.fds[0] = int32(fd)
		header.Control = (*byte)(unsafe.Pointer(&c))
		header.SetControllen(unix.SizeofCmsghdr + 8)
	}
	_, e := Pointer(unix.SYS_SENDMSG, sock, &header, unix.MSG_NOSIGNAL)
	return Wrap("send", "message", e)
}

// Receive receives a datagram of one byte, with descriptors. There is no byte where the peer has closed.
func Receive(sock int) (kind byte, fds []int32, f *Fault) {
	part := unix.Iovec{Base: &kind}
	part.SetLen(1)
	header := unix.Msghdr{Iov: &part}
	header.SetIovlen(1)
	c := New[control]()
	header.Control = (*byte)(unsafe.Pointer(c))
	header.SetControllen(int(unsafe.Sizeof(*c)))
	n, e := Pointer(unix.SYS_RECVMSG, sock, &header, unix.MSG_CMSG_CLOEXEC)
	if e == 0 && header.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		e = unix.EMSGSIZE
	}
	if e != 0 || n == 0 {
		return 0, nil, Wrap("receive", "message", e)
	}
	if header.Controllen >= unix.SizeofCmsghdr && c.header.Level == unix.SOL_SOCKET && c.header.Type == unix.SCM_RIGHTS {
		fds = c.fds[:(int(c.header.Len)-unix.SizeofCmsghdr)/4]
	}
	return kind, fds, nil
}
