package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// Names in the state directory.
const (
	socketName = "shim.sock"
	recordName = "shim.json"
	logName    = "shim.log"
	stateName  = "state.json"
	exitName   = "exit"
)

// record is what Connect and Reap need of the configuration.
type record struct {
	Cgroup   string `json:"cgroup,omitempty"`
	IPC      bool   `json:"ipc,omitempty"`
	UTS      bool   `json:"uts,omitempty"`
	Net      bool   `json:"net,omitempty"`
	SharePID bool   `json:"sharePID,omitempty"`
	Foreign  bool   `json:"foreign,omitempty"`
}

// Start makes a sandbox: it starts a shim and connects to it. On error nothing
// is left. The shim outlives the caller; see [Client.Shutdown].
func Start(ctx context.Context, c Config) (_ *Client, err error) {
	if !filepath.IsAbs(c.Dir) || len(c.Dir) > 90 {
		return nil, fmt.Errorf("start shim: state directory %q: must be absolute and at most 90 bytes", c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	var group *cgroup.Group // once it is ours
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start shim: %w%s", err, lastWords(c.Dir)), undo(context.WithoutCancel(ctx), group, c.Dir))
		}
	}()
	r := record{Cgroup: c.Cgroup, IPC: c.Namespaces.IPC, UTS: c.Namespaces.UTS, Net: c.Namespaces.Net != "", SharePID: c.Namespaces.PID,
		Foreign: c.Foreign}
	if err := writeJSON(filepath.Join(c.Dir, recordName), r); err != nil {
		return nil, err
	}
	listener, err := listen(filepath.Join(c.Dir, socketName))
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	if c.Cgroup != "" {
		made, err := cgroup.Open(c.Cgroup)
		if err != nil {
			return nil, err
		}
		if err := made.Create(nil); err != nil {
			if !errors.Is(err, cgroup.ErrInUse) {
				err = errors.Join(err, made.Remove())
			}
			return nil, err
		}
		group = made
	}
	pidfd, err := born(c, group, listener)
	if err != nil {
		return nil, err
	}
	reapLater(pidfd)
	client, err := Connect(ctx, c.Dir, c.Init, c.Log)
	if err == nil && client.Outdated() != nil {
		return nil, errors.Join(fmt.Errorf("the init program is not of this release: %w", client.Outdated()), client.Shutdown(ctx))
	}
	if err == nil {
		protect(c.Log, client.pid, client.reaper)
	}
	return client, err
}

// undoTimeout bounds the wait for a shim to end whose start did not succeed.
const undoTimeout = 10 * time.Second

// undo takes back a start that did not succeed: the shim may live all the same, if it did not answer in time. The state directory, by which it is
// found, goes when it has gone.
func undo(ctx context.Context, group *cgroup.Group, dir string) error {
	if group != nil {
		ctx, cancel := context.WithTimeout(ctx, undoTimeout)
		defer cancel()
		if err := group.Destroy(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// lastWords are the shim's own log: why it died.
func lastWords(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil || len(b) == 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b)) + ")"
}

func listen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, linux.Wrap("make", "socket", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		unix.Close(fd)
		return -1, linux.Wrap("listen on", path, err)
	}
	return fd, nil
}

// born launches the shim's process.
func born(c Config, group *cgroup.Group, listener int) (pidfd int, err error) {
	p := launch.Process{Exe: c.Init.FD(), Name: "yare-shim", Role: launch.Shim, Cgroup: -1}
	defer func() {
		for _, n := range p.Join {
			unix.Close(n.FD)
		}
	}()
	for _, n := range c.Namespaces.list() {
		flag := compile.CloneFlag(n.Type)
		if n.Path == "" {
			p.CloneFlags |= flag
			continue
		}
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, linux.Wrap("open "+string(n.Type)+" namespace", n.Path, err)
		}
		p.Join = append(p.Join, launch.Namespace{FD: fd, Flags: int(flag)})
	}
	if group != nil {
		entry, err := group.Entry()
		if err != nil {
			return -1, err
		}
		defer entry.Close()
		p.Tasks, p.Cgroup = entry.Tasks, entry.Dir
	}
	config, err := linux.SealedFile("config", wire.Marshal(shimConfig(c)), false)
	if err != nil {
		return -1, err
	}
	defer unix.Close(config)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, linux.Wrap("open", "/dev/null", err)
	}
	defer unix.Close(null)
	logPath := filepath.Join(c.Dir, logName)
	log, err := unix.Open(logPath, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, linux.Wrap("open", logPath, err)
	}
	defer unix.Close(log)
	p.Files = []int{null, null, log, config, listener}
	_, pidfd, err = launch.Start(p)
	return pidfd, err
}

// list are those that the shim itself is in: joined by path, or made.
func (n *Namespaces) list() (all []specs.LinuxNamespace) {
	if n.Net != "" {
		all = append(all, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.Net})
	}
	for t, want := range map[specs.LinuxNamespaceType]bool{specs.IPCNamespace: n.IPC, specs.UTSNamespace: n.UTS} {
		switch {
		case !want:
		case n.Users != "":
			all = append(all, specs.LinuxNamespace{Type: t, Path: oci.HeldNamespace(n.Users, t)})
		default:
			all = append(all, specs.LinuxNamespace{Type: t})
		}
	}
	return all
}

func shimConfig(c Config) *protocol.Config {
	out := &protocol.Config{Dir: c.Dir, SharePID: c.Namespaces.PID, Subreaper: c.Foreign}
	if c.Namespaces.UTS {
		out.Hostname = c.Namespaces.Hostname
	}
	if c.Namespaces.Users != "" {
		out.Users = oci.HeldNamespace(c.Namespaces.Users, specs.UserNamespace)
	}
	for name, value := range c.Sysctls {
		if !strings.Contains(name, "/") {
			name = strings.ReplaceAll(name, ".", "/")
		}
		out.Sysctls = append(out.Sysctls, protocol.Sysctl{Name: name, Value: value})
	}
	slices.SortFunc(out.Sysctls, func(a, b protocol.Sysctl) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// reapLater waits for a shim that is our child, so that it does not stay a
// zombie. The wait is the network poller's: it takes no thread. A shim of an
// earlier server is init's child.
func reapLater(pidfd int) {
	if unix.SetNonblock(pidfd, true) != nil {
		unix.Close(pidfd)
		return
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	go func() {
		defer f.Close()
		raw, err := f.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Read(func(fd uintptr) bool {
			err := linux.Retry(func() error { return unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED, nil) })
			return err != unix.EAGAIN
		})
	}()
}

// writeJSON writes a file whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

// Connect attaches to the shim that an earlier process started in dir. It
// returns [ErrGone] when there is none alive; then call [Reap]. Of one of another
// release, see [Client.Outdated].
func Connect(ctx context.Context, dir string, init *oci.Init, log *slog.Logger) (*Client, error) {
	c := &Client{dir: dir, log: log, events: newQueue(), exits: map[string]ExitStatus{}, waiters: map[string][]chan ExitStatus{},
		sessions: map[uint64]chan ExitStatus{}}
	if err := readJSON(filepath.Join(dir, recordName), &c.record); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("connect to shim: %w: %w", ErrGone, err)
		}
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	socket, err := dial(ctx, filepath.Join(dir, socketName))
	if err != nil {
		return nil, err
	}
	c.conn = newConnection(socket, c.exited)
	c.tasks.Go(func() {
		c.conn.read()
		c.events.close()
	})
	c.tasks.Go(c.events.pump)
	hello, err := c.conn.request(ctx, &protocol.Request{Verb: protocol.Hello})
	if err == nil && hello.Version == protocol.Version {
		c.pid, c.reaper = hello.Pid, hello.Reaper
		return c, nil
	}
	closed := c.disconnect()
	if err == nil || errors.Is(err, ErrGone) { // it does not understand us, or is dead
		err = c.becomeOutdated(ctx, hello.Version)
	}
	if err != nil {
		return nil, errors.Join(err, closed)
	}
	return c, nil
}
