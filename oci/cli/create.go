package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
)

// createFlags are those of create and run.
type createFlags struct {
	oci.CreateOptions
	pidFile      string
	pidfdSocket  string
	preserve     int
	detach, keep bool
	subreap      bool
}

func (f *createFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.Bundle, "bundle", "b", ".", "bundle directory")
	flags.StringVar(&f.ConsoleSocket, "console-socket", "", "unix socket that receives the terminal's master")
	flags.StringVar(&f.pidFile, "pid-file", "", "file to write the process id to")
	flags.StringVar(&f.pidfdSocket, "pidfd-socket", "", "unix socket that receives a descriptor of the process")
	flags.IntVar(&f.preserve, "preserve-fds", 0, "number of further descriptors to pass on")
	flags.BoolVar(&f.NoPivot, "no-pivot", false, "move the root instead of pivoting (for a root in memory)")
	flags.BoolVar(&f.NoNewKeyring, "no-new-keyring", false, "leave the container our session keyring")
}

// make creates, or with act runs, the container, and takes it back if its pid file cannot be written. From when there is a
// process that would be left, SIGINT and SIGTERM are caught and end ctx for it; passOn gets what the program is to have. That
// is not done before because for each signal the Go runtime changes threads several times, and now there is time for it: the
// init, which until then ends with us, is at work.
func (a *app) make(ctx context.Context, id string, f *createFlags, passOn chan os.Signal, act func(context.Context, string, oci.CreateOptions) (int, error)) (int, error) {
	done, err := a.openInit()
	if err != nil {
		return 0, err
	}
	defer done()
	f.Files, f.Systemd = streams(f.preserve), a.systemd
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.Born = func() {
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, unix.SIGTERM, unix.SIGINT)
		go func() { <-interrupts; cancel() }()
		if passOn != nil {
			listen(passOn)
		}
	}
	pid, err := act(ctx, id, f.CreateOptions)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(writePid(f.pidFile, pid), sendPidfd(f.pidfdSocket, pid)); err != nil {
		return 0, errors.Join(err, a.runtime.Delete(context.WithoutCancel(ctx), id, true))
	}
	a.stderr.release()
	return pid, nil
}

func (a *app) create(flags *pflag.FlagSet) action {
	f := &createFlags{}
	f.add(flags)
	return func(ctx context.Context, args []string) error {
		_, err := a.make(ctx, args[0], f, nil, func(ctx context.Context, id string, o oci.CreateOptions) (int, error) {
			return a.runtime.Create(ctx, id, o)
		})
		return err
	}
}

func (a *app) run(flags *pflag.FlagSet) action {
	f := &createFlags{}
	f.add(flags)
	flags.BoolVarP(&f.detach, "detach", "d", false, "do not wait")
	flags.BoolVar(&f.keep, "keep", false, "do not delete the container when it has ended")
	flags.BoolVar(&f.subreap, "no-subreaper", false, "accepted: orphans are never adopted")
	return func(ctx context.Context, args []string) (err error) {
		tty, err := f.console()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tty.close()) }()
		var signals chan os.Signal
		if !f.detach {
			signals = make(chan os.Signal, 16)
		}
		pid, err := a.make(ctx, args[0], f, signals, func(ctx context.Context, id string, o oci.CreateOptions) (int, error) {
			return a.runtime.Run(ctx, id, o)
		})
		if err != nil {
			return err
		}
		clean := context.WithoutCancel(ctx)
		if tty != nil {
			if err := tty.connect(); err != nil {
				return errors.Join(err, a.runtime.Delete(clean, args[0], true))
			}
		}
		if f.detach {
			return nil
		}
		code, err := tty.follow(pid, signals)
		if !f.keep {
			err = errors.Join(err, a.runtime.Delete(clean, args[0], true))
		}
		return exited(code, err)
	}
}

// console prepares for a container with a terminal that is run in the foreground; nil for others.
func (f *createFlags) console() (*console, error) {
	if f.detach || f.ConsoleSocket != "" {
		return nil, nil
	}
	bundle, err := oci.OpenBundle(f.Bundle)
	if err != nil || bundle.Spec.Process == nil || !bundle.Spec.Process.Terminal {
		f.Opened = bundle
		return nil, err
	}
	f.Opened = bundle
	tty, err := newConsole()
	if err == nil {
		f.ConsoleSocket = tty.path()
	}
	return tty, err
}

// exited is the end of a process that was waited for.
func exited(code int, err error) error {
	if err == nil && code != 0 {
		return &ExitError{Code: code}
	}
	return err
}

// listen catches the signals that are to be passed on, until the program ends.
func listen(signals chan os.Signal) {
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
}

// follow passes signals on to our child and returns its exit code.
func follow(pid int, signals <-chan os.Signal) (int, error) {
	end := make(chan struct{})
	defer close(end)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = unix.Kill(pid, s.(unix.Signal)) // not reaped before end, so it is ours
			case <-end:
				return
			}
		}
	}()
	var status unix.WaitStatus
	err := linux.Retry(func() error { _, e := unix.Wait4(pid, &status, 0, nil); return e })
	if err != nil {
		return 0, linux.Wrap("wait for process", strconv.Itoa(pid), err)
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// execFlags are exec's.
type execFlags struct {
	process, console, pidFile, pidfdSocket, cwd, user string
	label, apparmor                                   string
	env, caps                                         []string
	groups                                            []int64
	tty, detach, noNewPrivs, ignorePaused             bool
	preserve                                          int
}

func (a *app) exec(flags *pflag.FlagSet) action {
	f := &execFlags{}
	flags.StringVarP(&f.process, "process", "p", "", "file with the process as JSON")
	flags.StringVar(&f.console, "console-socket", "", "unix socket that receives the terminal's master")
	flags.StringVar(&f.pidFile, "pid-file", "", "file to write the process id to")
	flags.StringVar(&f.pidfdSocket, "pidfd-socket", "", "unix socket that receives a descriptor of the process")
	flags.StringVar(&f.cwd, "cwd", "", "working directory")
	flags.StringVarP(&f.user, "user", "u", "", "uid[:gid]")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment variable")
	flags.StringArrayVarP(&f.caps, "cap", "c", nil, "capability to add")
	flags.Int64SliceVarP(&f.groups, "additional-gids", "g", nil, "further groups")
	flags.StringVar(&f.label, "process-label", "", "SELinux label")
	flags.StringVar(&f.apparmor, "apparmor", "", "AppArmor profile")
	flags.BoolVarP(&f.tty, "tty", "t", false, "make a terminal")
	flags.BoolVarP(&f.detach, "detach", "d", false, "do not wait")
	flags.BoolVar(&f.ignorePaused, "ignore-paused", false, "also in a paused container; wait for it to be resumed")
	flags.BoolVar(&f.noNewPrivs, "no-new-privs", false, "set no_new_privs")
	flags.IntVar(&f.preserve, "preserve-fds", 0, "number of further descriptors to pass on")
	return func(ctx context.Context, args []string) error {
		err := a.runExec(ctx, args, f)
		var exit *ExitError
		if err != nil && !errors.As(err, &exit) {
			return &ExitError{255, err} // as runc: the codes below are the process's
		}
		return err
	}
}

func (a *app) runExec(ctx context.Context, args []string, f *execFlags) (err error) {
	process, err := a.process(args[0], args[1:], f)
	if err != nil {
		return err
	}
	done, err := a.openInit()
	if err != nil {
		return err
	}
	defer done()
	var tty *console
	if process.Terminal && !f.detach && f.console == "" {
		if tty, err = newConsole(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tty.close()) }()
		f.console = tty.path()
	}
	signals := make(chan os.Signal, 16)
	listen(signals)
	pid, err := a.runtime.Exec(ctx, args[0], oci.ExecOptions{Process: process, ConsoleSocket: f.console, Files: streams(f.preserve),
		Paused: f.ignorePaused})
	if err != nil {
		return err
	}
	if tty != nil {
		if err := tty.connect(); err != nil {
			return errors.Join(err, unix.Kill(pid, unix.SIGKILL)) // our child, not reaped yet
		}
	}
	if err := errors.Join(writePid(f.pidFile, pid), sendPidfd(f.pidfdSocket, pid)); err != nil {
		return errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	a.stderr.release()
	if f.detach {
		return nil
	}
	return exited(tty.follow(pid, signals))
}

// process is the file's, or the container's own with what the flags change.
func (a *app) process(id string, args []string, f *execFlags) (*specs.Process, error) {
	if f.process != "" {
		b, err := os.ReadFile(f.process)
		if err != nil {
			return nil, fmt.Errorf("read process: %w", err)
		}
		p := new(specs.Process)
		if err := json.Unmarshal(b, p); err != nil {
			return nil, fmt.Errorf("parse %s: %w", f.process, err)
		}
		p.Terminal = p.Terminal || f.tty
		if p.Capabilities == nil { // as runc: the container's own
			own, err := a.runtime.Process(id)
			if err != nil {
				return nil, err
			}
			p.Capabilities = own.Capabilities
		}
		return p, nil
	}
	if len(args) == 0 {
		return nil, errors.New("exec: name a command, or a process by --process")
	}
	p, err := a.runtime.Process(id)
	if err != nil {
		return nil, err
	}
	p.Args, p.Terminal = args, f.tty
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], f.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || f.noNewPrivs
	for _, g := range f.groups {
		if g < 0 || g > math.MaxUint32 {
			return nil, fmt.Errorf("--additional-gids %d: not a group", g)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	if f.label != "" {
		p.SelinuxLabel = f.label
	}
	if f.apparmor != "" {
		p.ApparmorProfile = f.apparmor
	}
	if f.cwd != "" {
		p.Cwd = f.cwd
	}
	if f.user != "" {
		uid, gid, _ := strings.Cut(f.user, ":")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--user %q: must be uid[:gid]", f.user)
		}
		p.User.UID = uint32(n)
		if gid != "" {
			if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return nil, fmt.Errorf("--user %q: must be uid[:gid]", f.user)
			}
			p.User.GID = uint32(n)
		}
	}
	if caps := p.Capabilities; caps != nil && len(f.caps) > 0 {
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
			*set = append((*set)[:len(*set):len(*set)], f.caps...)
		}
	}
	return p, nil
}
