package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// runtimeClass gives pods the overhead of their runtime class and sends them to nodes that have it.
func runtimeClass(s *store.Store) rest.Admission {
	with := func(f func(a *rest.Admitting, p *corev1.Pod, c *nodev1.RuntimeClass) error) func(context.Context, *rest.Admitting) error {
		return func(ctx context.Context, a *rest.Admitting) error {
			pod := newPod(a)
			if pod == nil {
				return nil
			}
			name := pod.Spec.RuntimeClassName
			if name == nil {
				return f(a, pod, nil)
			}
			if err := s.Sync(ctx); err != nil {
				return err
			}
			e := s.Snapshot(api.RuntimeClassKind).Get(api.Key{Name: *name})
			if e == nil || e.Err() != nil {
				return forbidden(a, "pod rejected: RuntimeClass %q not found", *name)
			}
			return f(a, pod, e.Object.(*nodev1.RuntimeClass))
		}
	}
	return rest.Admission{Name: "RuntimeClass", Mutate: with(applyClass), Validate: with(checkOverhead)}
}

func applyClass(a *rest.Admitting, p *corev1.Pod, c *nodev1.RuntimeClass) error {
	if c == nil {
		return nil
	}
	if o := c.Overhead; o != nil {
		if len(p.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(o.PodFixed, p.Spec.Overhead) {
			return forbidden(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
		}
		p.Spec.Overhead = o.DeepCopy().PodFixed
	}
	if c.Scheduling == nil {
		return nil
	}
	for key, value := range c.Scheduling.NodeSelector {
		if has, ok := p.Spec.NodeSelector[key]; ok && has != value {
			return forbidden(a, "conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, has)
		}
	}
	if p.Spec.NodeSelector == nil && len(c.Scheduling.NodeSelector) > 0 {
		p.Spec.NodeSelector = map[string]string{}
	}
	for key, value := range c.Scheduling.NodeSelector {
		p.Spec.NodeSelector[key] = value
	}
	p.Spec.Tolerations = mergeTolerations(p.Spec.Tolerations, c.DeepCopy().Scheduling.Tolerations)
	return nil
}

func checkOverhead(a *rest.Admitting, p *corev1.Pod, c *nodev1.RuntimeClass) error {
	switch {
	case c == nil || c.Overhead == nil:
		if p.Spec.Overhead != nil {
			return forbidden(a, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
		}
	case !equality.Semantic.DeepEqual(c.Overhead.PodFixed, p.Spec.Overhead):
		return forbidden(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
	}
	return nil
}

// mergeTolerations joins two lists, less what another one of them covers. Of equal ones the first stays.
func mergeTolerations(a, b []corev1.Toleration) (merged []corev1.Toleration) {
	all := append(append([]corev1.Toleration(nil), a...), b...)
next:
	for i := range all {
		for j := range merged {
			if covers(&merged[j], &all[i]) {
				continue next
			}
		}
		for j := i + 1; j < len(all); j++ {
			if covers(&all[j], &all[i]) && !equality.Semantic.DeepEqual(all[i], all[j]) {
				continue next
			}
		}
		merged = append(merged, all[i])
	}
	return merged
}

// covers says whether all that b tolerates is tolerated by a.
func covers(a, b *corev1.Toleration) bool {
	if equality.Semantic.DeepEqual(a, b) {
		return true
	}
	if a.Key != b.Key && (a.Key != "" || a.Operator != corev1.TolerationOpExists) || a.Effect != b.Effect && a.Effect != "" {
		return false
	}
	if a.Effect == corev1.TaintEffectNoExecute && a.TolerationSeconds != nil && (b.TolerationSeconds == nil || *b.TolerationSeconds > *a.TolerationSeconds) {
		return false
	}
	switch a.Operator {
	case corev1.TolerationOpEqual, "":
		return b.Operator == corev1.TolerationOpEqual && b.Value == a.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}
