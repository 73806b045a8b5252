package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Health is what probes and hooks say of a running container.
type Health struct {
	Ready    bool
	Started  bool   // the startup probe succeeded, or there is none
	Unwell   string // "liveness" or "startup" when that probe gave up on it, else empty
	Starting bool   // the postStart hook has not ended
	Failed   string // what the postStart hook said when it failed, else empty
}

// Facts is all that a Plan depends on.
type Facts struct {
	Pod    *corev1.Pod
	View   *View
	Now    time.Time
	Health func(containerID string) Health
	// Again are containers, by ID, that are restarted whatever their restart policy says.
	Again map[string]bool
	// Until returns when the container may be started again after it ended.
	Until func(c *corev1.Container, ended *Container) time.Time
}

// Plan is what should happen next.
type Plan struct {
	// NewSandbox asks for a sandbox with number Attempt, after everything of the old ones has ended.
	NewSandbox bool
	Attempt    uint32
	Start      []Start // in order
	Stop       []Stop
	Discard    []string // containers that were made but never started, by ID
	// Waiting are containers that wait for their restart.
	Waiting map[string]time.Time
	// Done says that nothing of the pod will ever run again by its restart policies.
	Done bool
}

// Start is a container to start.
type Start struct {
	Container *corev1.Container
	Kind      spec.Kind
	Attempt   uint32
}

// Stop is a running container to stop.
type Stop struct {
	Container *Container
	Reason    string // for the log
	Message   string // of the event Killing
	Probe     string // which probe asked for it, with its own grace period
}

// restarts reports whether the container runs again after it ended with the exit code.
func restarts(pod *corev1.Pod, c *corev1.Container, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action == corev1.ContainerRestartRuleActionRestart
		}
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// initRestarts is restarts for an ordinary init container, which never runs again after success.
func initRestarts(pod *corev1.Pod, c *corev1.Container, code int32) bool {
	return code != 0 && restarts(pod, c, code)
}

// Decide returns what should happen next to a pod that is not terminating.
func Decide(f Facts) Plan {
	p := Plan{Waiting: map[string]time.Time{}}
	sandbox := f.View.Sandbox()
	if doneForever(f) {
		p.Done = true
		return p
	}
	if f.View.Ready() == nil || len(f.View.Sandboxes) > 1 && f.View.Sandboxes[1].State == runtimeapi.PodSandboxState_SANDBOX_READY {
		p.NewSandbox = true
		if sandbox != nil {
			p.Attempt = sandbox.GetMetadata().GetAttempt() + 1
		}
		for _, c := range f.View.Alive() {
			p.Stop = append(p.Stop, Stop{Container: c, Reason: "sandbox changed", Message: "Stopping container " + c.Metadata.Name})
		}
		return p
	}
	d := decision{Facts: f, plan: &p, sandbox: sandbox.Id}
	d.ephemeral()
	if !d.initContainers() {
		return p
	}
	for i := range f.Pod.Spec.Containers {
		if !d.main(&f.Pod.Spec.Containers[i]) {
			break
		}
	}
	return p
}

// doneForever reports whether every container has ended for good, or an init container failed for good.
func doneForever(f Facts) bool {
	for i := range f.Pod.Spec.InitContainers {
		c := &f.Pod.Spec.InitContainers[i]
		s := f.View.Latest(c.Name)
		if !api.Sidecar(c) && s.Exited() && s.ExitCode != 0 && !initRestarts(f.Pod, c, s.ExitCode) && !begun(f, "") {
			return true
		}
	}
	for i := range f.Pod.Spec.Containers {
		c := &f.Pod.Spec.Containers[i]
		if s := f.View.Latest(c.Name); !s.Exited() || restarts(f.Pod, c, s.ExitCode) || f.Again[s.Id] {
			return false
		}
	}
	return true
}

// begun reports whether a main container was ever made in the sandbox ("": in any), which is after all init containers.
func begun(f Facts, sandbox string) bool {
	for i := range f.Pod.Spec.Containers {
		for _, c := range f.View.Containers[f.Pod.Spec.Containers[i].Name] {
			if sandbox == "" || c.Sandbox == sandbox {
				return true
			}
		}
	}
	return false
}

// decision is a Plan in the making for the ready sandbox.
type decision struct {
	Facts
	plan    *Plan
	sandbox string
}

// here returns the newest container of the name if it is in the sandbox.
func (d *decision) here(name string) *Container {
	if c := d.View.Latest(name); c != nil && c.Sandbox == d.sandbox {
		return c
	}
	return nil
}

// start plans a start of c, after its latest run.
func (d *decision) start(c *corev1.Container, k spec.Kind) {
	attempt := uint32(0)
	if last := d.View.Latest(c.Name); last != nil {
		attempt = last.Metadata.Attempt + 1
		if last.State == runtimeapi.ContainerState_CONTAINER_CREATED {
			d.plan.Discard = append(d.plan.Discard, last.Id)
			attempt = last.Metadata.Attempt
		}
	}
	d.plan.Start = append(d.plan.Start, Start{c, k, attempt})
}

// again plans another run of a container that has ended, when its time has come.
func (d *decision) again(c *corev1.Container, k spec.Kind, ended *Container) {
	if d.Again[ended.Id] {
		d.start(c, k)
		return
	}
	if until := d.Until(c, ended); d.Now.Before(until) {
		d.plan.Waiting[c.Name] = until
		return
	}
	d.start(c, k)
}

// running checks a running container; it plans its stop when it must not go on.
func (d *decision) running(c *corev1.Container, s *Container) (h Health, goesOn bool) {
	h = d.Health(s.Id)
	stop := Stop{Container: s}
	switch {
	case !spec.SameHash(s.Annotations[spec.HashAnnotation], c):
		stop.Reason = "definition changed"
		stop.Message = fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)
	case d.Again[s.Id]:
		stop.Reason = "resized"
		stop.Message = fmt.Sprintf("Container %s resize requires restart", c.Name)
	case h.Failed != "":
		stop.Reason, stop.Message = "postStart hook failed", "FailedPostStartHook"
	case h.Unwell != "":
		stop.Reason, stop.Probe = h.Unwell+" probe failed", h.Unwell
		stop.Message = fmt.Sprintf("Container %s failed %s probe, will be restarted", c.Name, h.Unwell)
	default:
		return h, true
	}
	d.plan.Stop = append(d.plan.Stop, stop)
	return h, false
}

func (d *decision) ephemeral() {
	for i := range d.Pod.Spec.EphemeralContainers {
		c := corev1.Container(d.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		// They run once, also over a change of the sandbox.
		if last := d.View.Latest(c.Name); last == nil || last.State == runtimeapi.ContainerState_CONTAINER_CREATED {
			d.start(&c, spec.Ephemeral)
		}
	}
}

// initContainers goes through the init containers and reports whether the main ones may run.
func (d *decision) initContainers() bool {
	begun := begun(d.Facts, d.sandbox)
	for i := range d.Pod.Spec.InitContainers {
		c := &d.Pod.Spec.InitContainers[i]
		next := false
		if api.Sidecar(c) {
			next = d.sidecar(c)
		} else {
			next = begun || d.ordinaryInit(c)
		}
		if !next && !begun {
			return false
		}
	}
	return true
}

// ordinaryInit reports whether the init container has succeeded.
func (d *decision) ordinaryInit(c *corev1.Container) bool {
	s := d.here(c.Name)
	switch {
	case s.Running():
		d.running(c, s)
	case s.Exited() && s.ExitCode == 0:
		return true
	case s.Exited():
		if initRestarts(d.Pod, c, s.ExitCode) {
			d.again(c, spec.Init, s)
		}
	case s != nil && s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		d.plan.Stop = append(d.plan.Stop, unknown(s))
	default:
		d.start(c, spec.Init)
	}
	return false
}

// sidecar reports whether the restartable init container has started, so that the next may.
func (d *decision) sidecar(c *corev1.Container) bool {
	s := d.here(c.Name)
	switch {
	case s.Running():
		h, goesOn := d.running(c, s)
		return goesOn && h.Started && !h.Starting
	case s.Exited():
		d.again(c, spec.Init, s)
	case s != nil && s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		d.plan.Stop = append(d.plan.Stop, unknown(s))
	default:
		d.start(c, spec.Init)
	}
	return false
}

// main goes on one main container and reports whether the next may start.
func (d *decision) main(c *corev1.Container) bool {
	s := d.here(c.Name)
	switch {
	case s.Running():
		h, _ := d.running(c, s)
		return !h.Starting
	case s.Exited():
		if restarts(d.Pod, c, s.ExitCode) || d.Again[s.Id] {
			d.again(c, spec.Main, s)
		}
	case s != nil && s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		d.plan.Stop = append(d.plan.Stop, unknown(s))
	default:
		// In a new sandbox, what has ended for good in the old one stays ended.
		if last := d.View.Latest(c.Name); !last.Exited() || restarts(d.Pod, c, last.ExitCode) {
			d.start(c, spec.Main)
		}
	}
	return true
}

func unknown(s *Container) Stop {
	return Stop{Container: s, Reason: "state is unknown",
		Message: "Container " + s.Metadata.Name + " is in unknown state, try killing it before restart"}
}
