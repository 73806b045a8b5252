package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

// A running pod is resized in place (KEP-1287, as a whole KEP-5419) in two steps. First the node gives room: what a pod and its containers
// were given is its allocation, which the worker sees in place of what the spec wants. Then the cgroups of the pod and of its running
// containers follow the allocation; a container whose resizePolicy says so is restarted instead. The allocation outlives the
// kubelet in the status of the pod: what its status, or a container's, shows is what it has.

// allocation is the resources that each container of a pod was given, by name, and the pod as a whole, where it has any.
type allocation map[string]corev1.ResourceRequirements

// whole is the name of the pod in its allocation.
const whole = ""

// allocationOf returns what the pod's spec wants.
func allocationOf(pod *corev1.Pod) allocation {
	a := allocation{}
	spec.Each(pod, func(c *corev1.Container, k spec.Kind) {
		if k != spec.Ephemeral {
			a[c.Name] = c.Resources
		}
	})
	if r := pod.Spec.Resources; r != nil {
		a[whole] = *r
	}
	return a
}

// allocationShown returns what the pod had before the kubelet was restarted: what the status shows, else what the spec wants.
func allocationShown(pod *corev1.Pod) allocation {
	a := allocationOf(pod)
	if r := pod.Status.Resources; r != nil {
		a[whole] = *r
	} else if len(pod.Status.AllocatedResources) > 0 {
		delete(a, whole) // which the spec has got since
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if _, ok := a[list[i].Name]; ok && list[i].Resources != nil {
				a[list[i].Name] = *list[i].Resources
			}
		}
	}
	return a
}

// over returns the pod with the allocation in place of what its spec wants. The pod itself is not changed.
func (a allocation) over(pod *corev1.Pod) *corev1.Pod {
	if a == nil || equality.Semantic.DeepEqual(a, allocationOf(pod)) {
		return pod
	}
	given := *pod
	given.Spec.Resources = nil
	if r, ok := a[whole]; ok {
		given.Spec.Resources = &r
	}
	given.Spec.InitContainers, given.Spec.Containers = slices.Clone(pod.Spec.InitContainers), slices.Clone(pod.Spec.Containers)
	for _, list := range [][]corev1.Container{given.Spec.InitContainers, given.Spec.Containers} {
		for i := range list {
			if r, ok := a[list[i].Name]; ok {
				list[i].Resources = r
			}
		}
	}
	return &given
}

// Resize returns why the node does not give the pod the room that its spec wants now: Infeasible when it never can,
// Deferred when it may once others have left. others are the admitted pods without this one.
func Resize(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *Condition {
	if node == nil {
		return &Condition{corev1.PodReasonDeferred, "the node is not registered yet"}
	}
	wants := resources.Requests(pod)
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		want, capacity := wants[name], node.Status.Allocatable[name]
		if want.Cmp(capacity) > 0 && !want.IsZero() && len(node.Status.Allocatable) > 0 {
			return &Condition{corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d",
				name, units(name, want), units(name, capacity))}
		}
	}
	if name, text := lacking(wants, node, others); name != "" {
		return &Condition{corev1.PodReasonDeferred, text}
	}
	return nil
}

// allocateUp gives the pod the room that its spec wants now, if the node has it; else it goes on with what it had.
func (w *worker) allocateUp(_ context.Context, _ *corev1.Pod, v *View) (bool, error) {
	w.mu.Lock()
	wanted, given := w.pod, w.given
	w.mu.Unlock()
	if w.static || equality.Semantic.DeepEqual(given, allocationOf(wanted)) {
		w.pending(nil)
		return true, nil
	}
	refused := unreported(v)
	if refused == nil {
		refused = w.Pods.resize(w, wanted)
	}
	if refused != nil {
		if w.pending(refused) {
			w.say(wanted, corev1.EventTypeWarning, "Resize"+refused.Reason, "%s", resizeText("Pod resize "+refused.Reason, wanted, refused.Message))
		}
		return true, nil
	}
	w.pending(nil)
	w.resizing = &Condition{}
	spec.Each(wanted, func(c *corev1.Container, _ spec.Kind) {
		// Also for a change that no cgroup shows.
		if now := v.Latest(c.Name); now.Running() && needsRestart(c, given[c.Name]) {
			w.again[now.Id] = true
		}
	})
	w.say(wanted, corev1.EventTypeNormal, "ResizeStarted", "%s", resizeText("Pod resize started", wanted, ""))
	w.moved = true
	return false, nil
}

// unreported refuses to resize under a runtime that does not say what resources its containers have.
func unreported(v *View) *Condition {
	for _, c := range v.Alive() {
		if c.Running() && c.Resources.GetLinux() == nil {
			return &Condition{corev1.PodReasonInfeasible, "the container runtime does not report the resources of containers"}
		}
	}
	return nil
}

// pending notes why a resize waits and reports whether that is news.
func (w *worker) pending(c *Condition) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := c != nil && (w.deferred == nil || *w.deferred != *c)
	w.deferred = c
	return news
}

// resize decides about a resize, one at a time, as admit decides about pods.
func (p *Pods) resize(w *worker, wanted *corev1.Pod) *Condition {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused := Resize(wanted, p.Node(), p.others(wanted.UID))
	if refused == nil {
		w.noteAdmitted(allocationOf(wanted))
	}
	return refused
}

// wakeDeferred lets resizes that wait for room be looked at again.
func (p *Pods) wakeDeferred() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.mu.Lock()
		waits := w.deferred != nil
		w.mu.Unlock()
		if waits {
			w.poke()
		}
	}
}

// resourcesUp brings the cgroups of the pod and of what runs to the allocation, and notes what is restarted for that. The pod's group keeps
// the room that those have until they have ended. What cannot be done now is tried again, and does not hold up the rest of the pod.
func (w *worker) resourcesUp(ctx context.Context, pod *corev1.Pod, v *View) (bool, error) {
	if until := w.retries.until("resize"); w.now().Before(until) {
		w.at(until)
		return true, nil
	}
	limits := resources.PodLimits(pod, w.config.Node.Host)
	changes, restart := resizes(pod, v, w.config.Node.Host)
	maps.DeleteFunc(w.again, func(id string, _ bool) bool { return !latest(v, id) })
	for _, id := range restart {
		w.again[id] = true
	}
	if len(restart) > 0 {
		limits = limits.Widest(w.limits)
	}
	done := len(changes) == 0 && limits.Equal(w.limits)
	if w.resizing == nil && (!done || len(restart) > 0) {
		w.resizing = &Condition{}
	}
	if done {
		w.completed(pod)
		return true, nil
	}
	if err := w.actuate(ctx, pod, v, limits, changes); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		failed := &Condition{corev1.PodReasonError, message(err)}
		if *w.resizing != *failed {
			w.say(pod, corev1.EventTypeWarning, "ResizeError", "%s", resizeText("Pod resize error", pod, failed.Message))
		}
		w.resizing = failed
		w.at(w.retries.grow("resize", w.now()))
		return true, nil
	}
	w.retries.reset("resize")
	w.moved = true
	return false, nil
}

// completed ends a resize whose last container has followed.
func (w *worker) completed(pod *corev1.Pod) {
	if w.resizing == nil || len(w.again) > 0 {
		return
	}
	w.resizing = nil
	w.say(pod, corev1.EventTypeNormal, "ResizeCompleted", "%s", resizeText("Pod resize completed", pod, ""))
	w.wakeDeferred()
}

// actuate widens the pod's group, changes the containers, those first that become smaller, and then narrows the pod's group.
func (w *worker) actuate(ctx context.Context, pod *corev1.Pod, v *View, limits resources.Limits, changes []change) error {
	for _, c := range changes {
		if err := w.roomy(ctx, c); err != nil {
			return err
		}
	}
	if err := w.roomyPod(ctx, v, limits); err != nil {
		return err
	}
	if err := w.setGroup(pod, limits.Widest(w.limits)); err != nil {
		return err
	}
	for _, c := range changes {
		if _, err := w.cri.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.now.Id, Linux: c.want}); err != nil {
			return fmt.Errorf("resize container %s: %w", c.now.Metadata.GetName(), err)
		}
		w.viewer.forget(c.now.Id)
	}
	if err := w.setGroup(pod, limits); err != nil {
		return err
	}
	w.tellRuntime(ctx, pod, v)
	return nil
}

// tellRuntime tells the container runtime what the pod has been given as a whole, which its sandbox may have to follow in ways of its own. That it does
// not, or does not know the call, is no failure of the resize.
func (w *worker) tellRuntime(ctx context.Context, pod *corev1.Pod, v *View) {
	sandbox := v.Ready()
	if sandbox == nil {
		return
	}
	_, err := w.cri.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sandbox.Id,
		Overhead: spec.Overhead(pod), Resources: spec.Resources(pod, w.config.Node)})
	if err != nil && status.Code(err) != codes.Unimplemented {
		w.log.Warn("container runtime does not follow the pod's resize", "err", err)
	}
}

// roomy refuses a memory limit below what the container uses now: the kernel would end it, or not take the limit.
func (w *worker) roomy(ctx context.Context, c change) error {
	is, want := c.now.Resources.GetLinux().GetMemoryLimitInBytes(), c.want.MemoryLimitInBytes
	if want == 0 || is != 0 && want >= is {
		return nil
	}
	got, err := w.cri.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.now.Id})
	if err != nil {
		return fmt.Errorf("read memory usage of container %s: %w", c.now.Metadata.GetName(), err)
	}
	if used := got.GetStats().GetMemory().GetUsageBytes().GetValue(); used >= uint64(want) {
		return fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", c.now.Metadata.GetName(), want, used)
	}
	return nil
}

// roomyPod is roomy for the pod's own group.
func (w *worker) roomyPod(ctx context.Context, v *View, limits resources.Limits) error {
	is, want, sandbox := w.limits.Memory, limits.Memory, v.Ready()
	if want == 0 || is != 0 && want >= is || sandbox == nil {
		return nil
	}
	got, err := w.cri.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandbox.Id})
	if err != nil {
		return fmt.Errorf("read memory usage of the pod: %w", err)
	}
	if used := got.GetStats().GetLinux().GetMemory().GetUsageBytes().GetValue(); used >= uint64(want) {
		return fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", want, used)
	}
	return nil
}

func (w *worker) setGroup(pod *corev1.Pod, l resources.Limits) error {
	if l.Equal(w.limits) {
		return nil
	}
	if err := w.Groups.Ensure(resources.Parent(w.config.Node.CgroupRoot, pod), l); err != nil {
		return err
	}
	w.limits = l
	return nil
}

// change is a running container whose resources are not those of its allocation.
type change struct {
	now  *Container
	want *runtimeapi.LinuxContainerResources
}

// resizes returns the running containers that do not have their allocation: those that are changed, first which become smaller in memory,
// and the IDs of those that are restarted instead.
func resizes(pod *corev1.Pod, v *View, h resources.Host) (changes []change, restart []string) {
	spec.Each(pod, func(c *corev1.Container, k spec.Kind) {
		now := v.Latest(c.Name)
		if k == spec.Ephemeral || !now.Running() {
			return
		}
		want := resources.Container(pod, c, h)
		switch cpu, memory := resources.Differ(now.Resources.GetLinux(), want); {
		case cpu && restartsFor(c, corev1.ResourceCPU), memory && restartsFor(c, corev1.ResourceMemory):
			restart = append(restart, now.Id)
		case cpu, memory:
			changes = append(changes, change{now, want})
		}
	})
	slices.SortStableFunc(changes, func(a, b change) int {
		grows := func(c change) int64 {
			return c.want.MemoryLimitInBytes - c.now.Resources.GetLinux().GetMemoryLimitInBytes()
		}
		return int(min(max(grows(a)-grows(b), -1), 1))
	})
	return changes, restart
}

// restartsFor reports whether the container is to be restarted when the resource changes.
func restartsFor(c *corev1.Container, name corev1.ResourceName) bool {
	return slices.Contains(c.ResizePolicy, corev1.ContainerResizePolicy{ResourceName: name, RestartPolicy: corev1.RestartContainer})
}

// needsRestart reports whether the container is to be restarted to come from what it had to what it wants.
func needsRestart(c *corev1.Container, had corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, request := c.Resources.Limits[name], c.Resources.Requests[name]
		if restartsFor(c, name) && (limit.Cmp(had.Limits[name]) != 0 || request.Cmp(had.Requests[name]) != 0) {
			return true
		}
	}
	return false
}

// latest reports whether the container of the ID is the newest of its name.
func latest(v *View, id string) bool {
	for _, runs := range v.Containers {
		if runs[0].Id == id {
			return true
		}
	}
	return false
}

// resizeText is an event's message: what happens, and all resources of the pod as JSON, as upstream's kubelet has it.
func resizeText(what string, pod *corev1.Pod, failure string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	var all struct {
		Resources      *corev1.ResourceRequirements `json:"resources,omitempty"` // which upstream's kubelet leaves out as yet
		InitContainers []container                  `json:"initContainers,omitempty"`
		Containers     []container                  `json:"containers"`
		Generation     int64                        `json:"generation"`
		Error          string                       `json:"error,omitempty"`
	}
	all.Resources, all.Generation, all.Error = pod.Spec.Resources, pod.Generation, failure
	for _, c := range pod.Spec.InitContainers {
		all.InitContainers = append(all.InitContainers, container{c.Name, c.Resources})
	}
	for _, c := range pod.Spec.Containers {
		all.Containers = append(all.Containers, container{c.Name, c.Resources})
	}
	b, err := json.Marshal(all)
	return what + ": " + errors.Join(err, errors.New(string(b))).Error()
}
