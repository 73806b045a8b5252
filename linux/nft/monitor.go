package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Monitor watches what others do to a table.
type Monitor struct {
	file  *os.File
	table string
	own   uint32
	in    []byte // what is received
}

// Watch returns a Monitor of the changes to the table that were not made through c.
// It lives in the network namespace of the calling thread, which must be c's.
func (c *Conn) Watch(table string) (*Monitor, error) {
	fd, _, err := socket()
	if err != nil {
		return nil, err
	}
	// Our own large transactions are notified too; what does not fit is lost, with
	// ENOBUFS, and Next then reports a change that may be none.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES),
		unix.SetNonblock(fd, true)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	return &Monitor{file: os.NewFile(uintptr(fd), "nftables monitor"), table: table, own: c.port, in: make([]byte, datagram)}, nil
}

// Next returns when somebody else changed the table, or might have. Its error is
// ctx's or the socket's.
func (m *Monitor) Next(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.file.Close() })
	defer stop()
	raw, err := m.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	for {
		var msgs []message
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			msgs, rerr = receive(int(fd), m.in, unix.MSG_DONTWAIT)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(rerr, unix.ENOBUFS):
			return nil
		case err != nil || rerr != nil:
			return fmt.Errorf("watch nftables: %w", errors.Join(err, rerr))
		}
		for _, msg := range msgs {
			if m.foreign(msg) {
				return nil
			}
		}
	}
}

// Signal leaves a note in to, which has room for one, whenever somebody else changed the table or might have. It returns Next's error.
func (m *Monitor) Signal(ctx context.Context, to chan<- struct{}) error {
	for {
		if err := m.Next(ctx); err != nil {
			return err
		}
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// foreign reports whether a notification is somebody else's change of the table.
// NEWGEN, which follows every transaction, names no table.
func (m *Monitor) foreign(msg message) bool {
	if msg.Header.Pid == m.own || msg.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(msg.Data) < 4 {
		return false
	}
	if msg.Data[0] != unix.NFPROTO_INET {
		return false
	}
	// The table's name is attribute 1 of every kind of object.
	return strings.TrimRight(string(find(parseAttrs(msg.Data[4:]), 1)), "\x00") == m.table
}

// Close ends the watch.
func (m *Monitor) Close() error { return m.file.Close() }
