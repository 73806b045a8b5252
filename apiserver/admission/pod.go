package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// classes are the priority classes that every cluster has. There is no kind for others in this release.
var classes = map[string]int32{"system-cluster-critical": 2000000000, "system-node-critical": 2000001000}

// priority resolves the name of a priority class to the number that scheduler and kubelet go by.
func priority() rest.Admission {
	return onMutate("Priority", func(_ context.Context, a *rest.Admitting) error {
		if a.Kind == api.PodKind && a.Operation == rest.OpUpdate && a.Sub == "" {
			// Clients that do not know the fields leave them out.
			now, old := a.Object.(*corev1.Pod), a.Old.(*corev1.Pod)
			if now.Spec.Priority == nil {
				now.Spec.Priority = old.Spec.Priority
			}
			if now.Spec.PreemptionPolicy == nil {
				now.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
			}
			return nil
		}
		pod := newPod(a)
		if pod == nil {
			return nil
		}
		value := int32(0)
		if name := pod.Spec.PriorityClassName; name != "" {
			v, ok := classes[name]
			if !ok {
				return forbidden(a, "no PriorityClass with name %v was found", name)
			}
			value = v
		}
		if p := pod.Spec.Priority; p != nil && *p != value {
			return forbidden(a, "the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, value)
		}
		policy := corev1.PreemptLowerPriority
		if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
			return forbidden(a, "the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy)
		}
		pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
		return nil
	})
}

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

// runtimeClass refuses pods that name a class: there is no kind for them in this release, so that none exists.
func runtimeClass() rest.Admission {
	return onValidate("RuntimeClass", func(_ context.Context, a *rest.Admitting) error {
		pod := newPod(a)
		if pod == nil {
			return nil
		}
		if name := pod.Spec.RuntimeClassName; name != nil {
			return forbidden(a, "pod rejected: RuntimeClass %q not found", *name)
		}
		if len(pod.Spec.Overhead) > 0 {
			return forbidden(a, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
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
