package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// agent is who answers what a seccomp filter asks: a listener on a unix
// socket that is told of every process with the filter.
type agent struct {
	path, metadata string
	container      *record
	status         specs.ContainerState
}

// send hands a filter's descriptor over, on a connection of its own.
func (a *agent) send(pid int, fds []int) error {
	if a == nil || len(fds) != 1 {
		return errors.New("seccomp agent: no listener")
	}
	state := *a.container.state(a.status)
	if state.Pid == 0 {
		state.Pid = pid
	}
	text, err := json.Marshal(specs.ContainerProcessState{Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid,
		Metadata: a.metadata, State: state})
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	conn, err := net.Dial("unix", a.path)
	if err != nil {
		return fmt.Errorf("connect to seccomp agent: %w", err)
	}
	defer conn.Close()
	n, _, err := conn.(*net.UnixConn).WriteMsgUnix(text, unix.UnixRights(fds...), nil)
	if err == nil && n < len(text) {
		_, err = conn.Write(text[n:])
	}
	if err != nil {
		return fmt.Errorf("tell seccomp agent: %w", err)
	}
	return nil
}
