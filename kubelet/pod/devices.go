package pod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/kubelet/spec"
)

// noDevices is a node on which there are none.
type noDevices struct{}

func (noDevices) Owns(corev1.ResourceName) bool                                     { return false }
func (noDevices) Missing(*corev1.Pod) bool                                          { return false }
func (noDevices) Allocate(context.Context, *corev1.Pod) (string, error)             { return "", nil }
func (noDevices) Prepares(types.UID, string) bool                                   { return false }
func (noDevices) Prepare(context.Context, types.UID, string) error                  { return nil }
func (noDevices) Additions(*corev1.Pod, *corev1.Container) (*spec.Additions, error) { return nil, nil }
func (noDevices) Health(types.UID, string) []corev1.ResourceStatus                  { return nil }
func (noDevices) Free(types.UID) error                                              { return nil }

// devicesJob is the job that has devices allocated.
const devicesJob = "devices"

// devicesUp has plugins give the pod its devices, beside the worker, before anything of it is made. What already runs is left as it is.
func (w *worker) devicesUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	exists, done, err := w.jobs.state(devicesJob)
	switch {
	case exists && !done:
		return false, nil
	case !exists:
		if !w.Devices.Missing(pod) || len(v.Alive()) > 0 {
			return true, nil
		}
		w.jobs.do(ctx, devicesJob, func(ctx context.Context) error {
			wait, err := w.Devices.Allocate(ctx, pod)
			if err != nil || wait == "" {
				return err
			}
			return waitingFor(wait)
		})
		return false, nil
	}
	w.jobs.forget(devicesJob)
	if waits, ok := err.(waitingFor); ok {
		if text := string(waits); ctx.Err() == nil && !w.exposed[text] {
			w.exposed[text] = true
			w.say(pod, corev1.EventTypeWarning, "WaitingForDevices", "Pod waits: %s", text)
		}
		return false, waits
	}
	if err != nil {
		refused := &Condition{"UnexpectedAdmissionError", "Pod was rejected: Allocate failed due to " + err.Error() + ", which is unexpected"}
		w.refuse(pod, refused)
		return false, nil
	}
	return true, nil
}

// waitingFor is what devices wait for.
type waitingFor string

func (w waitingFor) Error() string { return string(w) }

// devicesDown takes the pod's devices back: nothing of it runs any more.
func (w *worker) devicesDown(_ context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	if !w.jobs.stop(devicesJob) {
		return false, nil
	}
	return true, w.Devices.Free(pod.UID)
}

// prepareDevices has plugins prepare the container's devices for its next start, beside the worker, where they want that. It reports whether the
// container may be made now.
func (w *worker) prepareDevices(ctx context.Context, pod *corev1.Pod, container string) (bool, error) {
	if !w.Devices.Prepares(pod.UID, container) {
		return true, nil
	}
	key := "prepare " + container
	done, err := w.jobs.do(ctx, key, func(ctx context.Context) error { return w.Devices.Prepare(ctx, pod.UID, container) })
	if done {
		w.jobs.forget(key) // each start wants it anew
	}
	return done, err
}
