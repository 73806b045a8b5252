// Package cli is the command line of the OCI runtime, "yare oci". It takes
// runc's verbs and flags, so that containerd, CRI-O, Docker and Podman can use
// it in runc's place.
//
// It prints only what a verb is for on the standard output. Errors are
// returned; a container's exit code is an [ExitError].
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
)

// ExitError is the exit code of the process that run or exec waited for, or 255
// when exec failed. The caller prints Err, if there is one, and exits with Code.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return "exit code " + strconv.Itoa(e.Code)
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// app is the command line's global flags, and what they make.
type app struct {
	root, logPath, logFormat string
	debug, systemd           bool
	rootless                 string

	runtime *oci.Runtime
	log     *os.File
	stderr  late // the log without a file
	// program makes the container init ready; it may keep things in the folder.
	program func(dir string) (*oci.Init, error)
}

func (a *app) open() error {
	if a.rootless != "auto" && a.rootless != "false" {
		return fmt.Errorf("--rootless=%s is not supported", a.rootless)
	}
	a.stderr = late{through: a.debug}
	var out io.Writer = &a.stderr
	if a.logPath != "" {
		f, err := os.OpenFile(a.logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o644)
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		a.log, out = f, f
	}
	options := &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: lowerLevel}
	if a.debug {
		options.Level = slog.LevelDebug
	}
	var handler slog.Handler
	switch a.logFormat {
	case "text", "":
		handler = slog.NewTextHandler(out, options)
	case "json":
		handler = slog.NewJSONHandler(out, options)
	default:
		return fmt.Errorf("--log-format %q: must be text or json", a.logFormat)
	}
	a.runtime = &oci.Runtime{Root: a.root, Log: slog.New(handler)}
	return nil
}

// lowerLevel writes levels as runc does: containerd looks for "error".
func lowerLevel(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.LevelKey && len(groups) == 0 {
		a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
	}
	return a
}

func (a *app) close() error {
	if a.log == nil {
		return nil
	}
	return a.log.Close()
}

// tell takes a verb's error: it also goes to the log, where containerd looks for it.
func (a *app) tell(err error) error {
	var exit *ExitError
	switch {
	case err == nil || errors.As(err, &exit) && exit.Err == nil:
		a.stderr.release()
	case a.log != nil:
		a.runtime.Log.Error(err.Error())
	}
	return err
}

// late holds back what is logged until it is known that all went well. When it did not, the standard error has the error
// and nothing else: Podman finds out what went wrong by words there, such as "permission denied", and would find them in a
// warning.
type late struct {
	through bool
	held    []byte
}

// Write implements io.Writer.
func (l *late) Write(b []byte) (int, error) {
	if l.through {
		return os.Stderr.Write(b)
	}
	l.held = append(l.held, b...)
	return len(b), nil
}

// release writes what was held back; from then on nothing is.
func (l *late) release() {
	_, _ = os.Stderr.Write(l.held) // there is nowhere else to tell of it
	l.through, l.held = true, nil
}

// openInit makes the container init ready, for the verbs that start processes.
func (a *app) openInit() (done func(), err error) {
	i, err := a.program(a.root)
	if err != nil {
		return nil, err
	}
	a.runtime.Init = i
	return func() { _ = i.Close() }, nil // its file is memory: nothing can be lost
}

// printJSON writes what a verb answers.
func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writePid writes a pid file whole or not at all.
func writePid(path string, pid int) error {
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path+".new", []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return os.Rename(path+".new", path)
}

// sendPidfd sends a descriptor of a process, which is our child, to whoever listens at a unix socket.
func sendPidfd(socket string, pid int) error {
	if socket == "" {
		return nil
	}
	pidfd, err := linux.OpenPid(pid)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("connect to pidfd socket: %w", err)
	}
	defer conn.Close()
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte("pidfd"), unix.UnixRights(pidfd), nil); err != nil {
		return fmt.Errorf("send pidfd: %w", err)
	}
	return nil
}

// streams are the descriptors that a container gets.
func streams(preserve int) []*os.File {
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for i := range preserve {
		files = append(files, os.NewFile(uintptr(3+i), "preserved"))
	}
	return files
}
