package scheduler

import (
	"container/heap"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/yare-dev/yare/scheduler/plugins"
)

// state is where a pod is in the queue.
//
//	            pop                   fail
//	active ───────────> in flight ────────────> unschedulable
//	  ^                     │ retry                  │ wake: something changed that may help
//	  │      time passed    v                        │ (or too long here)
//	  └──────────────── backing off <────────────────┘
//
// A gated pod waits until its spec changes.
type state uint8

const (
	active state = iota
	inFlight
	unschedulable
	backingOff
	gated
)

// How long a pod that was tried waits at least before it is tried again, and at most without anything happening. The first
// wait is short, since it often is a node that becomes ready at this very moment.
const (
	firstBackOff = 20 * time.Millisecond
	lastBackOff  = 10 * time.Second
	tooLong      = 5 * time.Minute
)

// item is one pod that waits for a node.
type item struct {
	pod      *corev1.Pod
	state    state
	attempts int
	wakes    plugins.Change // of an unschedulable one
	due      time.Time      // end of backing off; end of patience where unschedulable
	order    uint64         // of becoming active
	index    int            // in its heap
}

// queue holds pods until they are placed. It is pure: times are given. It belongs to one goroutine.
type queue struct {
	pods   map[types.UID]*item
	ready  activeHeap
	later  dueHeap
	orders uint64
}

func newQueue() *queue { return &queue{pods: map[types.UID]*item{}} }

// set adds or updates a pod. An update of an unschedulable pod that may matter makes it active again.
func (q *queue) set(p *corev1.Pod, now time.Time) {
	it := q.pods[p.UID]
	if it == nil {
		it = &item{pod: p, state: gated, index: -1}
		q.pods[p.UID] = it
		if len(p.Spec.SchedulingGates) == 0 {
			q.activate(it)
		}
		return
	}
	old := it.pod
	it.pod = p
	switch it.state {
	case gated:
		if len(p.Spec.SchedulingGates) == 0 {
			q.activate(it)
		}
	case unschedulable:
		if old.Generation != p.Generation || !maps.Equal(old.Labels, p.Labels) ||
			!resourceclaim.PodStatusEqual(old.Status.ResourceClaimStatuses, p.Status.ResourceClaimStatuses) {
			q.backOff(it, now)
		}
	case active:
		heap.Fix(&q.ready, it.index)
	}
}

// remove forgets a pod.
func (q *queue) remove(uid types.UID) {
	if it := q.pods[uid]; it != nil {
		q.leave(it)
		delete(q.pods, uid)
	}
}

func (q *queue) leave(it *item) {
	if it.index < 0 {
		return
	}
	if it.state == active {
		heap.Remove(&q.ready, it.index)
	} else {
		heap.Remove(&q.later, it.index)
	}
	it.index = -1
}

func (q *queue) activate(it *item) {
	q.leave(it)
	q.orders++
	it.state, it.order = active, q.orders
	heap.Push(&q.ready, it)
}

// pop returns the next pod to place, nil when none is active. It is in flight afterwards.
func (q *queue) pop(now time.Time) *item {
	for len(q.later) > 0 && !q.later[0].due.After(now) {
		q.activate(q.later[0])
	}
	if len(q.ready) == 0 {
		return nil
	}
	it := q.ready[0]
	q.leave(it)
	it.state = inFlight
	it.attempts++
	return it
}

// fail notes that a pod fits nowhere until one of wakes happens.
func (q *queue) fail(it *item, wakes plugins.Change, now time.Time) {
	if q.pods[it.pod.UID] != it {
		return // removed meanwhile
	}
	it.state, it.wakes, it.due = unschedulable, wakes, now.Add(tooLong)
	heap.Push(&q.later, it)
}

// retry notes that a pod has to be tried again for reasons that are not its own.
func (q *queue) retry(it *item, now time.Time) {
	if q.pods[it.pod.UID] == it {
		q.backOff(it, now)
	}
}

// backOff makes a pod active again when its time has come.
func (q *queue) backOff(it *item, now time.Time) {
	q.leave(it)
	wait := lastBackOff
	if n := it.attempts - 1; n < 20 {
		wait = min(wait, firstBackOff<<max(n, 0))
	}
	it.state, it.due = backingOff, now.Add(wait)
	heap.Push(&q.later, it)
}

// wake lets those pods be tried again that one of the changes may help.
func (q *queue) wake(changes plugins.Change, now time.Time) {
	if changes == 0 {
		return
	}
	q.wakeThose(func(it *item) bool { return it.wakes&changes != 0 }, now)
}

// wakeThose lets those pods be tried again that are helped.
func (q *queue) wakeThose(helped func(*item) bool, now time.Time) {
	var those []*item
	for _, it := range q.later {
		if it.state == unschedulable && helped(it) {
			those = append(those, it)
		}
	}
	for _, it := range those {
		q.backOff(it, now)
	}
}

// patience has an unschedulable pod be tried again at the latest then.
func (q *queue) patience(it *item, until time.Time) {
	if q.pods[it.pod.UID] == it && it.state == unschedulable && until.Before(it.due) {
		it.due = until
		heap.Fix(&q.later, it.index)
	}
}

// next returns when a pod becomes active by the passing of time alone.
func (q *queue) next() (time.Time, bool) {
	if len(q.later) == 0 {
		return time.Time{}, false
	}
	return q.later[0].due, true
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// activeHeap has the most important first, then the one that became active first.
type activeHeap []*item

func (h activeHeap) Len() int { return len(h) }
func (h activeHeap) Less(i, j int) bool {
	if a, b := priority(h[i].pod), priority(h[j].pod); a != b {
		return a > b
	}
	return h[i].order < h[j].order
}
func (h activeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *activeHeap) Push(x any)   { push((*[]*item)(h), x) }
func (h *activeHeap) Pop() any     { return pop((*[]*item)(h)) }

// dueHeap has the earliest first.
type dueHeap []*item

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *dueHeap) Push(x any)        { push((*[]*item)(h), x) }
func (h *dueHeap) Pop() any          { return pop((*[]*item)(h)) }

func push(h *[]*item, x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

func pop(h *[]*item) any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
