package pod

import (
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Condition is a state of waiting, or of the whole pod, with its reason.
type Condition struct{ Reason, Message string }

// Situation is all that a status depends on.
type Situation struct {
	Pod     *corev1.Pod // with the status that the API has
	View    *View
	Health  func(containerID string) Health
	Waiting map[string]Condition // why a container does not run
	// Message returns the termination message of a container that has ended.
	Message func(c *Container) string
	// Verdict is set when the kubelet ended the pod against its will (Evicted, DeadlineExceeded, OutOfcpu).
	Verdict *Condition
	// Disrupted is set when it did so for the node's sake.
	Disrupted *Condition
	// Refused says that the verdict came before anything of the pod was made.
	Refused bool
	// Pending is why a resize waits, Resizing is set while one goes on; else they are nil.
	Pending, Resizing *Condition
	// Devices returns how the devices of a container are, nil where it has none; nil: no container has any.
	Devices func(container string) []corev1.ResourceStatus
	// Has reports whether a running container has the resources that its spec here gives it.
	Has func(*corev1.Container, *Container) bool
	// Resizes says that the pod's own group does not have the resources yet that its spec here gives it.
	Resizes bool
	Ended   bool // everything has ended and nothing will start again
	HostIPs []string
	Runtime string // prefix of container IDs
	Started time.Time
	Now     time.Time
}

// Status returns the pod's status. What others own in the old status (conditions, nominated node, claims) stays.
func Status(s Situation) corev1.PodStatus {
	old := &s.Pod.Status
	st := *old.DeepCopy()
	st.ObservedGeneration = s.Pod.Generation
	st.QOSClass = resources.QOS(s.Pod)
	st.HostIP, st.HostIPs = "", nil
	for i, ip := range s.HostIPs {
		if i == 0 {
			st.HostIP = ip
		}
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: ip})
	}
	if st.StartTime == nil && !s.Started.IsZero() {
		st.StartTime = &metav1.Time{Time: s.Started.Truncate(time.Second)}
	}
	s.addresses(&st)
	s.whole(&st)
	s.containers(&st)
	if s.Verdict != nil {
		st.Reason, st.Message = s.Verdict.Reason, s.Verdict.Message
	}
	st.Phase = s.phase(&st)
	s.conditions(&st)
	if s.Refused { // what its containers wait for would hide why
		st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses = nil, nil, nil
	}
	return st
}

func (s *Situation) addresses(st *corev1.PodStatus) {
	ips := s.View.IPs()
	if s.Pod.Spec.HostNetwork {
		ips = nil
		if s.View.Sandbox() != nil {
			ips = s.HostIPs
		}
	}
	if len(ips) == 0 {
		if s.View.Sandbox() == nil && !s.Ended {
			st.PodIP, st.PodIPs = "", nil
		}
		return // a pod that has ended keeps its last address
	}
	st.PodIP, st.PodIPs = ips[0], nil
	for _, ip := range ips {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip})
	}
}

// whole says what the node gives the pod, which the runtime's overhead is beside, and what of it the pod has as a whole.
func (s *Situation) whole(st *corev1.PodStatus) {
	if st.AllocatedResources, st.Resources = nil, nil; s.Refused {
		return
	}
	if l := resourcehelper.PodRequests(s.Pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true}); len(l) > 0 {
		st.AllocatedResources = l
	}
	if !resourcehelper.IsPodLevelResourcesSet(s.Pod) {
		return
	}
	if st.Resources = s.Pod.Spec.Resources.DeepCopy(); s.Resizes && s.Pod.Status.Resources != nil {
		st.Resources = s.Pod.Status.Resources.DeepCopy() // until it is resized
	}
}

func (s *Situation) containers(st *corev1.PodStatus) {
	st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses = nil, nil, nil
	initialized := true
	for i := range s.Pod.Spec.InitContainers {
		c := &s.Pod.Spec.InitContainers[i]
		cs := s.container(c, spec.Init, s.previous(s.Pod.Status.InitContainerStatuses, c.Name), "PodInitializing")
		if api.Sidecar(c) {
			initialized = initialized && cs.Started != nil && *cs.Started
		} else {
			initialized = initialized && cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
		}
		st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
	}
	reason := "ContainerCreating"
	if !initialized {
		reason = "PodInitializing"
	}
	for i := range s.Pod.Spec.Containers {
		c := &s.Pod.Spec.Containers[i]
		st.ContainerStatuses = append(st.ContainerStatuses, s.container(c, spec.Main, s.previous(s.Pod.Status.ContainerStatuses, c.Name), reason))
	}
	for i := range s.Pod.Spec.EphemeralContainers {
		c := corev1.Container(s.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses,
			s.container(&c, spec.Ephemeral, s.previous(s.Pod.Status.EphemeralContainerStatuses, c.Name), "ContainerCreating"))
	}
}

func (s *Situation) previous(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// container returns the status of one container. idle is why it waits when nothing better is known.
func (s *Situation) container(c *corev1.Container, kind spec.Kind, prev *corev1.ContainerStatus, idle string) corev1.ContainerStatus {
	cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	runs := s.View.Containers[c.Name]
	started := false
	cs.Started = &started
	if s.Devices != nil {
		cs.AllocatedResourcesStatus = s.Devices(c.Name)
	}
	if cs.AllocatedResourcesStatus == nil && prev != nil { // those of a pod that has ended are others' by now
		cs.AllocatedResourcesStatus = prev.AllocatedResourcesStatus
	}
	if len(runs) == 0 {
		cs.State.Waiting = waiting(s.Waiting, c.Name, idle)
		return cs
	}
	now := runs[0]
	s.identify(&cs, now, c)
	if len(runs) > 1 && runs[1].Exited() {
		cs.LastTerminationState.Terminated = s.terminated(runs[1])
	} else if prev != nil && prev.RestartCount == cs.RestartCount {
		cs.LastTerminationState = prev.LastTerminationState
	} else if prev != nil && prev.State.Terminated != nil && prev.RestartCount+1 == cs.RestartCount {
		cs.LastTerminationState.Terminated = prev.State.Terminated
	}
	switch {
	case now.Running():
		s.runningState(&cs, now, c, kind)
	case now.Exited():
		t := s.terminated(now)
		if w, ok := s.Waiting[c.Name]; ok && !s.Ended {
			cs.LastTerminationState.Terminated = t
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
			break
		}
		cs.State.Terminated = t
		cs.Ready = kind == spec.Init && !api.Sidecar(c) && t.ExitCode == 0
	default:
		cs.State.Waiting = waiting(s.Waiting, c.Name, idle)
	}
	return cs
}

func (s *Situation) runningState(cs *corev1.ContainerStatus, now *Container, c *corev1.Container, kind spec.Kind) {
	h := s.Health(now.Id)
	if h.Starting {
		cs.State.Waiting = waiting(s.Waiting, c.Name, "ContainerCreating")
		return
	}
	cs.State.Running = &corev1.ContainerStateRunning{StartedAt: stamp(now.StartedAt)}
	*cs.Started = h.Started
	cs.Ready = h.Ready && h.Started && (kind == spec.Main || api.Sidecar(c))
	if u := now.GetUser().GetLinux(); u != nil {
		cs.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
	}
	if len(c.Resources.Requests) > 0 {
		cs.AllocatedResources = c.Resources.Requests.DeepCopy()
	}
	cs.Resources = c.Resources.DeepCopy()
	if had := s.previous(slices.Concat(s.Pod.Status.ContainerStatuses, s.Pod.Status.InitContainerStatuses), c.Name); s.Has != nil && !s.Has(c, now) &&
		had != nil && had.Resources != nil {
		cs.Resources = had.Resources.DeepCopy() // until it is resized
	}
}

func waiting(known map[string]Condition, name, idle string) *corev1.ContainerStateWaiting {
	if w, ok := known[name]; ok {
		return &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
	}
	return &corev1.ContainerStateWaiting{Reason: idle}
}

func (s *Situation) identify(cs *corev1.ContainerStatus, now *Container, c *corev1.Container) {
	cs.RestartCount = int32(now.Metadata.GetAttempt())
	cs.ContainerID = s.Runtime + "://" + now.Id
	if image := now.GetImage(); image.GetUserSpecifiedImage() != "" {
		cs.Image = image.UserSpecifiedImage
	} else if name := image.GetImage(); name != "" && !strings.HasPrefix(name, "sha256:") {
		cs.Image = name
	}
	cs.ImageID = now.ImageRef
	if cs.ImageID == "" {
		cs.ImageID = now.ImageId
	}
	for _, m := range c.VolumeMounts {
		vm := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			for _, have := range now.Mounts {
				if have.ContainerPath == m.MountPath && have.RecursiveReadOnly {
					mode = corev1.RecursiveReadOnlyEnabled
				}
			}
			vm.RecursiveReadOnly = &mode
		}
		cs.VolumeMounts = append(cs.VolumeMounts, vm)
	}
}

func (s *Situation) terminated(c *Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.ContainerStatus.Message,
		StartedAt: stamp(c.StartedAt), FinishedAt: stamp(c.FinishedAt), ContainerID: s.Runtime + "://" + c.Id,
	}
	if t.Reason == "" {
		t.Reason = "Completed"
		if c.ExitCode != 0 {
			t.Reason = "Error"
		}
	}
	if m := s.Message(c); m != "" {
		t.Message = m
	}
	return t
}

// stamp converts the CRI's nanoseconds; the API's times have seconds.
func stamp(ns int64) metav1.Time {
	if ns <= 0 {
		return metav1.Time{}
	}
	return metav1.Time{Time: time.Unix(0, ns).Truncate(time.Second)}
}

// phase sums the containers up.
func (s *Situation) phase(st *corev1.PodStatus) corev1.PodPhase {
	if old := s.Pod.Status.Phase; old == corev1.PodFailed || old == corev1.PodSucceeded {
		return old // final
	}
	if s.Verdict != nil && s.Ended {
		return corev1.PodFailed
	}
	if s.Ended && s.Pod.DeletionTimestamp != nil {
		return endPhase(st)
	}
	pendingInit, failedInit, sidecarsRun := s.initPhase(st)
	if failedInit {
		if s.Ended {
			return corev1.PodFailed
		}
		return corev1.PodPending
	}
	if pendingInit {
		return corev1.PodPending
	}
	var waits, runs, stopped, again int
	for i := range st.ContainerStatuses {
		cs := &st.ContainerStatuses[i]
		c, _ := spec.Find(s.Pod, cs.Name)
		switch {
		case cs.State.Running != nil:
			runs++
		case cs.State.Terminated != nil:
			stopped++
			if restarts(s.Pod, c, cs.State.Terminated.ExitCode) {
				again++
			}
		case cs.LastTerminationState.Terminated != nil:
			stopped++
			again++
		default:
			waits++
		}
	}
	switch {
	case waits > 0:
		return corev1.PodPending
	case runs > 0, again > 0 && !s.Ended, sidecarsRun && !s.Ended, !s.Ended && stopped > 0 && len(s.View.Alive()) > 0:
		return corev1.PodRunning
	}
	return endPhase(st)
}

// endPhase is the phase of a pod whose main containers have all ended.
func endPhase(st *corev1.PodStatus) corev1.PodPhase {
	for _, cs := range st.ContainerStatuses {
		if cs.State.Terminated == nil || cs.State.Terminated.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

func (s *Situation) initPhase(st *corev1.PodStatus) (pending, failed, sidecarsRun bool) {
	begun := begun(Facts{Pod: s.Pod, View: s.View}, "")
	for i := range st.InitContainerStatuses {
		cs := &st.InitContainerStatuses[i]
		c, _ := spec.Find(s.Pod, cs.Name)
		if api.Sidecar(c) {
			sidecarsRun = sidecarsRun || cs.State.Running != nil
			pending = pending || !begun && (cs.Started == nil || !*cs.Started)
			continue
		}
		if begun {
			continue
		}
		switch t := cs.State.Terminated; {
		case t == nil:
			pending = true
		case t.ExitCode != 0 && initRestarts(s.Pod, c, t.ExitCode):
			pending = true
		case t.ExitCode != 0:
			failed = true
		}
	}
	return pending, failed, sidecarsRun
}

func (s *Situation) conditions(st *corev1.PodStatus) {
	done := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	s.set(st, corev1.PodReadyToStartContainers, s.View.Ready() != nil && (s.Pod.Spec.HostNetwork || len(s.View.IPs()) > 0) && !s.Ended, "", "")

	initialized, missing := true, []string{}
	for _, cs := range st.InitContainerStatuses {
		c, _ := spec.Find(s.Pod, cs.Name)
		ok := cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
		if api.Sidecar(c) {
			ok = cs.Started != nil && *cs.Started
		}
		if !ok && !begun(Facts{Pod: s.Pod, View: s.View}, "") {
			initialized = false
			missing = append(missing, cs.Name)
		}
	}
	switch {
	case st.Phase == corev1.PodSucceeded:
		s.set(st, corev1.PodInitialized, true, "PodCompleted", "")
	case initialized:
		s.set(st, corev1.PodInitialized, true, "", "")
	default:
		s.set(st, corev1.PodInitialized, false, "ContainersNotInitialized", "containers with incomplete status: ["+strings.Join(missing, " ")+"]")
	}

	var unready []string
	for _, cs := range st.InitContainerStatuses {
		if c, _ := spec.Find(s.Pod, cs.Name); api.Sidecar(c) && !cs.Ready {
			unready = append(unready, cs.Name)
		}
	}
	for _, cs := range st.ContainerStatuses {
		if !cs.Ready {
			unready = append(unready, cs.Name)
		}
	}
	reason, message := "", ""
	switch {
	case st.Phase == corev1.PodSucceeded:
		reason = "PodCompleted"
	case st.Phase == corev1.PodFailed:
		reason = "PodFailed"
	case len(unready) > 0:
		reason, message = "ContainersNotReady", "containers with unready status: ["+strings.Join(unready, " ")+"]"
	}
	ready := len(unready) == 0 && !done
	s.set(st, corev1.ContainersReady, ready, reason, message)
	if ready {
		if gates := s.closedGates(st); len(gates) > 0 {
			ready, reason, message = false, "ReadinessGatesNotReady", strings.Join(gates, ", ")
		}
	}
	s.set(st, corev1.PodReady, ready, reason, message)
	if s.Disrupted != nil {
		s.set(st, corev1.DisruptionTarget, true, s.Disrupted.Reason, s.Disrupted.Message)
	}
	s.passing(st, corev1.PodResizePending, s.Pending)
	s.passing(st, corev1.PodResizeInProgress, s.Resizing)
	sort.SliceStable(st.Conditions, func(i, j int) bool { return rank(st.Conditions[i].Type) < rank(st.Conditions[j].Type) })
}

// rank orders the conditions that upstream's kubelet writes first.
func rank(t corev1.PodConditionType) int {
	for i, own := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady,
		corev1.PodResizePending, corev1.PodResizeInProgress, corev1.PodScheduled} {
		if t == own {
			return i
		}
	}
	return 100
}

func (s *Situation) closedGates(st *corev1.PodStatus) (closed []string) {
	for _, g := range s.Pod.Spec.ReadinessGates {
		found, open := false, false
		for _, c := range st.Conditions {
			if c.Type == g.ConditionType {
				found, open = true, c.Status == corev1.ConditionTrue
			}
		}
		switch {
		case !found:
			closed = append(closed, `corresponding condition of pod readiness gate "`+string(g.ConditionType)+`" does not exist.`)
		case !open:
			closed = append(closed, `the status of pod readiness gate "`+string(g.ConditionType)+`" is not "True", but False`)
		}
	}
	return closed
}

// passing gives the status a condition that is there only while it is true.
func (s *Situation) passing(st *corev1.PodStatus, t corev1.PodConditionType, c *Condition) {
	if c != nil {
		s.set(st, t, true, c.Reason, c.Message)
		return
	}
	st.Conditions = slices.DeleteFunc(st.Conditions, func(have corev1.PodCondition) bool { return have.Type == t })
}

// set gives the status a condition; its transition time moves only when its truth changes.
func (s *Situation) set(st *corev1.PodStatus, t corev1.PodConditionType, truth bool, reason, message string) {
	status := corev1.ConditionFalse
	if truth {
		status = corev1.ConditionTrue
	}
	next := corev1.PodCondition{Type: t, Status: status, Reason: reason, Message: message,
		ObservedGeneration: s.Pod.Generation, LastTransitionTime: metav1.Time{Time: s.Now.Truncate(time.Second)}}
	for i := range st.Conditions {
		if c := &st.Conditions[i]; c.Type == t {
			if c.Status == status && !c.LastTransitionTime.IsZero() {
				next.LastTransitionTime = c.LastTransitionTime
			}
			*c = next
			return
		}
	}
	st.Conditions = append(st.Conditions, next)
}
