package pod

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/spec"
)

// Claims gives pods what their ResourceClaims were allocated; dra.Set does.
type Claims interface {
	// Ready reports whether all that the pod claims is prepared; Prepare has drivers prepare it.
	Ready(*corev1.Pod) bool
	Prepare(context.Context, *corev1.Pod) error
	// Devices returns a container's CDI devices.
	Devices(*corev1.Pod, *corev1.Container) ([]*runtimeapi.CDIDevice, error)
	Health(pod *corev1.Pod, container string) []corev1.ResourceStatus
	// Holds reports whether the pod has something that Release gives back.
	Holds(types.UID) bool
	Release(context.Context, types.UID) error
	// Waits returns what keeps the pod in Prepare or Release for longer than usual, in words.
	Waits(types.UID) []string
}

// noClaims is a node on which no driver serves any.
type noClaims struct{}

func (noClaims) Ready(p *corev1.Pod) bool { return !hasClaims(p) }
func (noClaims) Prepare(context.Context, *corev1.Pod) error {
	return errors.New("this node serves no resource claims")
}
func (noClaims) Devices(*corev1.Pod, *corev1.Container) ([]*runtimeapi.CDIDevice, error) {
	return nil, nil
}
func (noClaims) Health(*corev1.Pod, string) []corev1.ResourceStatus { return nil }
func (noClaims) Waits(types.UID) []string                           { return nil }
func (noClaims) Holds(types.UID) bool                               { return false }
func (noClaims) Release(context.Context, types.UID) error           { return nil }

// hasClaims says whether p asks for devices, or got a claim for its extended resources.
func hasClaims(p *corev1.Pod) bool {
	return len(p.Spec.ResourceClaims) > 0 || p.Status.ExtendedResourceClaimStatus != nil
}

// The jobs that have drivers prepare what the pod claims, and take it back.
const (
	prepareJob = "prepare claims"
	releaseJob = "release claims"
)

// claimsUp has drivers prepare what the pod claims, beside the worker, before there is a sandbox. What already runs is left as it is.
func (w *worker) claimsUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	exists, done, err := w.jobs.state(prepareJob)
	switch {
	case exists && !done:
		w.tellWaits(pod, "FailedPrepareDynamicResources")
		return false, nil
	case !exists:
		if w.Claims.Ready(pod) || len(v.Alive()) > 0 {
			return true, nil
		}
		w.at(w.now().Add(look))
		w.jobs.do(ctx, prepareJob, func(ctx context.Context) error { return w.Claims.Prepare(ctx, pod) })
		return false, nil
	}
	w.jobs.forget(prepareJob)
	if err != nil && ctx.Err() == nil {
		w.say(pod, corev1.EventTypeWarning, "FailedPrepareDynamicResources", "Failed to prepare dynamic resources: %s", text(err))
	}
	return err == nil, err
}

// look is how often a worker looks for what its pod waits for while drivers are called.
const look = time.Second

// tellWaits says in an event for what the pod waits, once for each thing: a driver that hangs is seen before its call is given up.
func (w *worker) tellWaits(pod *corev1.Pod, reason string) {
	w.at(w.now().Add(look))
	for _, what := range w.Claims.Waits(pod.UID) {
		if !w.exposed[what] {
			w.exposed[what] = true
			w.say(pod, corev1.EventTypeWarning, reason, "Pod waits: %s", what)
		}
	}
}

// claimsDown has drivers take back what the pod claimed: nothing of it runs any more. A call that prepares is waited for, not given up: the driver
// might go on with it, and have the last word.
func (w *worker) claimsDown(ctx context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	if exists, done, _ := w.jobs.state(prepareJob); exists && !done {
		w.tellWaits(pod, "FailedPrepareDynamicResources")
		return false, nil
	}
	if exists, _, _ := w.jobs.state(releaseJob); !exists && !w.Claims.Holds(pod.UID) {
		return true, nil
	}
	done, err := w.jobs.do(ctx, releaseJob, func(ctx context.Context) error { return w.Claims.Release(ctx, pod.UID) })
	if done {
		w.jobs.forget(releaseJob)
	} else {
		w.tellWaits(pod, "FailedUnprepareDynamicResources")
	}
	if err != nil && ctx.Err() == nil {
		w.say(pod, corev1.EventTypeWarning, "FailedUnprepareDynamicResources", "Failed to unprepare dynamic resources: %s", text(err))
	}
	return done, err
}

// withClaims returns what the container gets for its device plugins' devices with what it gets for its claims.
func (w *worker) withClaims(pod *corev1.Pod, c *corev1.Container, own *spec.Additions) (*spec.Additions, error) {
	devices, err := w.Claims.Devices(pod, c)
	if err != nil || len(devices) == 0 {
		return own, err
	}
	if own == nil {
		own = &spec.Additions{}
	}
	for _, d := range devices {
		if !slices.ContainsFunc(own.CDI, func(o *runtimeapi.CDIDevice) bool { return o.Name == d.Name }) {
			own.CDI = append(own.CDI, d)
		}
	}
	return own, nil
}
