package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

const (
	reasonEvicted  = "Evicted"
	evictedGrace   = time.Second // what containers of an evicted pod get, upstream's
	systemPriority = 2000000000  // that of system-cluster-critical, the lowest of pods that are not evicted
)

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
	if isStatic(pod) || pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded ||
		pod.Spec.Priority != nil && *pod.Spec.Priority >= systemPriority {
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

// Exceeded says, in upstream's words, which limit the pod exceeds by what it has written; "" for none.
func Exceeded(pod *corev1.Pod, w Written) string {
	var sum int64
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		used := w.Volumes[v.Name]
		if sum += used; !OnDisk(v) {
			continue
		}
		if l := v.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 && l.CmpInt64(used) < 0 {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, l.String())
		}
	}
	for _, used := range w.Containers {
		sum += used
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if l, ok := limits[corev1.ResourceEphemeralStorage]; ok && l.CmpInt64(sum) < 0 {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", l.String())
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if l := c.Resources.Limits.StorageEphemeral(); !l.IsZero() && l.CmpInt64(w.Containers[c.Name]) < 0 {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, l.String())
		}
	}
	return ""
}

// Evict ends the pod, which has failed by what message says.
func (p *Pods) Evict(uid types.UID, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[uid]; w != nil {
		w.setEvicted(message)
	}
}
