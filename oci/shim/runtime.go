package shim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/shim/protocol"
)

// Runtime is another OCI runtime that makes containers in place of our own: runc, crun, runsc. It is spoken to by the command
// line that runc has made the standard.
//
// The shim runs its commands: those that make processes (create, start, exec), so that they become its children, and the rest (kill,
// update, delete) so that all see the same namespaces. After its death the client deletes.
type Runtime struct {
	// Path of the program, absolute.
	Path string `json:"path"`
	// Options stand before the verb.
	Options []string `json:"options,omitempty"`
}

// Names in a container's state directory that another runtime needs. That directory is its bundle.
const (
	bundleName  = "config.json"
	rootName    = "root" // where the runtime keeps what it knows
	pidName     = "pid"
	logJSONName = "log.json"
	processName = "process.json"
	limitsName  = "limits.json"
)

// runtimeTimeout bounds a command of which nobody else says how long it may take.
const runtimeTimeout = 30 * time.Second

// args is a command line. dir is the container's state directory, log the file for what the runtime has to say.
func (r *Runtime) args(dir, log string, verb ...string) []string {
	return slices.Concat([]string{r.Path}, r.Options,
		[]string{"--root", filepath.Join(dir, rootName), "--log", log, "--log-format", "json"}, verb)
}

// command has a runtime do something: [Client.do], or do where the shim is dead. dir is the container's state directory.
type command func(ctx context.Context, r *Runtime, dir string, verb ...string) error

// do has the shim run a command.
func (c *Client) do(ctx context.Context, r *Runtime, dir string, verb ...string) error {
	log, err := os.CreateTemp(dir, verb[0]+"-*.json")
	if err != nil {
		return err
	}
	log.Close()
	defer os.Remove(log.Name())
	_, err = c.conn.request(ctx, &protocol.Request{Verb: protocol.Run, Command: protocol.Command{Args: r.args(dir, log.Name(), verb...)}})
	return r.explain(err, log.Name())
}

// do runs a command here.
func do(ctx context.Context, r *Runtime, dir string, verb ...string) error {
	ctx, cancel := context.WithTimeout(ctx, runtimeTimeout)
	defer cancel()
	log, err := os.CreateTemp(dir, verb[0]+"-*.json")
	if err != nil {
		return err
	}
	log.Close()
	defer os.Remove(log.Name())
	args := r.args(dir, log.Name(), verb...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out := &limited{budget: &budget{left: mostTold}}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", r.name(), context.Cause(ctx))
	}
	if told := lastError(log.Name()); told != "" {
		return fmt.Errorf("%s: %s", r.name(), told)
	}
	return fmt.Errorf("%s: %w: %s", r.name(), err, bytes.TrimSpace(out.kept.Bytes()))
}

// installed says that there is a program.
func (r *Runtime) installed() bool {
	st, err := os.Stat(r.Path)
	return err == nil && st.Mode().IsRegular() || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// name is how errors call it.
func (r *Runtime) name() string { return filepath.Base(r.Path) }

// explain puts the runtime's own words in the place of the shim's, which knows nothing but an exit code.
func (r *Runtime) explain(err error, log string) error {
	var remote *remoteError
	if r == nil || !errors.As(err, &remote) || remote.class != nil {
		return err
	}
	if told := lastError(log); told != "" {
		return &remoteError{r.name() + ": " + told, nil}
	}
	return err
}

// What is read of a runtime's log, and what of an error in it is told, in bytes.
const (
	mostLog  = 4 << 20
	mostTold = 4 << 10
)

// lastError is the last error in a runtime's log, which has one JSON object per line; "" when there is none.
func lastError(log string) (last string) {
	fd, err := unix.Open(log, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) // it is the runtime's, and may be anything
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), log)
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return ""
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-mostLog), mostLog))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	if len(last) > mostTold {
		last = strings.ToValidUTF8(last[:mostTold], "") + "..."
	}
	return last
}

// createForeign has another runtime create a container. It runs the hooks itself.
func (c *Client) createForeign(ctx context.Context, r *CreateRequest, spec *specs.Spec, dir string) (pid int, err error) {
	state := &containerState{Cgroup: spec.Linux.CgroupsPath, Runtime: r.Runtime}
	group, err := cgroup.Open(state.Cgroup)
	if err != nil {
		return 0, err
	}
	if pids, err := group.Pids(); err == nil && len(pids) > 0 {
		return 0, fmt.Errorf("create cgroup %s: %w", state.Cgroup, cgroup.ErrInUse)
	}
	if err := writeJSON(filepath.Join(dir, stateName), state); err != nil {
		return 0, err
	}
	if err := writeJSON(filepath.Join(dir, bundleName), completeSpec(spec, r.Bundle, c.Namespace)); err != nil {
		return 0, err
	}
	request := &protocol.Request{Verb: protocol.Create, ID: r.ID, LogPath: r.LogPath, Terminal: spec.Process.Terminal,
		Stdin: r.Stdin, StdinOnce: r.StdinOnce, OOMFile: group.OOMFile(), CgroupPath: state.Cgroup}
	log := filepath.Join(dir, logJSONName)
	request.Command = c.making(r.Runtime, dir, log, filepath.Join(dir, pidName), spec.Process.Terminal, r.ID, "create", "--bundle", dir)
	answer, err := c.conn.request(ctx, request)
	if err == nil {
		return answer.Pid, nil
	}
	err = r.Runtime.explain(err, log)
	clean := context.WithoutCancel(ctx)
	if _, aerr := c.conn.request(clean, &protocol.Request{Verb: protocol.Abandon, ID: r.ID}); aerr == nil {
		_, _ = c.Wait(clean, r.ID) // until nobody makes anything any more
	}
	return 0, errors.Join(err, freeContainer(clean, c.do, dir, r.ID, state))
}

// making is a command that makes a process.
func (c *Client) making(r *Runtime, dir, log, pidFile string, terminal bool, id string, verb ...string) protocol.Command {
	out := protocol.Command{PidFile: pidFile}
	verb = append(verb, "--pid-file", pidFile)
	if terminal {
		// A socket's path is short, which those of containers are not.
		out.Console = filepath.Join(c.dir, "c"+rand.Text()[:8])
		verb = append(verb, "--console-socket", out.Console)
	}
	out.Args = r.args(dir, log, append(verb, id)...)
	return out
}

// foreignVersion is the specification's version that all know. crun did not take one of another name for long, although it honours
// what later ones have brought, as the others do.
const foreignVersion = "1.0.2"

// completeSpec is a spec that says all that our shim's children inherit: the sandbox's namespaces. Others would take them for the
// host's.
func completeSpec(spec *specs.Spec, bundle string, namespace func(specs.LinuxNamespaceType) string) *specs.Spec {
	out, linux, root := *spec, *spec.Linux, *spec.Root
	out.Version = foreignVersion
	if !filepath.IsAbs(root.Path) {
		root.Path = filepath.Join(bundle, root.Path)
	}
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for _, t := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace} {
		path := namespace(t)
		if path != "" && !slices.ContainsFunc(linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t }) {
			linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	out.Linux, out.Root = &linux, &root
	return &out
}

// foreignExec is an exec by another runtime. The caller removes the folder.
func (c *Client) foreignExec(r *ExecRequest, runtime *Runtime) (request *protocol.Request, folder string, err error) {
	dir := filepath.Join(c.dir, r.ID)
	if folder, err = os.MkdirTemp(dir, "exec-*"); err != nil {
		return nil, "", err
	}
	file := filepath.Join(folder, processName)
	if err := writeJSON(file, r.Process); err != nil {
		return nil, folder, err
	}
	return &protocol.Request{Verb: protocol.Exec, ID: r.ID, Command: c.making(runtime, dir, filepath.Join(folder, logJSONName),
		filepath.Join(folder, pidName), r.Process.Terminal, r.ID, "exec", "--detach", "--process", file)}, folder, nil
}

// foreign is the container's runtime; nil is ours.
func (c *Client) foreign(id string) (*Runtime, error) {
	if !c.record.Foreign { // spares us the file
		return nil, nil
	}
	state, err := c.state(id)
	if err != nil {
		return nil, err
	}
	return state.Runtime, nil
}

// killForeign sends a signal by the runtime: not every one's processes are the host's. What must die does so also where the
// runtime cannot help.
func (c *Client) killForeign(ctx context.Context, r *Runtime, id string, sig syscall.Signal, all bool) error {
	if all {
		group, err := c.Cgroup(id)
		if err != nil {
			return err
		}
		if err := group.Signal(ctx, sig); err != nil || sig != unix.SIGKILL {
			return err
		}
	}
	// Most of the time the first process was in the group, and so has ended.
	if err := c.signal(ctx, id, 0); err != nil {
		if all && errors.Is(err, ErrState) {
			return nil
		}
		return err
	}
	err := c.do(ctx, r, filepath.Join(c.dir, id), "kill", id, strconv.Itoa(int(sig)))
	if err == nil {
		return nil
	}
	switch ended := c.signal(ctx, id, 0); {
	case ended != nil && all:
		return nil
	case ended != nil:
		return ended
	case sig != unix.SIGKILL:
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	c.log.Warn("runtime does not kill its container, its first process is killed", "container", id, "err", err)
	return c.signal(ctx, id, sig)
}

// Update changes limits of a container and leaves those that are not given as they are.
func (c *Client) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	group, err := c.Cgroup(id)
	if err != nil {
		return err
	}
	r, err := c.foreign(id)
	if err != nil {
		return err
	}
	if r == nil {
		return group.Update(limits)
	}
	dir := filepath.Join(c.dir, id)
	file := filepath.Join(dir, limitsName)
	if err := writeJSON(file, limits); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if err := c.do(ctx, r, dir, "update", "--resources", file, id); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if len(limits.HugepageLimits) == 0 {
		return nil
	}
	// runc does not look at them.
	return group.Update(&specs.LinuxResources{HugepageLimits: limits.HugepageLimits})
}

// freeContainer ends what is in a container's cgroup and removes it. A runtime that is not ours deletes what it has of it.
func freeContainer(ctx context.Context, do command, dir, id string, state *containerState) error {
	if state.Runtime == nil || state.Cgroup == "" {
		return freeCgroup(ctx, state.Cgroup)
	}
	group, err := cgroup.Open(state.Cgroup)
	if err != nil {
		return err
	}
	if err := group.Kill(ctx); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, rootName)); err == nil {
		err := do(ctx, state.Runtime, dir, "delete", "--force", id)
		// One that was uninstalled does not keep its containers from going.
		if err != nil && state.Runtime.installed() && !strings.Contains(err.Error(), "does not exist") {
			return fmt.Errorf("delete container: %w", err)
		}
	}
	return group.Remove()
}
