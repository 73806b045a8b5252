// Package scheduler gives pods their nodes. It replaces kube-scheduler.
//
//	watches ──> loop: cluster (columns) ── filters, scores ──> assume ──> bind ──> API
//	                ^         queue                              │          │
//	                └──────────── results, and the watch again ──┴──────────┘
//
// One goroutine, the loop, owns the cluster and the queue. It places one pod after the other; what it has placed counts at
// once (assumed), while bindings are written beside it. cluster, plugins, place.go and queue.go are pure: they read no clock
// and block on nothing.
//
// Vocabulary: a pod is placed when a node was chosen, bound when the API has it. When a pod fits nowhere, others may have to go
// for it: its victims, who are deleted gracefully; it is promised their node (status.nominatedNodeName) and tried again
// when they are gone.
//
// Claims for devices (dynamic resource allocation, KEP-4381) are allocated with upstream's library, with the features that upstream
// has on by default: administrators' access, alternatives, partitions, taints (DeviceTaintRules too), shared capacity, binding conditions.
// What the API server drops has no effect here: derived and list-type attributes, compatibility groups, skipped node operations,
// resources of nodes as devices. Where a class of devices stands for an extended resource (KEP-5004) and a node has none of it itself, the pod gets
// a claim that the scheduler makes. Devices are looked at from the first pod on that asks for some.
//
// Not built yet, and not pretended: extenders; claims of pod groups (off by default upstream).
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// Config is what a Scheduler is made of.
type Config struct {
	// Profile is the spec.schedulerName of the pods that are ours. Empty: "default-scheduler".
	Profile string
	Client  client.Client
	Events  *events.Recorder // may be nil
	Log     *slog.Logger
	// Seed decides between equally good nodes.
	Seed uint64
}

// Scheduler is a run.Component.
type Scheduler struct {
	c       Config
	cluster *cluster.Cluster
	queue   *queue
	placer  *placer

	promises promises
	budgets  map[api.Key]*budget
	unseen   map[types.UID]types.UID // by pod: special claims that were written and have not come yet

	changes  chan client.Event
	results  chan result
	writing  int               // writes under way
	unsynced int               // lists that have not arrived
	follow   func([]*api.Kind) // starts watches; nil once those of devices were started
	wg       sync.WaitGroup
}

// maxWrites bounds the writes under way: enough to fill one commit of the store with many.
const maxWrites = 64

// result is the end of a write: of a binding, where it is not nil.
type result struct {
	binding *item
	undo    []func()   // what was assumed, to be done when the write failed
	claims  *allotting // claims that were written before, where not nil
	err     error
}

// New returns a Scheduler.
func New(c Config) *Scheduler {
	if c.Profile == "" {
		c.Profile = corev1.DefaultSchedulerName
	}
	return &Scheduler{
		c: c, cluster: cluster.New(), queue: newQueue(), placer: newPlacer(c.Seed),
		promises: promises{}, budgets: map[api.Key]*budget{}, unseen: map[types.UID]types.UID{},
		changes: make(chan client.Event, 1024), results: make(chan result, maxWrites),
	}
}

// Name is the component's name.
func (s *Scheduler) Name() string { return "scheduler" }

// Run schedules until ctx ends. It is ready when it knows all nodes and pods.
func (s *Scheduler) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer s.wg.Wait()
	defer cancel(nil)
	s.follow = func(kinds []*api.Kind) {
		s.unsynced += len(kinds)
		for _, k := range kinds {
			s.wg.Go(func() {
				if err := s.watch(ctx, k); err != nil && ctx.Err() == nil {
					cancel(err)
				}
			})
		}
	}
	s.follow(append([]*api.Kind{api.NamespaceKind, api.NodeKind, api.PodDisruptionBudgetKind, api.PodKind}, storageKinds()...))
	s.loop(ctx, sync.OnceFunc(ready))
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (s *Scheduler) watch(ctx context.Context, k *api.Kind) error {
	for e, err := range s.c.Client.Watch(ctx, k, client.Query{}, 0) {
		switch {
		case apierrors.IsNotFound(err) && slices.Contains(deviceKinds(), k):
			// An API server of another release: pods that ask for extended resources of device plugins do not need it.
			s.c.Log.Warn("the API server has no such kind: what it is for is not looked at", "kind", k.String(), "err", err)
			e = client.Event{Op: client.Synced}
		case err != nil:
			return fmt.Errorf("watch %v: %w", k, err)
		}
		select {
		case s.changes <- e:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// loop takes in changes and places pods. While lists have yet to arrive it only takes in.
func (s *Scheduler) loop(ctx context.Context, ready func()) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		if s.unsynced == 0 && s.writing < maxWrites && len(s.changes) == 0 && len(s.results) == 0 {
			if it := s.queue.pop(now); it != nil {
				s.schedule(ctx, it, now)
				continue
			}
		}
		timer.Stop()
		if due, ok := s.queue.next(); ok && s.unsynced == 0 && s.writing < maxWrites {
			timer.Reset(due.Sub(now))
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case r := <-s.results:
			s.written(r, now)
		case e := <-s.changes:
			if e.Op != client.Synced {
				s.queue.wake(s.take(&e, now), now)
			} else if s.unsynced--; s.unsynced == 0 {
				ready()
			}
		}
	}
}

// schedule places one pod and starts what has to be written.
func (s *Scheduler) schedule(ctx context.Context, it *item, now time.Time) {
	if asksForDevices(it.pod) {
		s.cluster.Devices.Now, s.cluster.Devices.Ended = now, ctx.Err
		defer func() { s.cluster.Devices.Judged = nil }()
	}
	p, err := s.cluster.Pod(it.pod)
	var f *failure
	slot := 0
	if err != nil {
		f = &failure{nodes: s.cluster.Count, fault: err}
	} else {
		slot, f = s.place(p)
	}
	pod := it.pod
	if f != nil && errors.Is(f.fault, plugins.ErrNotYet) {
		s.queue.fail(it, f.wakes, now)
		return
	}
	if f != nil {
		var promised string
		var evict func(context.Context) error
		if f.fault == nil && f.nodes > 0 {
			promised, evict = s.makeRoom(p, f)
		}
		s.queue.fail(it, f.wakes, now)
		s.write(result{}, func() error {
			var err error
			if evict != nil {
				err = evict(ctx)
			}
			return errors.Join(err, s.refuse(ctx, pod, f.Error(), promised))
		})
		return
	}
	node := s.cluster.Nodes[slot].Name
	a := plugins.DevicesOn(s.cluster, p, slot)
	if b := plugins.VolumesOn(s.cluster, p, slot); b != nil || a != nil && !a.Until.IsZero() {
		s.await(ctx, it, p, b, a, node, now)
		return
	}
	delete(s.promises, p.UID)
	// What a claim serves is not the node's.
	p.Requests = slices.DeleteFunc(p.Requests, func(r cluster.Request) bool { return s.cluster.ByClass(r.Column, slot) })
	s.cluster.SetPod(p, node)
	s.queue.wake(plugins.PodAdded, now)
	claims := s.allot(pod, a)
	s.write(result{binding: it, claims: claims}, func() error {
		err := s.writeClaims(ctx, claims)
		if err != nil {
			return err
		}
		if err = s.bind(ctx, pod, node); err != nil {
			s.releaseClaims(ctx, claims)
		}
		return err
	})
}

// place returns the best slot for a pod, on which pods count that were promised it. Where the pod fits only because of
// these, it has to wait for them.
func (s *Scheduler) place(p *cluster.Pod) (int, *failure) {
	if len(s.promises) == 0 {
		return s.placer.place(s.cluster, p)
	}
	undo := s.promises.keep(s.cluster, p.Pod)
	slot, f := s.placer.place(s.cluster, p)
	undo()
	if f == nil && !(&preemptor{pl: s.placer, c: s.cluster, pod: p}).fits(slot) {
		return s.placer.place(s.cluster, p)
	}
	return slot, f
}

// write runs f beside the loop, which gets r with f's error.
func (s *Scheduler) write(r result, f func() error) {
	s.writing++
	s.wg.Go(func() {
		r.err = f()
		s.results <- r
	})
}

// written takes in the end of a write.
func (s *Scheduler) written(r result, now time.Time) {
	s.writing--
	s.settle(r.claims, now)
	if r.err == nil {
		return
	}
	if r.binding == nil {
		for _, f := range r.undo {
			f()
			s.queue.wake(plugins.Volumes, now)
		}
		if r.claims != nil {
			s.queue.wake(plugins.Devices, now)
		}
		s.c.Log.Warn("writing for a pod that waits failed", "err", r.err)
		return
	}
	p := r.binding.pod
	assumed := s.cluster.Placed(p.UID)
	if assumed == nil || assumed.Spec.NodeName != "" {
		return // the watch was faster: it is gone, or bound
	}
	s.c.Log.Warn("binding failed", "pod", api.KeyOf(p), "err", r.err)
	s.cluster.RemovePod(p.UID)
	s.queue.wake(plugins.PodRemoved, now)
	s.queue.retry(r.binding, now)
}

// bind writes a binding.
func (s *Scheduler) bind(ctx context.Context, p *corev1.Pod, node string) error {
	b := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	if _, err := s.c.Client.Post(ctx, api.PodKind, api.KeyOf(p), "binding", b); err != nil {
		return err
	}
	s.c.Events.Event(p, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %v to %s", api.KeyOf(p), node))
	return nil
}

// refuse writes why a pod cannot be placed, and which node it was promised.
func (s *Scheduler) refuse(ctx context.Context, p *corev1.Pod, message, promised string) error {
	s.c.Events.Event(p, corev1.EventTypeWarning, "FailedScheduling", message)
	now := metav1.NewTime(time.Now())
	change := func(p *corev1.Pod) {
		p.Status.NominatedNodeName = promised
		api.SetPodCondition(&p.Status, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
			Message: message, ObservedGeneration: p.Generation, LastTransitionTime: now,
		})
	}
	if promised != "" {
		return s.status(ctx, p, change) // others went for it: that must be seen
	}
	_, err := client.Mutate(ctx, s.c.Client, p, "status", change)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || ctx.Err() != nil {
		return nil // it is gone, or has changed and comes again
	}
	return err
}

// take takes a change into the cluster or the queue, and returns what it may make possible.
func (s *Scheduler) take(e *client.Event, now time.Time) plugins.Change {
	switch o := e.Object.(type) {
	case *corev1.Pod:
		return s.takePod(o, e.Op == client.Deleted, now)
	case *corev1.Node:
		return s.takeNode(o, e.Op == client.Deleted)
	case *policyv1.PodDisruptionBudget:
		if e.Op == client.Deleted {
			delete(s.budgets, api.KeyOf(o))
		} else {
			s.budgets[api.KeyOf(o)] = newBudget(o)
		}
	case *resourcev1.ResourceClaim, *resourcev1.ResourceSlice, *resourcev1.DeviceClass, *resourcev1.DeviceTaintRule:
		return s.takeDevices(e.Object, e.Op == client.Deleted, now)
	case *corev1.Namespace:
		if e.Op == client.Deleted {
			s.cluster.RemoveNamespace(o.Name)
		} else {
			s.cluster.SetNamespace(o.Name, o.Labels)
		}
		return plugins.NamespaceLabels
	default:
		return s.takeStorage(e.Object, e.Op == client.Deleted)
	}
	return 0
}

func (s *Scheduler) takeNode(n *corev1.Node, deleted bool) plugins.Change {
	if deleted {
		s.cluster.RemoveNode(n.Name)
		return plugins.PodRemoved | plugins.NodeLabels // of spread domains
	}
	change := plugins.NodeAdded
	if slot, ok := s.cluster.Slot(n.Name); ok {
		change = difference(s.cluster.Nodes[slot], n)
	}
	s.cluster.SetNode(n)
	return change
}

// difference says in which respects a node changed.
func difference(old, now *corev1.Node) (c plugins.Change) {
	if !maps.Equal(old.Labels, now.Labels) {
		c |= plugins.NodeLabels
	}
	if old.Spec.Unschedulable != now.Spec.Unschedulable || !slices.EqualFunc(old.Spec.Taints, now.Spec.Taints,
		func(a, b corev1.Taint) bool { return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect }) {
		c |= plugins.NodeTaints
	}
	same := len(old.Status.Allocatable) == len(now.Status.Allocatable)
	for name, q := range now.Status.Allocatable {
		same = same && q.Equal(old.Status.Allocatable[name])
	}
	if !same {
		c |= plugins.NodeResources
	}
	return c
}

func (s *Scheduler) takePod(p *corev1.Pod, deleted bool, now time.Time) plugins.Change {
	switch {
	case deleted || api.PodTerminal(p):
		s.forget(p)
		change := s.forgetUnseen(p.UID)
		if s.cluster.RemovePod(p.UID) {
			change |= plugins.PodRemoved
		}
		return change
	case p.Spec.NodeName != "":
		return s.takeBound(p)
	case p.Spec.SchedulerName != s.c.Profile:
	case p.DeletionTimestamp != nil:
		s.forget(p)
	default:
		var old *corev1.Pod
		if it := s.queue.pods[p.UID]; it != nil {
			old = it.pod
		}
		s.promises.note(old, p)
		s.queue.set(p, now)
		if s.follow != nil && asksForDevices(p) {
			s.follow(deviceKinds())
			s.follow = nil
		}
	}
	return 0
}

// forget takes a pod out of what waits for a node.
func (s *Scheduler) forget(p *corev1.Pod) {
	s.queue.remove(p.UID)
	delete(s.promises, p.UID)
}

func (s *Scheduler) takeBound(p *corev1.Pod) plugins.Change {
	s.forget(p)
	old := s.cluster.Placed(p.UID)
	if old != nil && old.On() == p.Spec.NodeName && sameToOthers(old.Pod, p) && s.cluster.SameRequests(old, p) {
		old.Pod = p // bound, where it was assumed
		return 0
	}
	now, err := s.cluster.Pod(p)
	if err != nil {
		// Its resources count even so; its terms are for nobody to read.
		s.c.Log.Warn("bound pod has affinity that cannot be read", "pod", api.KeyOf(p), "err", err)
	}
	s.cluster.SetPod(now, p.Spec.NodeName)
	if old == nil {
		return plugins.PodAdded
	}
	return plugins.PodAdded | plugins.PodRemoved
}

// sameToOthers says that nothing of a pod changed that matters for placing others. Being bound does not.
func sameToOthers(old, now *corev1.Pod) bool {
	bound := old.Spec.NodeName == "" && now.Spec.NodeName != ""
	return (bound || old.Generation == now.Generation) && (old.DeletionTimestamp == nil) == (now.DeletionTimestamp == nil) &&
		maps.Equal(old.Labels, now.Labels)
}
