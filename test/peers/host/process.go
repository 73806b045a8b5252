package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Process is a program that runs in the background. What it says is in a file.
type Process struct {
	Name string
	Log  string

	cmd   *exec.Cmd
	ended chan struct{}
	err   error // how it ended, after ended is closed
	asked bool  // Stop was called
}

// patience is how long a program may take to end when it is asked to.
const patience = 20 * time.Second

// Start starts a program inside; Close ends it.
func (h *Host) Start(name string, env []string, args ...string) (*Process, error) {
	p, err := Run(name, filepath.Join(h.Dir, name+".log"), env, h.Command(args...))
	if err == nil {
		h.started = append(h.started, p)
	}
	return p, err
}

// Run starts a command in the background, with its output in the file log.
func Run(name, log string, env []string, cmd *exec.Cmd) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &Process{Name: name, Log: log, cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// Alive is an error once the process has ended.
func (p *Process) Alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %w\n%s", p.Name, errors.Join(p.err, errEnded), p.Tail(30))
	default:
		return nil
	}
}

var errEnded = errors.New("unasked")

// Stop asks the process to end, and kills it when it does not. A second call does nothing.
func (p *Process) Stop() error {
	if p.asked {
		return nil
	}
	if err := p.Alive(); err != nil {
		p.asked = true
		return err
	}
	p.asked = true
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil // upstream's programs end by their own idea of an exit code
	case <-time.After(patience):
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-p.ended
		return fmt.Errorf("%s did not end within %v", p.Name, patience)
	}
}

// Tail is the end of what the process has said.
func (p *Process) Tail(lines int) []byte {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return []byte(err.Error())
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

// Alive is an error once one of the host's processes has ended.
func (h *Host) Alive() error {
	for _, p := range h.started {
		if err := p.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// Started are the host's processes.
func (h *Host) Started() []*Process { return h.started }
