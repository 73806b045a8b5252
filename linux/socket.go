package linux

import "golang.org/x/sys/unix"

// MaxFDs is the most descriptors that one message carries.
const MaxFDs = 253 // the kernel's limit

// SendMessage sends one datagram with descriptors, which stay the caller's.
func SendMessage(sock int, data []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return wrap("send", "message", Retry(func() error {
		return unix.Sendmsg(sock, data, oob, nil, unix.MSG_NOSIGNAL)
	}))
}

// ReceiveMessage receives one datagram into buf. The descriptors become the
// caller's. n is 0 when the peer has closed. A datagram longer than buf is
// EMSGSIZE.
func ReceiveMessage(sock int, buf []byte) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*MaxFDs))
	var oobn, flags int
	err = Retry(func() error {
		var e error
		n, oobn, flags, _, e = unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		return e
	})
	if err != nil {
		return 0, nil, wrap("receive", "message", err)
	}
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return 0, nil, wrap("parse", "control message", err)
		}
		for i := range messages {
			if rights, err := unix.ParseUnixRights(&messages[i]); err == nil {
				fds = append(fds, rights...)
			}
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(fds...)
		return 0, nil, wrap("receive", "message", unix.EMSGSIZE)
	}
	return n, fds, nil
}
