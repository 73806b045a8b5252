package eviction

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// memoryStalls is when processes have waited for memory for 150 ms of two seconds, the least window that the kernel gives everybody.
const (
	memoryPressure = "/proc/pressure/memory"
	memoryStalls   = "some 150000 2000000"
)

// Stalls are the kernel's word that processes wait for memory (PSI): what is left can be gone before the next look.
type Stalls struct {
	// C has a value after each stall, at most one in two seconds.
	C    <-chan struct{}
	told chan<- struct{}
}

// NewStalls returns Stalls that tell nothing before Run.
func NewStalls() *Stalls {
	c := make(chan struct{}, 1)
	return &Stalls{C: c, told: c}
}

// Run tells of stalls until ctx ends. It returns linux.ErrNotSupported where the kernel does not.
func (s *Stalls) Run(ctx context.Context) error { return s.watch(ctx, memoryPressure, memoryStalls) }

func (s *Stalls) watch(ctx context.Context, file, trigger string) error {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		if _, err = unix.Write(fd, append([]byte(trigger), 0)); err != nil {
			unix.Close(fd)
		}
	}
	for _, lack := range []syscall.Errno{unix.ENOENT, unix.EOPNOTSUPP, unix.EPERM, unix.EACCES, unix.EINVAL, unix.EROFS} {
		if errors.Is(err, lack) {
			return fmt.Errorf("watch %s: %w: %w", file, linux.ErrNotSupported, err)
		}
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", file, err)
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch %s: %w", file, err)
	}
	for ctx.Err() == nil {
		// The file is always readable: what counts is that the kernel says so anew, which it does when the trigger fires, and once at first.
		waited := false
		if err := raw.Read(func(uintptr) bool { again := waited; waited = true; return again }); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch %s: %w", file, err)
		}
		select {
		case s.told <- struct{}{}:
		default:
		}
	}
	return nil
}
