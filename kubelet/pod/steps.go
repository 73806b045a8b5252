package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/field"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/volume"
)

// step is one stage of a pod's life. up does what is missing and reports whether the next may follow; down undoes it, also
// where up never ran, and reports whether it is undone. Both are called again and again and never wait for long.
type step struct {
	name string
	up   func(ctx context.Context, pod *corev1.Pod, v *View) (next bool, err error)
	down func(ctx context.Context, pod *corev1.Pod, v *View) (gone bool, err error)
}

// steps is a pod's life: up in this order, down in reverse. plan is made anew between sandbox and containers.
func (w *worker) steps() []step {
	nothing := func(context.Context, *corev1.Pod, *View) (bool, error) { return true, nil }
	return []step{
		{"admit", w.admitUp, nothing},
		{"devices", w.devicesUp, w.devicesDown},
		{"allocate", w.allocateUp, nothing},
		{"folders", w.foldersUp, w.foldersDown},
		{"cgroup", w.cgroupUp, w.cgroupDown},
		{"volumes", w.volumesUp, w.volumesDown},
		{"claims", w.claimsUp, w.claimsDown},
		{"sandbox", w.sandboxUp, w.sandboxDown},
		{"resources", w.resourcesUp, nothing},
		{"containers", w.containersUp, w.containersDown},
	}
}

// up goes through the steps until one says that it has to wait, or fails and is tried again later.
func (w *worker) up(ctx context.Context, pod *corev1.Pod, v *View) {
	for _, s := range w.steps() {
		if until := w.retries.until(s.name); w.now().Before(until) {
			w.at(until)
			return
		}
		next, err := s.up(ctx, pod, v)
		if err != nil {
			if ctx.Err() == nil {
				w.log.Warn("pod is held up", "step", s.name, "err", err)
				w.at(w.retries.grow(s.name, w.now()))
			}
			return
		}
		if !next { // what it has begun may fail yet
			return
		}
		w.retries.reset(s.name)
	}
}

// admitUp refuses the pod where the node cannot take it. What already runs is not asked again.
func (w *worker) admitUp(_ context.Context, pod *corev1.Pod, v *View) (bool, error) {
	w.mu.Lock()
	admitted := w.admitted
	w.mu.Unlock()
	switch {
	case admitted:
		return true, nil
	case !w.static && !w.isSynced():
		return false, nil
	}
	if v.Sandbox() != nil {
		w.noteAdmitted(allocationShown(pod))
	} else if refused := w.Pods.admit(pod); refused != nil {
		w.refuse(pod, refused)
		return false, nil
	}
	if w.started = w.now(); pod.Status.StartTime != nil {
		w.started = pod.Status.StartTime.Time
	}
	return true, nil
}

// refuse ends a pod of which nothing was made yet.
func (w *worker) refuse(pod *corev1.Pod, why *Condition) {
	w.verdict, w.refused = why, true
	w.say(pod, corev1.EventTypeWarning, why.Reason, "%s", why.Message)
	w.ending = &ending{grace: 0, since: w.now()}
	w.moved = true
}

func (w *worker) logDirectory(pod *corev1.Pod) string {
	return spec.LogDirectory(w.config.Node.LogRoot, pod)
}

func (w *worker) foldersUp(_ context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	for _, dir := range []string{w.Volumes.PodDir(pod.UID), w.logDirectory(pod)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, fmt.Errorf("make folder: %w", err)
		}
	}
	return true, nil
}

// foldersDown waits for drivers to take their volumes back, beside the worker: they are still mounting where a pod ends early.
func (w *worker) foldersDown(ctx context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	if !w.jobs.stop(mountJob) {
		return false, nil
	}
	const unmountJob = "unmount"
	if exists, _, _ := w.jobs.state(unmountJob); !exists { // else it has unmounted by now, and may still be removing
		if slow, err := w.Volumes.Slow(pod.UID); err != nil || !slow {
			return true, errors.Join(err, w.Volumes.Down(ctx, pod.UID))
		}
	}
	done, err := w.jobs.do(ctx, unmountJob, func(ctx context.Context) error { return w.Volumes.Down(ctx, pod.UID) })
	if done {
		w.jobs.forget(unmountJob)
	}
	return done, err
}

func (w *worker) cgroupUp(_ context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	if w.cgroup != "" {
		return true, nil
	}
	path, limits := resources.Parent(w.config.Node.CgroupRoot, pod), resources.PodLimits(pod, w.config.Node.Host)
	if err := w.Groups.Ensure(path, limits); err != nil {
		return false, err
	}
	w.cgroup, w.limits = path, limits
	return true, nil
}

// cgroupDown lets a group be that is still in use: bury tries again and insists.
func (w *worker) cgroupDown(_ context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	if err := w.removeGroup(pod); err != nil {
		w.log.Debug("cgroup stays for now", "err", err)
	}
	return true, nil
}

func (w *worker) removeGroup(pod *corev1.Pod) error {
	if err := w.Groups.Remove(resources.Parent(w.config.Node.CgroupRoot, pod)); err != nil {
		return err
	}
	w.cgroup = ""
	return nil
}

// volumesUp makes volumes and brings their files up to date, as often as it is called.
func (w *worker) volumesUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	w.refs.set(pod.UID, referencesOf(pod, w.config.Node.Name))
	again, err := w.Volumes.Up(ctx, pod, w.source(ctx, pod), w.fields(pod, v))
	w.at(again)
	mounted, mountErr := w.mount(ctx, pod)
	if err = errors.Join(err, mountErr); err == nil {
		return mounted, nil
	}
	for _, one := range unjoin(err) {
		var bad *volume.Error
		if errors.As(one, &bad) {
			w.say(pod, corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for volume %q : %v", bad.Volume, bad.Err)
		}
	}
	if v.Ready() != nil && (len(v.Alive()) > 0 || w.Volumes.Mounted(pod)) {
		// The sandbox was made after the volumes: a file that cannot be brought up to date stops neither what runs nor what is to run again.
		w.log.Warn("volumes are not up to date", "err", err)
		w.at(w.now().Add(30 * time.Second))
		return true, nil
	}
	return false, err
}

// mountJob is the job that brings up the pod's volumes of claims and drivers.
const mountJob = "mount"

// attachStep is the name under which a pod waits for volumes to be attached.
const attachStep = "attach"

// mount has the pod's volumes of claims and drivers brought up, and looked after, beside the worker. It reports whether all are up.
func (w *worker) mount(ctx context.Context, pod *corev1.Pod) (bool, error) {
	exists, done, err := w.jobs.state(mountJob)
	switch {
	case exists && !done:
		return w.Volumes.Mounted(pod), nil
	case done:
		w.jobs.forget(mountJob)
	}
	if err != nil && !slices.ContainsFunc(unjoin(err), func(e error) bool { return !errors.Is(e, volume.ErrWaiting) }) {
		w.log.Debug("volumes are not attached yet", "err", err)
		w.at(w.retries.grow(attachStep, w.now())) // the Node tells too, but what it tells of may be seen a moment after it
		return false, nil
	}
	if err != nil {
		return false, err
	}
	next := w.Volumes.Next(pod)
	if next.After(w.now()) || next.IsZero() {
		w.retries.reset(attachStep)
		w.at(next)
		return true, nil
	}
	w.jobs.do(ctx, mountJob, func(ctx context.Context) error { return w.Volumes.Mount(ctx, pod, w.source(ctx, pod)) })
	return w.Volumes.Mounted(pod), nil
}

// unjoin returns the errors that were joined.
func unjoin(err error) (all []error) {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			all = append(all, unjoin(e)...)
		}
		return all
	}
	return []error{err}
}

func (w *worker) volumesDown(_ context.Context, pod *corev1.Pod, _ *View) (bool, error) {
	w.refs.set(pod.UID, nil)
	return true, nil // their folders go with the pod's
}

func (w *worker) fields(pod *corev1.Pod, v *View) field.Runtime {
	rt := field.Runtime{HostIPs: w.HostIPs(), PodIPs: v.IPs(), NodeName: w.config.Node.Name}
	if pod.Spec.HostNetwork {
		rt.PodIPs = rt.HostIPs
	}
	if n := w.Node(); n != nil {
		rt.Allocatable = n.Status.Allocatable
	}
	return rt
}

// sandboxUp makes the sandbox, or a new one in place of one that has failed.
func (w *worker) sandboxUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	plan := w.decide(pod, v)
	if plan.Done {
		w.ending = &ending{grace: time.Duration(spec.Grace(pod)) * time.Second, since: w.now()}
		w.moved = true
		return false, nil
	}
	if !plan.NewSandbox {
		return true, nil
	}
	if len(plan.Stop) > 0 {
		w.stopAll(ctx, pod, v, plan.Stop)
		return false, nil
	}
	for _, s := range v.Sandboxes {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			w.say(pod, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
		}
		// Also what is not ready: it may still hold an address.
		if _, err := w.cri.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return false, fmt.Errorf("stop old sandbox: %w", err)
		}
	}
	dns, warning := spec.PodDNS(pod, w.DNS())
	if warning != "" && !w.exposed[warning] {
		w.exposed[warning] = true
		w.say(pod, corev1.EventTypeWarning, "DNSConfigForming", "%s", warning)
	}
	var config *runtimeapi.PodSandboxConfig
	handler, err := w.handler(ctx, pod)
	var users *runtimeapi.UserNamespace
	if err == nil {
		users, err = w.users(pod, handler)
	}
	if err == nil {
		config, err = spec.Sandbox(w.withGroups(pod), plan.Attempt, dns, users, w.config.Node)
	}
	if err == nil {
		_, err = w.cri.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	}
	if err != nil {
		if ctx.Err() == nil {
			w.say(pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %s", message(err))
		}
		return false, fmt.Errorf("run sandbox: %w", err)
	}
	w.moved = true
	return false, nil
}

// handler is the runtime's that the pod's RuntimeClass names; "" is the runtime's own choice.
func (w *worker) handler(ctx context.Context, pod *corev1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	class, err := client.Get[*nodev1.RuntimeClass](ctx, w.Client, api.Key{Name: *name})
	if err != nil {
		return "", fmt.Errorf("RuntimeClass %q: %w", *name, err)
	}
	return class.Handler, nil
}

// users returns the pod's user namespace, nil where it has the host's.
func (w *worker) users(pod *corev1.Pod, handler string) (*runtimeapi.UserNamespace, error) {
	switch own := pod.Spec.HostUsers; {
	case own == nil || *own:
		return nil, nil
	case w.config.Users == nil || !w.config.Handlers[handler].GetUserNamespaces():
		return nil, errors.New("spec.hostUsers false: the runtime does not support user namespaces on this node")
	}
	return w.config.Users.Of(pod.UID)
}

func (w *worker) sandboxDown(ctx context.Context, _ *corev1.Pod, v *View) (bool, error) {
	for _, s := range v.Sandboxes {
		if s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		if _, err := w.cri.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return false, fmt.Errorf("stop sandbox: %w", err)
		}
		w.moved = true
	}
	return !w.moved, nil
}

func (w *worker) decide(pod *corev1.Pod, v *View) Plan {
	return Decide(Facts{Pod: pod, View: v, Now: w.now(), Health: w.health, Again: w.again, Until: func(c *corev1.Container, ended *Container) time.Time {
		return w.crashes.next(c.Name, ended)
	}})
}

// containersUp starts and stops what the plan says.
func (w *worker) containersUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	plan := w.decide(pod, v)
	for _, id := range plan.Discard {
		if _, err := w.cri.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			return false, fmt.Errorf("remove container that was never started: %w", err)
		}
	}
	w.stopAll(ctx, pod, v, plan.Stop)
	for name, until := range plan.Waiting {
		w.at(until)
		text := fmt.Sprintf("back-off %v restarting failed container=%s pod=%s_%s(%s)", w.crashes.wait(name), name, pod.Name, pod.Namespace, pod.UID)
		if have := w.waiting[name]; have == nil || have.Message != text {
			w.sayAt(pod, spec.Path(pod, name), corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", name, pod.Name, pod.Namespace, pod.UID)
		}
		w.waiting[name] = &Condition{"CrashLoopBackOff", text}
	}
	blocked := false
	for _, s := range plan.Start {
		started, wait := w.startContainer(ctx, pod, v, s, blocked)
		blocked = blocked || wait
		w.moved = w.moved || started
		if started && s.Container.Lifecycle != nil && s.Container.Lifecycle.PostStart != nil {
			break
		}
	}
	if !w.moved {
		w.tidy(ctx, pod, v)
	}
	return true, nil
}

// withGroups returns the pod with the groups of its volumes beside its own.
func (w *worker) withGroups(pod *corev1.Pod) *corev1.Pod {
	groups := w.Volumes.Groups(pod)
	if len(groups) == 0 {
		return pod
	}
	in, security := *pod, corev1.PodSecurityContext{}
	if pod.Spec.SecurityContext != nil {
		security = *pod.Spec.SecurityContext
	}
	security.SupplementalGroups = slices.Clone(security.SupplementalGroups)
	for _, g := range groups {
		if !slices.Contains(security.SupplementalGroups, g) {
			security.SupplementalGroups = append(security.SupplementalGroups, g)
		}
	}
	in.Spec.SecurityContext = &security
	return &in
}

// isConfigError reports whether the error is the pod's or that of what it names, not the node's.
func isConfigError(err error) bool {
	var c spec.ConfigError
	return errors.As(err, &c) || apierrors.IsNotFound(err)
}
