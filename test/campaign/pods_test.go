package campaign_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// phase is how far a thing has come, as its client knows.
type phase int

// The phases. Between two of them, while a call is under way, a kill leaves it open which one holds.
const (
	absent phase = iota
	created
	running
	ended
)

// box is a container and what must be true of it.
type box struct {
	name  string
	args  []string
	lines int // that it writes in all; -1: as many as it says at its end
	code  int32

	phase phase
	busy  bool // a call is under way, or was when the server was killed
	id    string
	pid   int
	born  string
}

// until writes lines until it is stopped; count writes so many and ends.
func until(name string, code int32) *box {
	return &box{name: name, args: []string{"until", strconv.Itoa(int(code))}, lines: -1, code: code}
}

func count(name string, lines int, code int32) *box {
	return &box{name: name, args: []string{"count", strconv.Itoa(lines), strconv.Itoa(int(code))}, lines: lines, code: code}
}

// pod is a sandbox and its containers.
type pod struct {
	s     *server
	name  string
	id    string
	phase phase // absent, running or ended
	busy  bool
	boxes []*box
}

func (p *pod) cgroup() string      { return path.Join(inside.cgroup, p.name) }
func (p *pod) group(b *box) string { return path.Join(p.cgroup(), b.id) }
func (p *pod) shimGroup() string   { return path.Join(p.cgroup(), "shim-"+p.id[:20]) }

func (p *pod) config() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.name, Namespace: "campaign", Uid: "uid-" + p.name},
		Hostname: p.name, LogDirectory: path.Join(p.s.dir, "logs", p.name), Labels: map[string]string{"pod": p.name},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: p.cgroup(), SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

// begin says that a call follows whose effect is open until it has answered.
func begin(busy *bool) (again bool) {
	again, *busy = *busy, true
	return again
}

// run makes the sandbox. When an earlier call has had no answer, what it has done is found.
func (p *pod) run(ctx context.Context) error {
	if begin(&p.busy) {
		list, err := p.s.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"pod": p.name}}})
		if err != nil {
			return err
		}
		for _, sb := range list.Items {
			p.id = sb.Id
		}
	}
	if p.id == "" {
		r, err := p.s.client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config()})
		if err != nil {
			return fmt.Errorf("run %s: %w", p.name, err)
		}
		p.id = r.PodSandboxId
	}
	p.busy, p.phase = false, running
	return nil
}

// create makes a container.
func (p *pod) create(ctx context.Context, b *box) error {
	if begin(&b.busy) {
		list, err := p.s.client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			PodSandboxId: p.id, LabelSelector: map[string]string{"box": b.name}}})
		if err != nil {
			return err
		}
		for _, c := range list.Containers {
			b.id = c.Id
		}
	}
	if b.id == "" {
		r, err := p.s.client.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config(), Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: b.name}, Image: &cri.ImageSpec{Image: "work:1"}, Args: b.args,
			LogPath: b.name + ".log", Labels: map[string]string{"pod": p.name, "box": b.name}, Linux: &cri.LinuxContainerConfig{
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
		}})
		if err != nil {
			return fmt.Errorf("create %s of %s: %w", b.name, p.name, err)
		}
		b.id = r.ContainerId
	}
	b.busy, b.phase = false, created
	return nil
}

// start starts a container. One that an earlier call without an answer has started is not started again.
func (p *pod) start(ctx context.Context, b *box) error {
	state := cri.ContainerState_CONTAINER_CREATED
	if begin(&b.busy) {
		r, err := p.s.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: b.id})
		if err != nil {
			return err
		}
		state = r.Status.State
	}
	if state == cri.ContainerState_CONTAINER_CREATED {
		if _, err := p.s.client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: b.id}); err != nil {
			return fmt.Errorf("start %s of %s: %w", b.name, p.name, err)
		}
	}
	s, err := p.status(ctx, b)
	if err != nil {
		return err
	}
	b.pid = s.pid
	b.born = born(b.pid)
	if b.lines < 0 && b.born == "" {
		return fmt.Errorf("%s of %s runs, but there is no process %d", b.name, p.name, b.pid)
	}
	b.busy, b.phase = false, running
	return nil
}

// boxStatus is what the runtime says of a container.
type boxStatus struct {
	*cri.ContainerStatus
	pid int
}

func (p *pod) status(ctx context.Context, b *box) (*boxStatus, error) {
	r, err := p.s.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: b.id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("status of %s of %s: %w", b.name, p.name, err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil {
		return nil, err
	}
	return &boxStatus{r.Status, info.Pid}, nil
}

// say runs a process in a container, whose output and exit code must come back as they were.
func (p *pod) say(ctx context.Context, b *box, text string, code int32) error {
	r, err := p.s.client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: b.id, Cmd: []string{"/work", "say", text, strconv.Itoa(int(code))}, Timeout: 60})
	if err != nil {
		return fmt.Errorf("exec in %s of %s: %w", b.name, p.name, err)
	}
	if string(r.Stdout) != text+"\n" || r.ExitCode != code {
		return fmt.Errorf("exec in %s of %s: got %q and code %d, want %q and %d", b.name, p.name, r.Stdout, r.ExitCode, text, code)
	}
	return nil
}

// halt stops a container by its signal.
func (p *pod) halt(ctx context.Context, b *box) error {
	begin(&b.busy)
	if _, err := p.s.client.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: b.id, Timeout: 60}); err != nil {
		return fmt.Errorf("stop %s of %s: %w", b.name, p.name, err)
	}
	return p.over(ctx, b)
}

// over waits for a container's end, and looks at its exit code and its log.
func (p *pod) over(ctx context.Context, b *box) error {
	var s *boxStatus
	for s == nil || s.State != cri.ContainerState_CONTAINER_EXITED {
		var err error
		if s, err = p.status(ctx, b); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the end of %s of %s: %w", b.name, p.name, err)
		}
	}
	if s.ExitCode != b.code {
		return fmt.Errorf("%s of %s: exit code %d, %s, want %d", b.name, p.name, s.ExitCode, s.Reason, b.code)
	}
	b.busy, b.phase = false, ended
	return p.checkLog(b)
}

// checkLog finds each line once and in order.
func (p *pod) checkLog(b *box) error {
	text, err := os.ReadFile(p.s.logs(p.name, b.name))
	if err != nil {
		return err
	}
	n, end := 0, -1
	for entry := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(entry, "\n"), " ", 4)
		if len(f) != 4 || f[1] != "stdout" || f[2] != "F" {
			return fmt.Errorf("log of %s of %s: entry %q", b.name, p.name, entry)
		}
		switch {
		case end < 0 && f[3] == "line "+strconv.Itoa(n):
			n++
		case end < 0 && f[3] == "end "+strconv.Itoa(n) && b.lines < 0:
			end = n
		default:
			return fmt.Errorf("log of %s of %s: after %d lines and end %d: %q", b.name, p.name, n, end, f[3])
		}
	}
	if b.lines >= 0 && n != b.lines || b.lines < 0 && end < 0 {
		return fmt.Errorf("log of %s of %s: %d lines of %d, end %d", b.name, p.name, n, b.lines, end)
	}
	return nil
}

// drop removes a container.
func (p *pod) drop(ctx context.Context, b *box) error {
	begin(&b.busy)
	if _, err := p.s.client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: b.id}); err != nil {
		return fmt.Errorf("remove %s of %s: %w", b.name, p.name, err)
	}
	b.busy, b.phase, b.id = false, absent, ""
	return nil
}

// haltAll stops the sandbox, which kills what runs.
func (p *pod) haltAll(ctx context.Context) error {
	begin(&p.busy)
	for _, b := range p.boxes {
		if b.phase != absent {
			b.busy = true
		}
	}
	if _, err := p.s.client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	for _, b := range p.boxes {
		if b.phase == running || b.phase == created {
			b.code = 137
		}
		if b.phase == absent {
			continue
		}
		s, err := p.status(ctx, b)
		if err != nil {
			return err
		}
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != b.code {
			return fmt.Errorf("%s of stopped %s is %v with code %d, want %d", b.name, p.name, s.State, s.ExitCode, b.code)
		}
		b.phase, b.busy = ended, false
	}
	p.phase, p.busy = ended, false
	return nil
}

func (p *pod) remove(ctx context.Context) error {
	begin(&p.busy)
	for _, b := range p.boxes {
		b.busy = true
	}
	if _, err := p.s.client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("remove %s: %w", p.name, err)
	}
	p.phase, p.busy = absent, false
	// The pod's cgroup is the kubelet's to remove; it must be empty. Its log is the kubelet's as well.
	if err := removeCgroups(p.cgroup()); err != nil {
		return err
	}
	return os.RemoveAll(path.Join(p.s.dir, "logs", p.name))
}

// verify compares what the runtime says after a restart with what is known.
func (p *pod) verify(ctx context.Context) error {
	if p.phase == absent || p.busy {
		return nil // anything may be true; the next step finds out
	}
	r, err := p.s.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		return fmt.Errorf("%s is lost: %w", p.name, err)
	}
	if ready := r.Status.State == cri.PodSandboxState_SANDBOX_READY; ready != (p.phase == running) {
		return fmt.Errorf("%s is %v", p.name, r.Status.State)
	}
	var errs error
	for _, b := range p.boxes {
		errs = errors.Join(errs, p.verifyBox(ctx, b))
	}
	return errs
}

func (p *pod) verifyBox(ctx context.Context, b *box) error {
	if b.phase == absent {
		return nil
	}
	s, err := p.status(ctx, b)
	if err != nil {
		if b.busy && strings.Contains(err.Error(), "NotFound") {
			return nil // it was being removed
		}
		return err
	}
	over := s.State == cri.ContainerState_CONTAINER_EXITED
	switch {
	case b.busy:
		if over && b.phase == running && s.ExitCode != b.code && s.ExitCode != 137 {
			return fmt.Errorf("%s of %s: exit code %d, want %d", b.name, p.name, s.ExitCode, b.code)
		}
		return nil
	case b.phase == created && s.State != cri.ContainerState_CONTAINER_CREATED,
		b.phase == ended && !over,
		b.phase == running && b.lines < 0 && s.State != cri.ContainerState_CONTAINER_RUNNING:
		return fmt.Errorf("%s of %s is %v with code %d, want phase %d", b.name, p.name, s.State, s.ExitCode, b.phase)
	case over && s.ExitCode != b.code:
		return fmt.Errorf("%s of %s: exit code %d, want %d", b.name, p.name, s.ExitCode, b.code)
	case b.phase == running && b.lines < 0 && (s.pid != b.pid || born(b.pid) != b.born):
		return fmt.Errorf("%s of %s: process %d born at %q, was %d at %q", b.name, p.name, s.pid, born(b.pid), b.pid, b.born)
	}
	return nil
}
