package server

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// TestFinishEndless has a container end whose output never does, as that of processes which outlive it may not: what is read of it then is no more than
// a pipe, or a terminal, can have held.
func TestFinishEndless(t *testing.T) {
	s := &server{epoll: -1, watchers: map[int]func(uint32){}, buffer: make([]byte, 32<<10)}
	var k streams
	k.init(s)
	fd, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k.output(fd, "stdout")
	k.finish()
	if len(k.outputs) != 1 {
		t.Error("the output was closed, and who writes to it ended")
	}
	k.close()
}

// TestFinishTakesAll: all that the container itself has written is read, though others fill its pipe again.
func TestFinishTakesAll(t *testing.T) {
	s := &server{epoll: -1, watchers: map[int]func(uint32){}, buffer: make([]byte, 4<<10)}
	var k streams
	k.init(s)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer linux.CloseAll(pipe[1])
	k.output(pipe[0], "stdout")
	held := k.outputs[0].holds()
	if n, err := unix.Write(pipe[1], make([]byte, held)); err != nil || n != held {
		t.Fatal(n, err)
	}
	k.finish()
	if n, err := unix.Read(pipe[0], make([]byte, 1)); err != unix.EAGAIN {
		t.Errorf("left in the pipe: %d, %v", n, err)
	}
	k.close()
}
