// Package socket listens and dials at unix sockets whose paths may be longer than the 107 bytes that an address has room for (unix(7)):
// folders are users' to choose. The socket is reached by its folder's descriptor.
package socket

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Listen listens at path, which must not be there. Closing the listener leaves the socket where it is.
func Listen(ctx context.Context, path string) (*net.UnixListener, error) {
	short, done, err := within(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := new(net.ListenConfig).Listen(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // by then the descriptor is another's
	return u, nil
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := within(path)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := new(net.Dialer).DialContext(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return c, nil
}

// To is Dial as gRPC wants it, of one path whatever address is given.
func To(path string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) { return Dial(ctx, path) }
}

// within returns a path of the socket that is short, until done is called.
func within(path string) (short string, done func(), err error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, linux.Wrap("open", filepath.Dir(path), err)
	}
	return filepath.Join(linux.FDPath(dir), filepath.Base(path)), func() { unix.Close(dir) }, nil
}
