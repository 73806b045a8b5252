package nodelifecycle

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Upstream's figures: Nodes tainted NoExecute per second and zone, normally and in a partially disrupted zone of a large
// cluster; in a small one there are none then.
const (
	normalRate     = 0.1
	disruptedRate  = 0.01
	largeZone      = 50
	partialPercent = 55
)

// ready returns n's readiness; a Node that never reported is Unknown.
func ready(n *corev1.Node) corev1.ConditionStatus {
	if c := api.NodeCondition(n, corev1.NodeReady); c != nil {
		return c.Status
	}
	return corev1.ConditionUnknown
}

// unknown sets the conditions of a Node without heartbeat.
func unknown(n *corev1.Node, now time.Time) {
	for _, t := range []corev1.NodeConditionType{
		corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
	} {
		c := api.NodeCondition(n, t)
		if c == nil {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: metav1.NewTime(now)})
			continue
		}
		if c.Status != corev1.ConditionUnknown {
			c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			c.LastTransitionTime = metav1.NewTime(now)
		}
	}
}

// pressure maps conditions to the taints that they bring while they are true.
func pressure(t corev1.NodeConditionType) string {
	switch t {
	case corev1.NodeMemoryPressure:
		return corev1.TaintNodeMemoryPressure
	case corev1.NodeDiskPressure:
		return corev1.TaintNodeDiskPressure
	case corev1.NodePIDPressure:
		return corev1.TaintNodePIDPressure
	case corev1.NodeNetworkUnavailable:
		return corev1.TaintNodeNetworkUnavailable
	}
	return ""
}

// ours says whether this controller decides over the taint.
func ours(t corev1.Taint) bool {
	switch t.Key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable:
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	case corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeUnschedulable:
		return t.Effect == corev1.TaintEffectNoSchedule
	}
	return false
}

// health returns the taint key for n's readiness, empty when it is ready.
func health(n *corev1.Node) string {
	c := api.NodeCondition(n, corev1.NodeReady)
	switch {
	case c == nil: // it was admitted as not ready and has not reported yet
		return corev1.TaintNodeNotReady
	case c.Status == corev1.ConditionFalse:
		return corev1.TaintNodeNotReady
	case c.Status == corev1.ConditionUnknown:
		return corev1.TaintNodeUnreachable
	}
	return ""
}

// evicting says that n carries the NoExecute taint for its readiness already, or for the readiness that it had.
func evicting(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable) && t.Effect == corev1.TaintEffectNoExecute
	})
}

// taints returns what n's taints should be. Those that are there and right keep their place and time.
func taints(n *corev1.Node, evict bool, now time.Time) []corev1.Taint {
	type id struct {
		key    string
		effect corev1.TaintEffect
	}
	var want []id
	if key := health(n); key != "" {
		want = append(want, id{key, corev1.TaintEffectNoSchedule})
		if evict {
			want = append(want, id{key, corev1.TaintEffectNoExecute})
		}
	}
	for _, c := range n.Status.Conditions {
		if key := pressure(c.Type); key != "" && c.Status == corev1.ConditionTrue {
			want = append(want, id{key, corev1.TaintEffectNoSchedule})
		}
	}
	if n.Spec.Unschedulable {
		want = append(want, id{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule})
	}
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		at := slices.Index(want, id{t.Key, t.Effect})
		if at >= 0 {
			want = slices.Delete(want, at, at+1)
		} else if ours(t) {
			continue
		}
		out = append(out, t)
	}
	at := metav1.NewTime(now)
	for _, w := range want {
		out = append(out, corev1.Taint{Key: w.key, Effect: w.effect, TimeAdded: &at})
	}
	return out
}

func zone(n *corev1.Node) string {
	return n.Labels[corev1.LabelTopologyRegion] + "/" + n.Labels[corev1.LabelTopologyZone]
}

// evictionRate returns how many Nodes of n's zone may be tainted NoExecute per second, and whether every zone is
// fully disrupted.
func evictionRate(n *corev1.Node, all []*corev1.Node) (rate float64, allDisrupted bool) {
	total, healthy := 0, 0 // in n's zone
	allDisrupted = true
	for _, o := range all {
		ok := ready(o) == corev1.ConditionTrue
		if ok {
			allDisrupted = false
		}
		if zone(o) != zone(n) {
			continue
		}
		total++
		if ok {
			healthy++
		}
	}
	sick := total - healthy
	switch {
	case healthy == 0: // the zone as a whole is away: its pods belong elsewhere
		return normalRate, allDisrupted
	case sick > 2 && sick*100 >= total*partialPercent:
		if total > largeZone {
			return disruptedRate, allDisrupted
		}
		return 0, allDisrupted
	}
	return normalRate, allDisrupted
}
