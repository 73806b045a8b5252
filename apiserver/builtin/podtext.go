package builtin

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/yare-dev/yare/api"
)

// The status column of `kubectl get pods`: one word for what holds the pod up, which people search for.

const nodeUnreachable = "NodeLost"

func fraction(n, of int) string { return strconv.Itoa(n) + "/" + strconv.Itoa(of) }

// podReady counts the containers and sidecars that are ready.
func podReady(p *corev1.Pod) string {
	ready, total := 0, len(p.Spec.Containers)
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; api.Sidecar(c) {
			sidecars[c.Name] = true
			total++
		}
	}
	for _, s := range p.Status.InitContainerStatuses {
		if sidecars[s.Name] && s.Started != nil && *s.Started && s.Ready {
			ready++
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.Ready && s.State.Running != nil {
			ready++
		}
	}
	return fraction(ready, total)
}

// podRestarts is the number of restarts and how long ago the last one was. While init containers run, it is theirs.
func podRestarts(p *corev1.Pod) string {
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		sidecars[p.Spec.InitContainers[i].Name] = api.Sidecar(&p.Spec.InitContainers[i])
	}
	initial, main := count{}, count{}
	for _, s := range p.Status.InitContainerStatuses {
		initial.add(s)
		if sidecars[s.Name] {
			main.add(s)
		}
	}
	if _, initializing := initReason(p); initializing {
		return initial.String()
	}
	for _, s := range p.Status.ContainerStatuses {
		main.add(s)
	}
	return main.String()
}

type count struct {
	n    int
	last time.Time
}

func (c *count) add(s corev1.ContainerStatus) {
	c.n += int(s.RestartCount)
	if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(c.last) {
		c.last = t.FinishedAt.Time
	}
}

func (c count) String() string {
	if c.n == 0 || c.last.IsZero() {
		return strconv.Itoa(c.n)
	}
	return fmt.Sprintf("%d (%s ago)", c.n, duration.HumanDuration(time.Since(c.last)))
}

func podReason(p *corev1.Pod) string {
	reason := string(p.Status.Phase)
	if p.Status.Reason != "" {
		reason = p.Status.Reason
	}
	if c := api.PodCondition(p, corev1.PodScheduled); c != nil && c.Reason == corev1.PodReasonSchedulingGated {
		reason = corev1.PodReasonSchedulingGated
	}
	initial, initializing := initReason(p)
	switch {
	case initializing:
		reason = initial
	default:
		reason = mainReason(p, reason)
	}
	if p.DeletionTimestamp == nil {
		return reason
	}
	switch {
	case p.Status.Reason == nodeUnreachable:
		return "Unknown"
	case p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded:
		return "Terminating"
	}
	return reason
}

// initReason is what the first init container that is not done does.
func initReason(p *corev1.Pod) (string, bool) {
	specs := map[string]*corev1.Container{}
	for i := range p.Spec.InitContainers {
		specs[p.Spec.InitContainers[i].Name] = &p.Spec.InitContainers[i]
	}
	for i, s := range p.Status.InitContainerStatuses {
		t, w := s.State.Terminated, s.State.Waiting
		spec := specs[s.Name]
		switch {
		case t != nil && t.ExitCode == 0:
			continue
		case spec != nil && api.Sidecar(spec) && s.Started != nil && *s.Started:
			continue
		case t != nil:
			return "Init:" + ended(t), true
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			return "Init:" + w.Reason, true
		default:
			return fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers)), true
		}
	}
	return "", false
}

func ended(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// mainReason is what the first container that waits or has ended says.
func mainReason(p *corev1.Pod, reason string) string {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		s := p.Status.ContainerStatuses[i]
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			reason = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			reason = ended(s.State.Terminated)
		case s.Ready && s.State.Running != nil:
			running = true
		}
	}
	// Some containers have completed and others run: the pod runs.
	if reason == "Completed" && running {
		if api.PodReady(p) {
			return "Running"
		}
		return "NotReady"
	}
	return reason
}
