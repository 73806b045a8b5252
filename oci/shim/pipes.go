package shim

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// drainTime is how long output is awaited after a process has ended while
// others, its children in the background, keep the pipe open.
const drainTime = 2 * time.Second

// pipes are the two sides of a session's streams.
type pipes struct {
	mask   uint8
	theirs []*os.File
	stdin  *os.File // our write end
	out    [2]*os.File
	resize func(Size)

	inputDone chan struct{}
	ended     chan struct{} // all output has ended, or without output the input
	stop      chan struct{}
	copies    sync.WaitGroup
}

// openPipes makes a pipe per wanted stream, or none for a terminal, whose
// master comes later.
func openPipes(s Streams, terminal bool) (*pipes, error) {
	p := &pipes{ended: make(chan struct{}), stop: make(chan struct{}), inputDone: make(chan struct{})}
	if terminal {
		return p, nil
	}
	for i, wanted := range []bool{s.Stdin != nil, s.Stdout != nil, s.Stderr != nil} {
		if !wanted {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		p.mask |= 1 << i
		if i == 0 {
			p.stdin, p.theirs = w, append(p.theirs, r)
		} else {
			p.out[i-1], p.theirs = r, append(p.theirs, w)
		}
	}
	return p, nil
}

// terminal makes a terminal's master both input and output.
func (p *pipes) terminal(fd int) error {
	in, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		linux.CloseAll(fd, in)
		return linux.Wrap("open", "terminal", err)
	}
	p.out[0], p.stdin = os.NewFile(uintptr(fd), "terminal"), os.NewFile(uintptr(in), "terminal")
	p.resize = func(size Size) {
		raw, err := p.out[0].SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		})
	}
	return nil
}

// theirFDs returns the other side's ends, made blocking as programs expect.
func (p *pipes) theirFDs() (fds []int) {
	for _, f := range p.theirs {
		fds = append(fds, int(f.Fd()))
	}
	return fds
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
}

// copy starts copying. The input's copier is not waited for: it may be inside
// the caller's Read, and ends with it.
func (p *pipes) copy(s Streams) {
	if p.stdin != nil && s.Stdin != nil {
		stdin := p.stdin
		isTerminal := p.out[0] != nil && p.mask == 0
		go func() {
			copyAll(stdin, s.Stdin)
			if !isTerminal {
				stdin.Close()
			}
			close(p.inputDone)
		}()
	}
	for i, w := range []io.Writer{s.Stdout, s.Stderr} {
		if p.out[i] == nil {
			continue
		}
		if w == nil {
			w = io.Discard
		}
		p.copies.Go(func() { copyAll(w, p.out[i]) })
	}
	outputs := p.out[0] != nil || p.out[1] != nil
	go func() {
		if outputs {
			p.copies.Wait()
		} else {
			select {
			case <-p.inputDone:
			case <-p.stop:
			}
		}
		close(p.ended)
	}()
	if s.Resize != nil && p.resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-s.Resize:
					if !ok {
						return
					}
					p.resize(size)
				case <-p.ended:
					return
				}
			}
		}()
	}
}

// drain waits for the end of output after the process has ended.
func (p *pipes) drain() {
	deadline := time.Now().Add(drainTime)
	for _, f := range p.out {
		if f != nil {
			_ = f.SetReadDeadline(deadline)
		}
	}
}

// abort ends the copies at once.
func (p *pipes) abort() {
	for _, f := range p.out {
		if f != nil {
			_ = f.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// wait returns when nothing is copied any more, but for the caller's input.
func (p *pipes) wait() {
	close(p.stop)
	p.copies.Wait()
}

func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range []*os.File{p.stdin, p.out[0], p.out[1]} {
		if f != nil {
			f.Close()
		}
	}
}
