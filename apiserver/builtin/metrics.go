package builtin

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/usage"
)

// metrics are the kinds of metrics.k8s.io, none where nobody knows what is used. A server of the user's own takes their place when
// its APIService says so.
func metrics(r *usage.Reader) []rest.Any {
	if r == nil {
		return nil
	}
	type (
		node = *metricsv1beta1.NodeMetrics
		pod  = *metricsv1beta1.PodMetrics
	)
	return []rest.Any{
		rest.Register(api.NodeMetricsKind, &rest.Resource[node]{
			Made:    r.Nodes,
			Columns: usageColumns(func(m node) corev1.ResourceList { return m.Usage }, func(m node) string { return m.Window.Duration.String() }),
		}),
		rest.Register(api.PodMetricsKind, &rest.Resource[pod]{
			Made: r.Pods,
			Columns: usageColumns(func(m pod) corev1.ResourceList {
				var cpu, memory resource.Quantity
				for _, c := range m.Containers {
					cpu.Add(c.Usage[corev1.ResourceCPU])
					memory.Add(c.Usage[corev1.ResourceMemory])
				}
				return corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}
			}, func(m pod) string { return m.Window.Duration.String() }),
		}),
	}
}

func usageColumns[T api.Object](use func(T) corev1.ResourceList, window func(T) string) []rest.Column[T] {
	of := func(name corev1.ResourceName) rest.Column[T] {
		return rest.Column[T]{Name: string(name), Format: "quantity", Cell: func(m T) any {
			q := use(m)[name]
			return q.String()
		}}
	}
	return []rest.Column[T]{of(corev1.ResourceCPU), of(corev1.ResourceMemory), {Name: "Window", Format: "duration", Cell: func(m T) any { return window(m) }}}
}
