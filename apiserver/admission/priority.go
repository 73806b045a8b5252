package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// systemClasses are the priority classes that every cluster has. They are known before their objects are made, and after
// somebody removed these: the cluster's own pods go by them.
var systemClasses = map[string]int32{"system-cluster-critical": 2000000000, "system-node-critical": 2000001000}

// priority resolves the name of a priority class to the number that scheduler and kubelet go by, and lets only one class
// be the default.
func priority(s *store.Store) rest.Admission {
	return rest.Admission{
		Name: "Priority",
		Mutate: func(ctx context.Context, a *rest.Admitting) error {
			if a.Kind == api.PodKind && a.Operation == rest.OpUpdate && a.Sub == "" {
				keepPriority(a.Object.(*corev1.Pod), a.Old.(*corev1.Pod))
				return nil
			}
			pod := newPod(a)
			if pod == nil {
				return nil
			}
			if err := s.Sync(ctx); err != nil {
				return err
			}
			return prioritize(a, s.Snapshot(api.PriorityClassKind), pod)
		},
		Validate: func(ctx context.Context, a *rest.Admitting) error {
			now, ok := a.Object.(*schedulingv1.PriorityClass)
			if !ok || !now.GlobalDefault || a.Sub != "" {
				return nil
			}
			if err := s.Sync(ctx); err != nil {
				return err
			}
			if d := defaultPriority(s.Snapshot(api.PriorityClassKind)); d != nil && (a.Operation == rest.OpCreate || d.Name != now.Name) {
				return forbidden(a, "PriorityClass %v is already marked as default. Only one default can exist", d.Name)
			}
			return nil
		},
	}
}

// keepPriority lets clients leave out the fields that they do not know.
func keepPriority(now, old *corev1.Pod) {
	if now.Spec.Priority == nil {
		now.Spec.Priority = old.Spec.Priority
	}
	if now.Spec.PreemptionPolicy == nil {
		now.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
}

func prioritize(a *rest.Admitting, classes store.Snapshot, pod *corev1.Pod) error {
	lower := corev1.PreemptLowerPriority
	class := &schedulingv1.PriorityClass{PreemptionPolicy: &lower}
	if name := pod.Spec.PriorityClassName; name != "" {
		value, system := systemClasses[name]
		switch e := classes.Get(api.Key{Name: name}); {
		case e != nil && e.Err() == nil:
			class = e.Object.(*schedulingv1.PriorityClass)
		case system:
			class.Value = value
		default:
			return forbidden(a, "no PriorityClass with name %v was found", name)
		}
	} else if d := defaultPriority(classes); d != nil {
		class = d
		pod.Spec.PriorityClassName = d.Name
	}
	if p := pod.Spec.Priority; p != nil && *p != class.Value {
		return forbidden(a, "the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, class.Value)
	}
	value := class.Value
	pod.Spec.Priority = &value
	if class.PreemptionPolicy == nil {
		return nil
	}
	policy := *class.PreemptionPolicy
	if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
		return forbidden(a, "the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy)
	}
	pod.Spec.PreemptionPolicy = &policy
	return nil
}

// defaultPriority is the class of pods that name none; of several, which a race may make, the lowest.
func defaultPriority(classes store.Snapshot) (d *schedulingv1.PriorityClass) {
	for e := range classes.All("", api.Key{}) {
		if c := e.Object.(*schedulingv1.PriorityClass); c.GlobalDefault && (d == nil || d.Value > c.Value) {
			d = c
		}
	}
	return d
}
