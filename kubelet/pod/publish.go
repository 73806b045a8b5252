package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/logs"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

const (
	maxMessage   = 4096 // bytes of a termination message
	maxLogLines  = 80   // of a log that stands in for one
	maxLogBytes  = 2048
	writeRetries = 5
)

// errNoPod says that the pod is gone from the API, of which the watch will tell.
var errNoPod = errors.New("there is no such pod any more")

// publish writes the pod's status unless the API has it already, which it reports. One write runs at a time; what
// changes meanwhile is in the next.
func (w *worker) publish(ctx context.Context, pod *corev1.Pod, v *View) (written bool) {
	target := w.shown()
	if target == nil {
		return false // the mirror of a static pod is not there yet
	}
	if w.settled && closed(&target.Status) {
		return true
	}
	status := Status(w.situation(pod, v))
	if w.static && final(target.Status.Phase) && !final(status.Phase) {
		w.outlived(ctx, target)
		return false
	}
	if exists, done, err := w.jobs.state("status"); exists {
		if !done {
			return false
		}
		w.jobs.forget("status")
		if err != nil {
			if !errors.Is(err, errNoPod) {
				w.log.Warn("status is not written", "err", err)
			}
			w.rewrite = w.now().Add(time.Second)
		}
	}
	if equality.Semantic.DeepEqual(status, target.Status) {
		return true
	}
	if w.now().Before(w.rewrite) {
		w.at(w.rewrite)
		return false
	}
	w.jobs.do(ctx, "status", func(ctx context.Context) error { return w.write(ctx, target, status) })
	return false
}

// shown returns the newest form of the pod that the API shows, nil where there is none.
func (w *worker) shown() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	shown := w.pod
	if w.static {
		shown = w.mirror
	}
	if shown != nil && w.written != nil && w.written.UID == shown.UID && api.RevisionOf(w.written) > api.RevisionOf(shown) {
		return w.written
	}
	return shown
}

// final reports whether a pod of that phase has ended for good.
func final(p corev1.PodPhase) bool { return p == corev1.PodFailed || p == corev1.PodSucceeded }

// closed reports whether a status is final in all its parts, so that nothing need be added.
func closed(s *corev1.PodStatus) bool {
	if !final(s.Phase) {
		return false
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				return false
			}
		}
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return true
}

func (w *worker) situation(pod *corev1.Pod, v *View) Situation {
	s := Situation{
		Pod: pod, View: v, Health: w.health, Waiting: map[string]Condition{}, Verdict: w.verdict, Refused: w.refused, Disrupted: w.disrupted, Ended: w.settled,
		Message: func(c *Container) string { return w.messages[c.Id] },
		HostIPs: w.HostIPs(), Runtime: w.config.RuntimeName, Started: w.started, Now: w.now(), Resizing: w.resizing,
		Devices: func(container string) []corev1.ResourceStatus {
			if w.ending != nil && hasClaims(pod) && !w.Claims.Holds(w.uid) {
				return nil // what it had is others' by now
			}
			return append(w.Devices.Health(w.uid, container), w.Claims.Health(pod, container)...)
		},
		Has: func(c *corev1.Container, now *Container) bool {
			cpu, memory := resources.Differ(now.Resources.GetLinux(), resources.Container(pod, c, w.config.Node.Host))
			return !cpu && !memory
		},
	}
	s.Resizes = w.cgroup != "" && !resources.PodLimits(pod, w.config.Node.Host).Equal(w.limits)
	w.mu.Lock()
	s.Pending = w.deferred
	w.mu.Unlock()
	for name, c := range w.waiting {
		if c == nil {
			continue
		}
		// A container that runs waits for nothing.
		if !v.Latest(name).Running() {
			s.Waiting[name] = *c
		}
	}
	return s
}

// outlived deletes a mirror that says that the static pod, which lives again, has ended: another is made then.
func (w *worker) outlived(ctx context.Context, mirror *corev1.Pod) {
	key := "delete mirror " + string(mirror.UID)
	if done, err := w.jobs.do(ctx, key, func(ctx context.Context) error { return w.deletePod(ctx, mirror) }); done && err != nil {
		w.jobs.forget(key)
		w.log.Warn("mirror of an earlier life stays", "err", err)
		w.at(w.now().Add(time.Second))
	}
}

// write stores the status in the API's pod. Conditions that are not the kubelet's stay as they are there.
func (w *worker) write(ctx context.Context, target *corev1.Pod, status corev1.PodStatus) error {
	for try := range writeRetries {
		if try > 0 {
			fresh, err := client.Get[*corev1.Pod](ctx, w.Client, api.KeyOf(target))
			if apierrors.IsNotFound(err) || err == nil && fresh.UID != target.UID {
				return errNoPod
			}
			if err != nil {
				return fmt.Errorf("get pod: %w", err)
			}
			target = fresh
		}
		got, err := client.Mutate(ctx, w.Client, target, "status", func(p *corev1.Pod) {
			theirs := p.Status
			p.Status = *status.DeepCopy()
			p.Status.Conditions = mergeConditions(theirs.Conditions, p.Status.Conditions)
			p.Status.NominatedNodeName, p.Status.ResourceClaimStatuses = theirs.NominatedNodeName, theirs.ResourceClaimStatuses
		})
		switch {
		case err == nil:
			w.mu.Lock()
			w.written = got
			w.mu.Unlock()
			return nil
		case apierrors.IsNotFound(err):
			return errNoPod
		case !apierrors.IsConflict(err):
			return fmt.Errorf("write status: %w", err)
		}
	}
	return fmt.Errorf("write status: somebody else keeps changing it")
}

// mergeConditions takes the kubelet's conditions from ours and the rest from theirs. Others disrupt pods too: that is the kubelet's where
// it says so.
func mergeConditions(theirs, ours []corev1.PodCondition) []corev1.PodCondition {
	var out, last []corev1.PodCondition
	for _, c := range ours {
		switch {
		case rank(c.Type) < rank(corev1.PodScheduled):
			out = append(out, c)
		case c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet:
			last = append(last, c)
		}
	}
	for _, c := range theirs {
		if rank(c.Type) >= rank(corev1.PodScheduled) && (c.Type != corev1.DisruptionTarget || len(last) == 0) {
			out = append(out, c)
		}
	}
	return append(out, last...)
}

// readMessages reads what containers left when they ended, once, before their folders go.
func (w *worker) readMessages(pod *corev1.Pod, v *View) {
	for name, runs := range v.Containers {
		for i, run := range runs {
			if _, known := w.messages[run.Id]; known || i > 1 || !run.Exited() || run.Sandbox == "" {
				continue
			}
			w.messages[run.Id] = w.terminationMessage(pod, name, run)
		}
	}
}

func (w *worker) terminationMessage(pod *corev1.Pod, name string, run *Container) string {
	if f, err := os.Open(w.messageFile(pod, name, run.Metadata.Attempt)); err == nil {
		b, err := io.ReadAll(io.LimitReader(f, maxMessage))
		f.Close()
		if err == nil && len(b) > 0 {
			return string(b)
		}
	}
	policy := corev1.TerminationMessagePolicy(run.Annotations[spec.MessagePolicyAnnotation])
	if policy != corev1.TerminationMessageFallbackToLogsOnError || run.ExitCode == 0 || run.LogPath == "" {
		return ""
	}
	return logs.LastText(run.LogPath, maxLogLines, maxLogBytes)
}
