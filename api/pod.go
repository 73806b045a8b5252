package api

import (
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
)

// PodCondition returns the pod's condition of that type, nil if it has none. It is shared like p.
func PodCondition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// SetPodCondition puts c in the place of the condition of its type. Where that has the same status, its transition time
// stays.
func SetPodCondition(s *corev1.PodStatus, c corev1.PodCondition) {
	for i := range s.Conditions {
		if old := &s.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

// Sidecar says whether the init container c runs beside the pod's containers rather than before them.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// PodReady says whether the pod's Ready condition is true.
func PodReady(p *corev1.Pod) bool {
	c := PodCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Extended says whether a resource is one that a device plugin or a class of devices brings: an extended resource, or the name that each DeviceClass
// has as one (KEP-5004).
func Extended(name corev1.ResourceName) bool {
	s := string(name)
	return strings.HasPrefix(s, resourcev1.ResourceDeviceClassPrefix) || strings.Contains(s, "/") && !strings.Contains(s, corev1.ResourceDefaultNamespacePrefix) &&
		!strings.HasPrefix(s, corev1.DefaultResourceRequestsPrefix)
}

// PodTerminal says that no container of the pod will run any more: it succeeded or failed.
func PodTerminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodActive says that the pod is neither terminal nor being deleted.
func PodActive(p *corev1.Pod) bool { return !PodTerminal(p) && p.DeletionTimestamp == nil }

// PodAvailable says whether the pod has been ready for at least minReady at now. If not yet, left is
// how long it takes until it is if nothing changes; zero when it is not ready at all.
func PodAvailable(p *corev1.Pod, minReady time.Duration, now time.Time) (available bool, left time.Duration) {
	c := PodCondition(p, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, 0
	}
	if minReady == 0 {
		return true, 0
	}
	if c.LastTransitionTime.IsZero() {
		return false, minReady
	}
	if left = minReady - now.Sub(c.LastTransitionTime.Time); left > 0 {
		return false, left
	}
	return true, 0
}

// Tolerates says whether one of the tolerations matches the taint.
func Tolerates(ts []corev1.Toleration, taint *corev1.Taint) bool {
	return Toleration(ts, taint) != nil
}

// Toleration returns the first of ts that matches the taint, nil if none does.
func Toleration(ts []corev1.Toleration, taint *corev1.Taint) *corev1.Toleration {
	for i := range ts {
		if toleration(&ts[i], taint) {
			return &ts[i]
		}
	}
	return nil
}

func toleration(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect {
		return false
	}
	if t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", corev1.TolerationOpEqual:
		return t.Value == taint.Value
	case corev1.TolerationOpExists:
		return true
	case corev1.TolerationOpLt, corev1.TolerationOpGt:
		bound, err := strconv.ParseInt(t.Value, 10, 64)
		if err != nil {
			return false
		}
		value, err := strconv.ParseInt(taint.Value, 10, 64)
		if err != nil {
			return false
		}
		if t.Operator == corev1.TolerationOpLt {
			return value < bound
		}
		return value > bound
	}
	return false
}
