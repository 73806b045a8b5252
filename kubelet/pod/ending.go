package pod

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
)

// ending is how a pod comes to its end. There is no way back.
type ending struct {
	grace time.Duration // for all containers together, preStop hooks included
	since time.Time
}

// left returns what remains of the grace period.
func (e *ending) left(now time.Time) time.Duration { return max(0, e.grace-now.Sub(e.since)) }

// decideEnding looks whether the pod must end, or end sooner than it is ending already.
func (w *worker) decideEnding(pod *corev1.Pod, v *View) {
	now := w.now()
	w.decideEviction(pod, v, now)
	grace := time.Duration(spec.Grace(pod)) * time.Second
	wanted := pod.DeletionTimestamp != nil && !w.static || w.isGone()
	if w.ending != nil {
		if wanted && grace < w.ending.grace {
			w.endWithin(grace, v, now)
		}
		return
	}
	if wanted || final(pod.Status.Phase) {
		w.ending = &ending{grace: grace, since: now}
		return
	}
	if s := pod.Spec.ActiveDeadlineSeconds; s != nil && pod.Status.StartTime != nil {
		until := pod.Status.StartTime.Add(time.Duration(*s) * time.Second)
		if now.Before(until) {
			w.at(until)
			return
		}
		w.verdict = &Condition{"DeadlineExceeded", "Pod was active on the node longer than the specified deadline"}
		w.say(pod, corev1.EventTypeNormal, "DeadlineExceeded", "%s", w.verdict.Message)
		w.ending = &ending{grace: grace, since: now}
	}
}

// endWithin ends the pod within grace, also one that is ending already.
func (w *worker) endWithin(grace time.Duration, v *View, now time.Time) {
	if w.ending != nil {
		for _, c := range v.Alive() {
			w.jobs.forget("kill " + c.Id)
		}
	}
	w.ending = &ending{grace: grace, since: now}
}

// end goes through the steps backward. When all is down the pod's last status is written and the pod is deleted from the
// API if someone asked for that; when the API has it no more, its traces are removed. It reports whether they are.
func (w *worker) end(ctx context.Context, pod *corev1.Pod, real, full *View) (finished bool) {
	if !w.settled {
		if !w.down(ctx, pod, real) {
			return false
		}
		w.settled = true
		w.mu.Lock()
		w.over = true
		if w.evicted != nil {
			w.evicted.end()
		}
		w.mu.Unlock()
		w.wakeDeferred()
	}
	if w.isGone() {
		return w.bury(ctx, pod, real)
	}
	if w.publish(ctx, pod, full) && pod.DeletionTimestamp != nil && !w.static {
		w.release(ctx, pod)
	}
	return false
}

func (w *worker) down(ctx context.Context, pod *corev1.Pod, v *View) bool {
	for _, s := range slices.Backward(w.steps()) {
		if until := w.retries.until("end " + s.name); w.now().Before(until) {
			w.at(until)
			return false
		}
		gone, err := s.down(ctx, pod, v)
		if err != nil {
			if ctx.Err() == nil {
				w.log.Warn("pod cannot end yet", "step", s.name, "err", err)
				w.at(w.retries.grow("end "+s.name, w.now()))
			}
			return false
		}
		if !gone { // what it has begun may fail yet
			return false
		}
		w.retries.reset("end " + s.name)
	}
	return true
}

// containersDown ends the containers: first all but the sidecars together, then the sidecars, last one first.
func (w *worker) containersDown(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	alive := v.Alive()
	if len(alive) == 0 {
		return true, nil
	}
	for _, c := range nextToEnd(pod, alive) {
		key := "kill " + c.Id
		exists, done, err := w.jobs.state(key)
		switch {
		case !exists:
			w.jobs.forget("stop " + c.Id)
			w.kill(ctx, pod, v, c, key)
		case done:
			w.jobs.forget(key)
			if err != nil {
				w.say(pod, corev1.EventTypeWarning, "FailedKillPod", "error killing pod: %s", message(err))
				return false, err
			}
			w.at(w.now().Add(time.Second)) // the runtime says that it ended, but still lists it
		}
	}
	return false, nil
}

func (w *worker) kill(ctx context.Context, pod *corev1.Pod, v *View, c *Container, key string) {
	of, _ := spec.Find(pod, c.Metadata.Name)
	grace := w.ending.left(w.now())
	if w.ending.grace > 0 {
		grace = max(grace, minGrace)
	}
	w.sayAt(pod, spec.Path(pod, c.Metadata.Name), corev1.EventTypeNormal, "Killing", "Stopping container %s", c.Metadata.Name)
	w.jobs.do(ctx, key, func(ctx context.Context) error { return w.stop(ctx, c, of, first(v.IPs()), grace) })
}

// nextToEnd returns which of the living containers end now.
func nextToEnd(pod *corev1.Pod, alive []*Container) []*Container {
	var now []*Container
	sidecars := map[string]*Container{}
	for _, c := range alive {
		if of, kind := spec.Find(pod, c.Metadata.Name); of != nil && kind == spec.Init && api.Sidecar(of) {
			sidecars[of.Name] = c
		} else {
			now = append(now, c)
		}
	}
	if len(now) > 0 {
		return now
	}
	for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
		if c := sidecars[pod.Spec.InitContainers[i].Name]; c != nil {
			return []*Container{c}
		}
	}
	return nil
}

// release deletes the pod from the API, now that nothing of it runs.
func (w *worker) release(ctx context.Context, pod *corev1.Pod) {
	exists, done, err := w.jobs.state("delete")
	switch {
	case !exists:
		w.jobs.do(ctx, "delete", func(ctx context.Context) error { return w.deletePod(ctx, pod) })
	case done && err != nil:
		w.jobs.forget("delete")
		w.log.Warn("pod cannot be deleted", "err", err)
		w.at(w.now().Add(time.Second))
	}
}

// deletePod deletes the pod from the API at once.
func (w *worker) deletePod(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	target := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
	err := w.Client.Delete(ctx, target, client.DeleteOptions{Grace: &now, AnyRevision: true})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another pod has its name by now
		return nil
	}
	return err
}

// bury removes what a pod that is gone from the API has left on the node.
func (w *worker) bury(ctx context.Context, pod *corev1.Pod, v *View) bool {
	for _, s := range v.Sandboxes {
		if _, err := w.cri.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return w.buryLater(ctx, fmt.Errorf("remove sandbox: %w", err))
		}
	}
	if err := w.removeGroup(pod); err != nil {
		return w.buryLater(ctx, err)
	}
	if err := os.RemoveAll(w.logDirectory(pod)); err != nil {
		return w.buryLater(ctx, fmt.Errorf("remove logs: %w", err))
	}
	return true
}

func (w *worker) buryLater(ctx context.Context, err error) bool {
	if ctx.Err() == nil {
		w.log.Warn("pod leaves traces", "err", err)
		w.at(w.retries.grow("bury", w.now()))
	}
	return false
}
