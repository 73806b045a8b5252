package server

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// TestListInPieces lists more containers than one message holds, of which some are removed meanwhile.
func TestListInPieces(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer linux.CloseAll(pair[:]...)
	s := &server{epoll: -1, watchers: map[int]func(uint32){}, containers: map[string]*container{}}
	c := &connection{s: s, fd: pair[0]}
	s.connections = []*connection{c}
	for i := range uint64(1000) {
		id := fmt.Sprintf("%064d", i)
		s.containers[id] = &container{s: s, id: id, number: i + 1, state: stopped, pid: 1 << 30, cgroup: "/" + strings.Repeat("x", 150)}
		s.order = append(s.order, id)
	}
	ask := func(r protocol.Request) (answer protocol.Reply) {
		t.Helper()
		r.Verb = protocol.List
		if err := c.serve(&r, nil); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, protocol.MaxMessage)
		n, _, err := linux.ReceiveMessage(pair[1], buf)
		if err == nil {
			err = wire.Unmarshal(buf[:n], &answer)
		}
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	told := map[string]int{}
	for at := uint64(0); ; {
		answer := ask(protocol.Request{Session: at})
		for _, k := range answer.List {
			told[k.ID]++
		}
		if at = answer.Session; at == 0 {
			break
		}
		for _, id := range []string{answer.List[0].ID, answer.List[len(answer.List)-1].ID} {
			k := s.containers[id]
			k.pidfd, k.sync, k.start = -1, -1, -1
			k.io.init(s)
			k.free()
		}
	}
	if len(told) != 1000 {
		t.Errorf("told of %d", len(told))
	}
	for id, n := range told {
		if n != 1 {
			t.Errorf("told of %s %d times", id, n)
		}
	}
	last := s.order[len(s.order)-1]
	if one := ask(protocol.Request{ID: last}); len(one.List) != 1 || one.List[0].ID != last || one.Session != 0 {
		t.Errorf("of one: %+v", one)
	}
}
