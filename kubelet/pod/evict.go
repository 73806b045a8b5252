package pod

import (
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

const (
	reasonEvicted  = "Evicted"
	systemPriority = 2000000000 // that of system-cluster-critical, the lowest of pods that are not evicted
)

// EvictedGrace is what containers of a pod get that is evicted for a limit of its own, upstream's.
const EvictedGrace = time.Second

// Written is what a pod has written to disk, in bytes: to its volumes, and by its containers (their layers and logs), by name.
type Written struct {
	Volumes, Containers map[string]int64
}

// OnDisk reports whether the volume is an emptyDir on disk.
func OnDisk(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault
}

// StorageLimits says what of a pod is limited: one of its volumes, or what all of it writes. Neither is of a pod that has ended or is about
// to, or that is too important to be evicted.
func StorageLimits(pod *corev1.Pod) (volumes, whole bool) {
	if critical(pod) || pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return false, false
	}
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; OnDisk(v) && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() > 0 {
			volumes = true
		}
	}
	_, whole = resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	return volumes, whole
}

// Exceeded says, in upstream's words, which limit the pod exceeds by what it has written, and what metrics call that; "" for none.
func Exceeded(pod *corev1.Pod, w Written) (message, limit string) {
	var sum int64
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		used := w.Volumes[v.Name]
		if sum += used; !OnDisk(v) {
			continue
		}
		if l := v.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 && l.CmpInt64(used) < 0 {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, l.String()), "emptydirfs.limit"
		}
	}
	for _, used := range w.Containers {
		sum += used
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if l, ok := limits[corev1.ResourceEphemeralStorage]; ok && l.CmpInt64(sum) < 0 {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", l.String()), "ephemeralpodfs.limit"
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if l := c.Resources.Limits.StorageEphemeral(); !l.IsZero() && l.CmpInt64(w.Containers[c.Name]) < 0 {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, l.String()), "ephemeralcontainerfs.limit"
		}
	}
	return "", ""
}

// Eviction is why and how a pod is evicted.
type Eviction struct {
	Message     string
	Grace       time.Duration     // that its containers get
	Annotations map[string]string // of the Event
	// Pressure says that it goes for the node's sake, not for a limit of its own.
	Pressure bool
}

// eviction is one under way.
type eviction struct {
	Eviction
	resumed bool          // it was begun, and told of, by the kubelet before this one
	ended   chan struct{} // closed when nothing of the pod runs any more
	end     func()
}

func newEviction(e Eviction) *eviction {
	ended := make(chan struct{})
	return &eviction{Eviction: e, ended: ended, end: sync.OnceFunc(func() { close(ended) })}
}

// evictedBefore returns the eviction that the kubelet before this one had begun, which the pod's status tells of: what was to end is
// not started again.
func evictedBefore(pod *corev1.Pod) *eviction {
	if pod.Status.Reason != reasonEvicted || !admittedBefore(pod) {
		return nil
	}
	e := newEviction(Eviction{Message: pod.Status.Message, Grace: time.Duration(spec.Grace(pod)) * time.Second})
	e.resumed = true
	return e
}

// Evict ends the pod, which has failed by what e says. What it returns is closed when the pod has ended; it is nil when there is
// no such pod, or it has ended or is being evicted.
func (p *Pods) Evict(uid types.UID, e Eviction) (ended <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[uid]; w != nil {
		return w.evict(e)
	}
	return nil
}

func (w *worker) evict(e Eviction) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.evicted != nil || w.over {
		return nil
	}
	w.evicted = newEviction(e)
	w.poke()
	return w.evicted.ended
}

// Evictable returns the pods that take room of the node and may be evicted: not those that have ended or are being evicted, nor static ones and
// those with a system priority.
func (p *Pods) Evictable() (pods []*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.mu.Lock()
		evicted := w.evicted != nil
		w.mu.Unlock()
		if pod := w.current(); !evicted && w.takesRoom() && !critical(pod) {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return api.KeyOf(a).Compare(api.KeyOf(b)) })
	return pods
}

// critical reports whether the node does without much before it does without the pod.
func critical(pod *corev1.Pod) bool {
	return isStatic(pod) || pod.Spec.Priority != nil && *pod.Spec.Priority >= systemPriority
}

// decideEviction ends the pod if it is to be evicted, sooner where it is ending already.
func (w *worker) decideEviction(pod *corev1.Pod, v *View, now time.Time) {
	w.mu.Lock()
	e := w.evicted
	w.mu.Unlock()
	if e == nil || w.noticed || w.settled || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return
	}
	w.noticed = true
	if w.verdict == nil {
		w.verdict = &Condition{reasonEvicted, e.Message}
	}
	if e.Pressure {
		w.disrupted = &Condition{corev1.PodReasonTerminationByKubelet, e.Message}
	}
	if !e.resumed {
		w.Events.Annotated(pod, e.Annotations, corev1.EventTypeWarning, reasonEvicted, e.Message)
	}
	if w.ending == nil || e.Grace < w.ending.left(now) {
		w.endWithin(e.Grace, v, now)
	}
}

// AdmitUnderPressure decides whether a node with conditions of pressure takes the pod; nil says yes. One that lacks memory alone takes pods that
// have requested something, and those that tolerate its taint; one that lacks anything else takes none but critical ones.
func AdmitUnderPressure(pod *corev1.Pod, pressure []corev1.NodeConditionType) *Condition {
	if len(pressure) == 0 || critical(pod) {
		return nil
	}
	if len(pressure) == 1 && pressure[0] == corev1.NodeMemoryPressure {
		taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
		if resources.QOS(pod) != corev1.PodQOSBestEffort ||
			slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, taint) }) {
			return nil
		}
	}
	return &Condition{reasonEvicted, fmt.Sprintf("Pod was rejected: The node had condition: %v. ", pressure)}
}
