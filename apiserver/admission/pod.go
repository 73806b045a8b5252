package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// tolerationSeconds is for how long a pod stays on a node that is not ready or cannot be reached.
const tolerationSeconds int64 = 300

func defaultTolerationSeconds() rest.Admission {
	return onMutate("DefaultTolerationSeconds", func(_ context.Context, a *rest.Admitting) error {
		if a.Kind != api.PodKind || a.Sub != "" || a.Operation != rest.OpCreate && a.Operation != rest.OpUpdate {
			return nil
		}
		pod := a.Object.(*corev1.Pod)
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			tolerated := false
			for _, t := range pod.Spec.Tolerations {
				tolerated = tolerated || (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
			}
			if !tolerated {
				seconds := tolerationSeconds
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists,
					Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
			}
		}
		return nil
	})
}

// taintNodesByCondition keeps pods off a new node until it is ready.
func taintNodesByCondition() rest.Admission {
	return onMutate("TaintNodesByCondition", func(_ context.Context, a *rest.Admitting) error {
		if a.Kind != api.NodeKind || a.Sub != "" || a.Operation != rest.OpCreate {
			return nil
		}
		node := a.Object.(*corev1.Node)
		taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
		for _, t := range node.Spec.Taints {
			if t.Key == taint.Key && t.Effect == taint.Effect {
				return nil
			}
		}
		node.Spec.Taints = append(node.Spec.Taints, taint)
		return nil
	})
}
