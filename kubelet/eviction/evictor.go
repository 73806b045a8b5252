package eviction

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Upstream's figures.
const (
	// Interval is the rest between two looks at the machine.
	Interval = 10 * time.Second
	// endsWithin is how long an evicted pod is waited for before another is chosen.
	endsWithin = 30 * time.Second
	// hardGrace is what containers get that a hard threshold ends, and the least that any get.
	hardGrace = time.Second
)

// Order is to evict a pod.
type Order struct {
	Message     string
	Annotations map[string]string // of the Event
	Grace       time.Duration
}

// Deps are what an Evictor works with.
type Deps struct {
	// Observe looks at the machine.
	Observe func(context.Context) (Observations, error)
	// Wake has a value when memory is getting scarce between two looks; nil: never.
	Wake <-chan struct{}
	// Changed is told that conditions have changed.
	Changed func()
	// Pods are those that may be evicted. Measure returns what they use, of disks the parts that are asked for.
	Pods    func() []*corev1.Pod
	Measure func(context.Context, []*corev1.Pod, Parts) ([]Candidate, error)
	// RemoveDead removes what is left of containers that have ended for good, RemoveImages the images that no container has.
	RemoveDead, RemoveImages func(context.Context) error
	// Evict ends a pod; the channel is closed when it has ended. It is nil when there is no such pod any more.
	Evict func(*corev1.Pod, Order) (ended <-chan struct{})
	// Event is about the Node.
	Event   func(kind, reason, message string)
	Metrics *Metrics
	Log     *slog.Logger
}

// Evictor looks at the machine and acts.
type Evictor struct {
	Deps
	maxGrace time.Duration

	mu         sync.Mutex
	state      State
	last       Observations
	conditions []corev1.NodeConditionType
}

// New returns an Evictor by settings that are checked. Nothing is looked at.
func New(s Settings, d Deps) *Evictor {
	if s.TransitionPeriod == 0 {
		s.TransitionPeriod = UsualTransition
	}
	return &Evictor{Deps: d, maxGrace: time.Duration(s.MaxPodGracePeriod) * time.Second,
		state: State{Thresholds: s.Thresholds(), TransitionPeriod: s.TransitionPeriod}}
}

// Conditions returns the Node's conditions of pressure as of the last look, ordered. They are shared.
func (e *Evictor) Conditions() []corev1.NodeConditionType {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conditions
}

// Under reports whether the Node has the condition.
func (e *Evictor) Under(c corev1.NodeConditionType) bool { return slices.Contains(e.Conditions(), c) }

// Look takes the machine's state into account without acting upon it, and returns the acute thresholds. Before the Node is registered it is
// to be called once: a kubelet that is started under pressure takes no pods that it would evict.
func (e *Evictor) Look(ctx context.Context) ([]Threshold, error) {
	if len(e.state.Thresholds) == 0 {
		return nil, nil
	}
	o, err := e.Observe(ctx)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	acute := e.state.Observe(o)
	before, now := e.conditions, e.state.Conditions()
	e.conditions, e.last = now, o
	e.mu.Unlock()
	if !slices.Equal(before, now) {
		e.Log.Info("pressure has changed", "conditions", now, "before", before)
		e.Changed()
	}
	return acute, nil
}

// Run looks each interval, and when it is woken, until ctx ends. The first look is an interval after the start: pods have come to be known
// by then.
func (e *Evictor) Run(ctx context.Context) {
	if len(e.state.Thresholds) == 0 {
		return
	}
	timer := time.NewTimer(Interval)
	defer timer.Stop()
	for wake := (<-chan struct{})(nil); ; wake = e.Wake {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-wake:
		}
		begun := time.Now()
		ended, err := e.round(ctx)
		if err != nil && ctx.Err() == nil {
			e.Log.Warn("the machine's state is not known", "err", err)
		}
		if ended != nil {
			e.await(ctx, ended, begun)
			timer.Reset(0)
			continue
		}
		timer.Reset(Interval)
	}
}

// await waits until an interval has passed since the eviction, and its pod has ended, or had the time to.
func (e *Evictor) await(ctx context.Context, ended <-chan struct{}, since time.Time) {
	limit, interval := time.NewTimer(endsWithin), time.NewTimer(time.Until(since.Add(Interval)))
	defer limit.Stop()
	defer interval.Stop()
	select {
	case <-ended:
	case <-limit.C:
	case <-ctx.Done():
		return
	}
	select {
	case <-interval.C:
	case <-ctx.Done():
	}
}

// round looks, and does what is the first thing to do. It returns the end of the pod that it has evicted, nil when it evicted none.
func (e *Evictor) round(ctx context.Context) (<-chan struct{}, error) {
	acute, err := e.Look(ctx)
	if err != nil || len(acute) == 0 {
		return nil, err
	}
	t := &acute[0]
	lack := t.Signal.Resource()
	e.Log.Warn("the node is low on a resource", "signal", t.Signal, "resource", lack)
	e.Event(corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", lack))
	if over, err := e.reclaim(ctx, t.Signal); over || err != nil {
		return nil, err
	}
	pods := e.Pods()
	if len(pods) == 0 {
		e.Log.Warn("no pod can be evicted", "signal", t.Signal)
		return nil, nil
	}
	parts := e.last.Parts(t.Signal)
	candidates, err := e.Measure(ctx, pods, parts)
	if err != nil {
		return nil, fmt.Errorf("measure pods: %w", err)
	}
	Rank(t.Signal, parts, candidates)
	for _, met := range acute {
		e.Metrics.age(met.Signal, time.Since(e.last.At))
	}
	for i := range candidates {
		c := &candidates[i]
		order := Order{Grace: e.grace(t, c.Pod)}
		order.Message, order.Annotations = Message(t, &e.last, c)
		if ended := e.Evict(c.Pod, order); ended != nil {
			e.Metrics.Evicted(string(t.Signal))
			return ended, nil
		}
	}
	return nil, nil
}

// grace is how long the pod gets to end.
func (e *Evictor) grace(t *Threshold, p *corev1.Pod) time.Duration {
	if !t.Soft {
		return hardGrace
	}
	grace := e.maxGrace
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = min(grace, time.Duration(*s)*time.Second)
	}
	return max(grace, hardGrace)
}

// reclaim has removed what nobody needs on the signal's file system, and reports whether that was enough.
func (e *Evictor) reclaim(ctx context.Context, s Signal) (over bool, err error) {
	dead, images := e.last.reclaims(s)
	if !dead && !images {
		return false, nil
	}
	if dead {
		if err := e.RemoveDead(ctx); err != nil {
			e.Log.Warn("dead containers stay", "err", err)
		}
	}
	if images {
		if err := e.RemoveImages(ctx); err != nil {
			e.Log.Warn("unused images stay", "err", err)
		}
	}
	now, err := e.Observe(ctx)
	if err != nil {
		return false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = now
	if over = e.state.Over(s, now); over {
		e.Log.Info("no pod need be evicted: what was removed is enough", "signal", s)
	}
	return over, nil
}

// reclaims says what can be removed from the signal's file system without harm to a pod.
func (o *Observations) reclaims(s Signal) (dead, images bool) {
	switch s {
	case NodeFsAvailable, NodeFsInodesFree:
		return !o.OwnImages || !o.LayersWithImages, !o.OwnImages
	case ImageFsAvailable, ImageFsInodesFree:
		return o.LayersWithImages, true
	}
	return false, false
}
