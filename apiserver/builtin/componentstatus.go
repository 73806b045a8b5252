package builtin

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
)

// componentStatuses tell how the components that upstream names are, as far as they are of this process: the kind is
// deprecated, and /readyz says more.
func componentStatuses(h *run.Health) *rest.Resource[*corev1.ComponentStatus] {
	type component = *corev1.ComponentStatus
	healthy := func(c component) corev1.ComponentCondition {
		for _, cond := range c.Conditions {
			if cond.Type == corev1.ComponentHealthy {
				return cond
			}
		}
		return corev1.ComponentCondition{}
	}
	return &rest.Resource[component]{
		Made:       func(context.Context, rest.Wanted) []component { return components(h) },
		Deprecated: "v1 ComponentStatus is deprecated in v1.19+",
		Columns: []rest.Column[component]{
			{Name: "Status", Description: "Status of the component conditions", Cell: func(c component) any {
				switch healthy(c).Status {
				case corev1.ConditionTrue:
					return "Healthy"
				case "":
					return "Unknown"
				}
				return "Unhealthy"
			}},
			{Name: "Message", Description: "Message of the component conditions", Cell: func(c component) any { return healthy(c).Message }},
			{Name: "Error", Description: "Error of the component conditions", Cell: func(c component) any { return healthy(c).Error }},
		},
	}
}

func components(h *run.Health) (all []*corev1.ComponentStatus) {
	ready := map[string]bool{}
	if h != nil {
		for _, c := range h.Checks() {
			ready[c.Name] = c.Ready
		}
	}
	for _, c := range []struct{ name, ours string }{{"controller-manager", "controllers"}, {"etcd-0", "etcd"}, {"scheduler", "scheduler"}} {
		cond := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
		switch up, here := ready[c.ours]; {
		case !here:
			cond.Status, cond.Message, cond.Error = corev1.ConditionUnknown, "", "not a component of this process"
		case !up:
			cond.Status, cond.Message, cond.Error = corev1.ConditionFalse, "", "not ready"
		}
		all = append(all, &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: c.name}, Conditions: []corev1.ComponentCondition{cond}})
	}
	return all
}
