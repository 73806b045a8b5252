package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/yare-dev/yare/linux"
)

// console takes a terminal's master where the caller has given no socket for it, and connects it to our own
// streams: what a person expects of run and exec -t in the foreground.
type console struct {
	dir      string
	listener *net.UnixListener
	master   *os.File
	saved    *term.State // of our own terminal, to be put back
	drained  chan struct{}
}

// newConsole listens for the master.
func newConsole() (*console, error) {
	dir, err := os.MkdirTemp("", "yare-console-")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make console socket: %w", err), os.RemoveAll(dir))
	}
	return &console{dir: dir, listener: l}, nil
}

func (c *console) path() string { return filepath.Join(c.dir, "s") }

// connect takes the master, which has been sent, and copies until the terminal ends. Our terminal, if we have one, passes
// keys on as they are and tells its size.
func (c *console) connect() error {
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return fmt.Errorf("accept terminal: %w", err)
	}
	defer conn.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 64), oob)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return errors.Join(errors.New("receive terminal: no descriptor"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return errors.Join(errors.New("receive terminal: no descriptor"), err)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return linux.Wrap("set up", "terminal", err)
	}
	c.master = os.NewFile(uintptr(fds[0]), "terminal")
	c.resize()
	if err := c.raw(); err != nil {
		return err
	}
	c.drained = make(chan struct{})
	go func() {
		defer close(c.drained)
		_, _ = io.Copy(os.Stdout, c.master) // ends with an error when the last process lets go of the terminal
	}()
	go func() { _, _ = io.Copy(c.master, os.Stdin) }() // lives as long as we do: standard input cannot be interrupted
	return nil
}

// raw makes our terminal pass every key on.
func (c *console) raw() (err error) {
	if !term.IsTerminal(unix.Stdin) {
		return nil
	}
	c.saved, err = term.MakeRaw(unix.Stdin)
	return linux.Wrap("set up", "own terminal", err)
}

// resize gives the container's terminal the size of ours.
func (c *console) resize() {
	if size, err := unix.IoctlGetWinsize(unix.Stdin, unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, size) // cosmetic
	}
}

// follow is the function follow with a terminal: changes of size are passed on too, and all output is written before it returns.
func (c *console) follow(pid int, signals <-chan os.Signal) (int, error) {
	if c == nil {
		return follow(pid, signals)
	}
	changes, end := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(changes, unix.SIGWINCH)
	defer signal.Stop(changes)
	defer close(end)
	go func() {
		for {
			select {
			case <-changes:
				c.resize()
			case <-end:
				return
			}
		}
	}()
	code, err := follow(pid, signals)
	<-c.drained
	return code, err
}

// close puts our terminal back and removes the socket.
func (c *console) close() error {
	if c == nil {
		return nil
	}
	err := errors.Join(c.listener.Close(), os.RemoveAll(c.dir))
	if c.master != nil {
		err = errors.Join(err, c.master.Close())
	}
	if c.saved != nil {
		err = errors.Join(err, linux.Wrap("restore", "own terminal", term.Restore(unix.Stdin, c.saved)))
	}
	return err
}
