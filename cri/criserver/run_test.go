package criserver

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestServingFails takes a socket away from a server: Run says so, and does not wait for anything that ends with its caller's context.
func TestServingFails(t *testing.T) {
	h := newHarness(t)
	cfg := h.cfg
	cfg.Dir, cfg.RunDir, cfg.Socket = filepath.Join(h.dir, "other"), filepath.Join(h.dir, "o"), filepath.Join(h.dir, "other.sock")
	cfg.Streaming = "127.7.7.7:0"
	s, err := New(cfg, h.deps)
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(t.Context(), func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	for fd := range 1024 {
		if name, err := unix.Getsockname(fd); err == nil {
			if at, ok := name.(*unix.SockaddrInet4); ok && at.Addr == [4]byte{127, 7, 7, 7} {
				_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			}
		}
	}
	if err := <-done; err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "serve sessions") {
		t.Errorf("Run ended with %v", err)
	}
}
