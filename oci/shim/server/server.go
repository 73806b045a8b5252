// Package server is the shim itself, run by yare-init in its shim role: the
// parent of one sandbox's containers. See package shim for what it is for.
//
// # Shape
//
// One goroutine, one epoll loop, no locks: everything that happens is a
// readiness of some descriptor, and each has one watcher. An idle shim makes
// no system call at all.
//
//	listener --------> connection (one per client): requests, replies, exits
//	sync socket -----> set-up of a container or exec: console, ready, errors
//	pidfd -----------> exit of a container or exec
//	pipe or terminal > stream: lines to the log, bytes to attached sessions
//	session's pipe --> input, or room for more output, or that the reader is gone
//	bell ------------> an orphan of another runtime's has ended (see command.go)
//
// Only a sandbox of another runtime has a second goroutine: the one that rings the bell.
//
// # Invariants
//
//   - An exit is on disk, synced, before any client hears of it.
//   - A descriptor belongs to exactly one owner, whose close method closes it
//     and removes its watcher.
//   - No write to a client, a session or a container ever blocks the loop.
package server

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// server is one shim.
type server struct {
	dir      string
	exe      int // this program
	null     int // /dev/null
	epoll    int
	watchers map[int]func(events uint32)
	// closed descriptors of this round: their numbers may have been reused,
	// and what epoll said about them is about the old ones.
	closed []int

	connections []*connection
	containers  map[string]*container
	order       []string
	made        uint64 // containers ever
	execs       map[uint64]*exec
	sessions    uint64
	reaper      int // pidfd of the shared PID namespace's process 1, or -1
	reaperPid   int
	stop        bool
	// commands is how many of other runtimes are under way; swept lets the bell ring again, and is nil where there is none.
	commands int
	swept    chan struct{}

	buffer  []byte // for reading, of whoever is being served
	logLine []byte
	message [protocol.MaxMessage]byte // what a client sent last; of its pages only those that were needed exist
}

// Run serves until a client asks for the shutdown. The configuration is read
// from fd, the listening socket is the next descriptor.
func Run(fd int) error {
	s := &server{watchers: map[int]func(uint32){}, containers: map[string]*container{}, execs: map[uint64]*exec{},
		reaper: -1, buffer: make([]byte, 32<<10)}
	listener := fd + plan.SyncFD - plan.PlanFD
	var c protocol.Config
	if err := readConfig(fd, &c); err != nil {
		return err
	}
	s.dir = c.Dir
	if err := s.open(&c); err != nil {
		return err
	}
	s.watch(listener, unix.EPOLLIN, func(uint32) { s.accept(listener) })
	return s.loop()
}

func readConfig(fd int, c *protocol.Config) error {
	if err := unix.CloseRange(uint(fd), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return linux.Wrap("close on exec", "descriptors", err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return linux.Wrap("read", "configuration", err)
	}
	b, err := linux.ReadAll(fd)
	if err != nil {
		return linux.Wrap("read", "configuration", err)
	}
	unix.Close(fd)
	return linux.Wrap("decode", "configuration", wire.Unmarshal(b, c))
}

// open prepares the process and the sandbox's namespaces, which it was born in.
func (s *server) open(c *protocol.Config) (err error) {
	name := append([]byte("yare-shim"), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, bytePointer(name), 0, 0, 0); err != nil {
		return linux.Wrap("name", "shim", err)
	}
	if s.exe, err = unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return linux.Wrap("open", "/proc/self/exe", err)
	}
	if s.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return linux.Wrap("open", "/dev/null", err)
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return linux.Wrap("create", "epoll", err)
	}
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return linux.Wrap("set", "hostname", err)
		}
	}
	for _, set := range c.Sysctls {
		if err := linux.WriteFile(unix.AT_FDCWD, "/proc/sys/"+set.Name, set.Value); err != nil {
			return err
		}
	}
	if c.Subreaper {
		if err := s.adoptOrphans(); err != nil {
			return err
		}
	}
	if c.SharePID {
		return s.startReaper(c.Users)
	}
	return nil
}

// startReaper makes the PID namespace that containers share, which belongs to the user namespace.
func (s *server) startReaper(users string) error {
	p := launch.Process{Exe: s.exe, Name: "yare-init", Role: launch.Reaper, CloneFlags: unix.CLONE_NEWPID, Cgroup: -1}
	if users != "" {
		fd, err := unix.Open(users, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return linux.Wrap("open", users, err)
		}
		defer unix.Close(fd)
		p.Join = []launch.Namespace{{FD: fd, Flags: unix.CLONE_NEWUSER}}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("make", "socket pair", err)
	}
	// Our end stays open as long as we live: its end is what ends the reaper.
	defer unix.Close(pair[1])
	p.Files = []int{s.null, s.null, s.null, s.null, pair[1]}
	s.reaperPid, s.reaper, err = launch.Start(p)
	if err != nil {
		return err
	}
	kind, text, err := receive(pair[0], nil)
	if err == nil && kind != plan.MsgReady {
		err = errors.New(text)
	}
	return linux.Wrap("start", "reaper", err)
}

// watch calls f when the descriptor is ready. Errors and hang-ups are always
// reported.
func (s *server) watch(fd int, events uint32, f func(events uint32)) {
	op := unix.EPOLL_CTL_ADD
	if _, ok := s.watchers[fd]; ok {
		op = unix.EPOLL_CTL_MOD
	}
	s.watchers[fd] = f
	// It fails only for descriptors that cannot be watched, or when memory for
	// the kernel is out; then nothing of a new container works, and its
	// creation fails by the end of its sync socket.
	_ = unix.EpollCtl(s.epoll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// interest changes the events that a watched descriptor waits for.
func (s *server) interest(fd int, events uint32) {
	e := &unix.EpollEvent{Events: events, Fd: int32(fd)}
	if unix.EpollCtl(s.epoll, unix.EPOLL_CTL_MOD, fd, e) == unix.ENOENT {
		_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, e)
	}
}

// pause reports nothing about a descriptor, not even a hang-up, until the next
// interest: there may be something to read before it.
func (s *server) pause(fd int) { _ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil) }

// close closes a descriptor and forgets its watcher.
func (s *server) close(fd *int) {
	if *fd < 0 {
		return
	}
	if _, ok := s.watchers[*fd]; ok {
		delete(s.watchers, *fd)
		s.closed = append(s.closed, *fd)
		_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, *fd, nil)
	}
	unix.Close(*fd)
	*fd = -1
}

func (s *server) loop() error {
	events := make([]unix.EpollEvent, 32)
	for !s.stop {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return linux.Wrap("wait for", "events", err)
		}
		s.closed = s.closed[:0]
		for _, e := range events[:n] {
			fd := int(e.Fd)
			if f, ok := s.watchers[fd]; ok && !slices.Contains(s.closed, fd) {
				f(e.Events)
			}
		}
	}
	return nil
}

// receive reads one message of an init, and appends descriptors to fds.
func receive(sock int, fds *[]int) (kind byte, text string, err error) {
	buf := make([]byte, 4096)
	n, received, err := linux.ReceiveMessage(sock, buf)
	if fds != nil {
		*fds = received
	} else {
		linux.CloseAll(received...)
	}
	if err != nil || n == 0 {
		return 0, "", err
	}
	return buf[0], string(buf[1:n]), nil
}
