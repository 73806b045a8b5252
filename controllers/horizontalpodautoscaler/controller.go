// Package horizontalpodautoscaler keeps the number of a workload's pods in step with what they use, or with another figure. It replaces
// upstream's podautoscaler controller.
//
//	HorizontalPodAutoscaler ──> scale of the target ──> pods, figures ──> plan.go: how many ──> limit.go: how fast ──> scale
//	                                                     Metrics                             history, in memory
//
// Vocabulary: a goal is what figures are compared with; what a metric proposes is stabilized (recommendations of the recent past hold it
// back) and limited (by policies, and by the bounds of the autoscaler).
//
// Invariants:
//   - Deciding is pure (plan.go, limit.go). An autoscaler is looked at every 15 seconds and when its spec changes; what failed is
//     told by its conditions and Events, and looked at again at the same pace.
//   - What is remembered of an autoscaler is lost with the process: nothing is scaled down within a window after its start.
//   - Lock order: controller.mu is a leaf. A history is touched by the one run of its autoscaler alone.
package horizontalpodautoscaler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// period is how often an autoscaler is looked at.
const period = 15 * time.Second

type hpa = *autoscalingv2.HorizontalPodAutoscaler

type controller struct {
	reconcile.Deps
	metrics Metrics

	mu    sync.Mutex
	known map[api.Key]*memory
}

// memory is what is remembered of an autoscaler.
type memory struct {
	history
	selector labels.Selector // of its pods, guarded by the controller's mu; nil while it is not known
}

// New returns the controller. Other servers' metrics are asked for through aggregated; nil: there are none.
func New(d reconcile.Deps, aggregated Aggregated) *reconcile.Controller {
	d = d.Named("horizontal-pod-autoscaler")
	c := &controller{Deps: d, known: map[api.Key]*memory{}}
	c.metrics = source{d.Client, aggregated, c.kind}
	return reconcile.New(d, reconcile.For[hpa]{
		Controller: "horizontal-pod-autoscaler-controller",
		Heeds:      func(before, after hpa) bool { return before.Generation != after.Generation },
		Read:       []*api.Kind{api.PodKind, api.PodMetricsKind, api.CustomResourceDefinitionKind},
		Write:      reconcile.Writes{api.HorizontalPodAutoscalerKind: {"update/status"}, nil: {"get/scale", "update/scale"}},
		Reconcile:  c.reconcile,
		Gone:       c.gone,
	})
}

func (c *controller) gone(_ context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, key)
	return reconcile.Result{}, nil
}

func (c *controller) memory(key api.Key) *memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[key] == nil {
		c.known[key] = &memory{}
	}
	return c.known[key]
}

func (c *controller) reconcile(ctx context.Context, log *slog.Logger, shared hpa) (reconcile.Result, error) {
	r := &round{controller: c, hpa: shared.DeepCopy(), memory: c.memory(api.KeyOf(shared)), now: time.Now()}
	if err := r.autoscale(ctx); err != nil {
		log.Debug("autoscaling", "err", err)
	}
	_, err := client.Mutate(ctx, c.Client, shared, "status", func(a hpa) { a.Status = r.hpa.Status })
	if err != nil {
		r.warn("FailedUpdateStatus", err)
		return reconcile.Result{}, fmt.Errorf("write status: %w", err)
	}
	return reconcile.Result{After: period}, nil
}

// round is one look at an autoscaler.
type round struct {
	*controller
	hpa    hpa // a copy, whose status is being made
	memory *memory
	now    time.Time
}

func (r *round) warn(reason string, err error) {
	r.Events.Event(r.hpa, corev1.EventTypeWarning, reason, err.Error())
}

// set sets a condition of the status.
func (r *round) set(t autoscalingv2.HorizontalPodAutoscalerConditionType, is bool, reason, message string) {
	status := corev1.ConditionFalse
	if is {
		status = corev1.ConditionTrue
	}
	list := &r.hpa.Status.Conditions
	i := slices.IndexFunc(*list, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool { return c.Type == t })
	if i < 0 {
		i = len(*list)
		*list = append(*list, autoscalingv2.HorizontalPodAutoscalerCondition{Type: t})
	}
	at := &(*list)[i]
	if at.Status != status {
		at.LastTransitionTime = metav1.NewTime(r.now)
	}
	at.Status, at.Reason, at.Message = status, reason, message
}

// scaledToZero says that it was an autoscaler that left no pod.
func (r *round) scaledToZero() bool {
	return slices.ContainsFunc(r.hpa.Status.Conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool {
		return c.Type == autoscalingv2.ScaledToZero && c.Status == corev1.ConditionTrue
	})
}

// fromZero says that a metric tells of the load also where there is no pod.
func (r *round) fromZero() bool {
	return slices.ContainsFunc(r.hpa.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	})
}

// kind finds the kind of a scale's target.
func (c *controller) kind(ctx context.Context, apiVersion, kind string) (*api.Kind, error) {
	return reconcile.KindNamed(ctx, c.Client, apiVersion, kind)
}

// autoscale does what there is to do, and makes the status.
func (r *round) autoscale(ctx context.Context) error {
	ref := r.hpa.Spec.ScaleTargetRef
	key := api.Key{Namespace: r.hpa.Namespace, Name: ref.Name}
	kind, err := r.kind(ctx, ref.APIVersion, ref.Kind)
	var scale *autoscalingv1.Scale
	if err == nil {
		scale, err = r.Client.GetScale(ctx, kind, key)
	}
	if err != nil {
		r.warn("FailedGetScale", err)
		r.set(autoscalingv2.AbleToScale, false, "FailedGetScale", fmt.Sprintf("the HPA controller was unable to get the target's current scale: %v", err))
		return fmt.Errorf("get scale of %s %s: %w", ref.Kind, key, err)
	}
	r.set(autoscalingv2.AbleToScale, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	r.memory.begin(scale.Spec.Replicas, r.now)
	p, err := r.propose(ctx, scale)
	if err != nil && !p.some {
		r.status(scale.Spec.Replicas, r.hpa.Status.DesiredReplicas, p.statuses)
		return err
	}
	if p.replicas == scale.Spec.Replicas {
		r.status(scale.Spec.Replicas, p.replicas, p.statuses)
		return err
	}
	if failed := r.rescale(ctx, kind, scale, p); failed != nil {
		return failed
	}
	return err // of those metrics that had no say
}

// proposal is how many pods there are to be.
type proposal struct {
	replicas int32
	reason   string
	statuses []autoscalingv2.MetricStatus
	some     bool // it can be acted on, although an error may have come with it
}

// propose decides on the number of pods.
func (r *round) propose(ctx context.Context, scale *autoscalingv1.Scale) (proposal, error) {
	current, least := scale.Spec.Replicas, int32(1)
	if m := r.hpa.Spec.MinReplicas; m != nil {
		least = *m
	}
	ours := current == 0 && r.scaledToZero()
	switch {
	case current == 0 && !(ours && (least != 0 || r.fromZero())):
		r.set(autoscalingv2.ScalingActive, false, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		return proposal{some: true}, nil
	case current > r.hpa.Spec.MaxReplicas:
		return proposal{replicas: r.hpa.Spec.MaxReplicas, reason: "Current number of replicas above Spec.MaxReplicas", some: true}, nil
	case current != 0 && current < least:
		return proposal{replicas: least, reason: "Current number of replicas below Spec.MinReplicas", some: true}, nil
	}
	m, err := r.byMetrics(ctx, scale)
	if err != nil && !m.some {
		r.warn("FailedComputeMetricsReplicas", err)
		return m, err
	}
	wanted := max(m.replicas, 0)
	switch {
	case wanted > current:
		m.reason += " above target"
	case wanted < current:
		m.reason = "All metrics below target"
	default:
		m.reason = ""
	}
	v := r.memory.settle(limits{least, r.hpa.Spec.MaxReplicas, r.hpa.Spec.Behavior}, current, wanted, r.now)
	r.set(autoscalingv2.AbleToScale, true, v.able, v.ableWhy)
	r.set(autoscalingv2.ScalingLimited, v.limited, v.reason, v.message)
	m.replicas = v.replicas
	if ours && m.replicas < least { // the least was raised meanwhile
		m.replicas = least
		if m.reason == "" {
			m.reason = "Current number of replicas below Spec.MinReplicas"
		}
	}
	return m, err
}

// rescale writes the number of pods.
func (r *round) rescale(ctx context.Context, kind *api.Kind, scale *autoscalingv1.Scale, p proposal) error {
	from := scale.Spec.Replicas
	// Whatever else of the target changed meanwhile: its UID alone has to be the same.
	next := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Namespace: scale.Namespace, Name: scale.Name, UID: scale.UID}}
	next.Spec.Replicas = p.replicas
	if _, err := r.Client.UpdateScale(ctx, kind, next); err != nil {
		r.Events.Event(r.hpa, corev1.EventTypeWarning, "FailedRescale", fmt.Sprintf("New size: %d; reason: %s; error: %v", p.replicas, p.reason, err))
		r.set(autoscalingv2.AbleToScale, false, "FailedUpdateScale", fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err))
		r.status(from, r.hpa.Status.DesiredReplicas, p.statuses)
		return fmt.Errorf("update scale: %w", err)
	}
	r.set(autoscalingv2.AbleToScale, true, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", p.replicas))
	r.Events.Event(r.hpa, corev1.EventTypeNormal, "SuccessfulRescale", fmt.Sprintf("New size: %d; reason: %s", p.replicas, p.reason))
	r.memory.changed(r.hpa.Spec.Behavior, from, p.replicas, r.now)
	if p.replicas == 0 && r.fromZero() {
		r.set(autoscalingv2.ScaledToZero, true, "ScaledToZero", "the HPA controller scaled the workload to zero")
	} else {
		r.set(autoscalingv2.ScaledToZero, false, "NotScaledToZero", "the HPA controller did not scale the workload to zero")
	}
	r.status(from, p.replicas, p.statuses)
	r.hpa.Status.LastScaleTime = &metav1.Time{Time: r.now}
	return nil
}

func (r *round) status(current, desired int32, metrics []autoscalingv2.MetricStatus) {
	s := &r.hpa.Status
	s.ObservedGeneration = &r.hpa.Generation
	s.CurrentReplicas, s.DesiredReplicas, s.CurrentMetrics = current, desired, metrics
}

// ambiguous returns two autoscalers that select these pods, of which r's is told of by selector from now on.
func (r *round) ambiguous(selector labels.Selector, pods []*corev1.Pod) []claimant {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memory.selector = selector
	var all []claimant
	for key, m := range r.known {
		if key.Namespace == r.hpa.Namespace && m.selector != nil &&
			slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return m.selector.Matches(labels.Set(p.Labels)) }) {
			all = append(all, claimant{key.Name, key.Namespace})
		}
	}
	if len(all) < 2 {
		return nil
	}
	slices.SortFunc(all, func(a, b claimant) int { return api.Key(a.key()).Compare(b.key()) })
	return all[:2]
}

// claimant is an autoscaler as messages name it.
type claimant struct{ name, namespace string }

func (c claimant) key() api.Key { return api.Key{Namespace: c.namespace, Name: c.name} }
