package reconcile

import (
	"sync"
	"time"

	"github.com/yare-dev/yare/api"
)

// Delays after failures double from the first to the last.
const (
	firstDelay = 5 * time.Millisecond
	lastDelay  = 5 * time.Minute
)

// queue hands out keys, each to one worker at a time.
//
//	         add                next                done, failed
//	(none) ───────> queued ──────────────> running ───────────────> (none), or queued when woken meanwhile,
//	   timer ──────────^                                            or a timer after Result.After or a failure
type queue struct {
	mu     sync.Mutex
	some   sync.Cond // a key is queued, or the queue is closed
	order  []api.Key
	items  map[api.Key]*item
	closed bool
	counts *queueMetrics
}

// item is the state of a key that is queued, running, failed or waiting for its time.
type item struct {
	queued  bool
	running bool
	woken   bool // while running
	fails   int
	timer   *time.Timer
	due     time.Time // of timer
	since   time.Time // when it was queued, where that is counted
}

// newQueue returns an empty queue. Counts may be nil.
func newQueue(counts *queueMetrics) *queue {
	q := &queue{items: map[api.Key]*item{}, counts: counts}
	q.some.L = &q.mu
	return q
}

// add makes key run as soon as a worker is free.
func (q *queue) add(key api.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.push(key)
}

// push is add. Preconditions: mu is held.
func (q *queue) push(key api.Key) {
	if q.closed {
		return
	}
	it := q.item(key)
	it.stop()
	switch {
	case it.running:
		it.woken = true
	case !it.queued:
		it.queued = true
		q.order = append(q.order, key)
		q.counts.added(it)
		q.some.Signal()
	}
}

// addAfter makes key run after d, unless it runs sooner.
func (q *queue) addAfter(key api.Key, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.item(key)
	if d <= 0 {
		q.push(key)
		return
	}
	if !it.queued {
		q.arm(key, it, d)
	}
}

// arm starts key's timer, unless one ends sooner. Preconditions: mu is held.
func (q *queue) arm(key api.Key, it *item, d time.Duration) {
	due := time.Now().Add(d)
	if q.closed || it.timer != nil && !it.due.After(due) {
		return
	}
	it.stop()
	it.due = due
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if it.timer == t { // not stopped in the moment in which it fired
			q.push(key)
		}
	})
	it.timer = t
}

func (it *item) stop() {
	if it.timer != nil {
		it.timer.Stop()
		it.timer = nil
	}
}

func (q *queue) item(key api.Key) *item {
	it := q.items[key]
	if it == nil {
		it = &item{}
		q.items[key] = it
	}
	return it
}

// next waits for a key. It is false once the queue is closed.
func (q *queue) next() (api.Key, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.order) == 0 && !q.closed {
		q.some.Wait()
	}
	if q.closed {
		return api.Key{}, false
	}
	key := q.order[0]
	q.order = q.order[1:]
	it := q.items[key]
	it.queued, it.running = false, true
	q.counts.taken(it)
	return key, true
}

// done ends a run of key that went well. A positive after runs it again then.
func (q *queue) done(key api.Key, after time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[key]
	it.fails = 0
	q.finish(key, it, after)
}

// failed ends a run of key that went wrong and returns when it runs again.
func (q *queue) failed(key api.Key) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[key]
	delay := lastDelay
	if it.fails < 16 {
		delay = min(lastDelay, firstDelay<<it.fails)
	}
	it.fails++
	q.finish(key, it, delay)
	return delay
}

// finish ends a run. Preconditions: mu is held.
func (q *queue) finish(key api.Key, it *item, after time.Duration) {
	it.running = false
	if it.woken {
		it.woken = false
		q.push(key)
		return
	}
	if after > 0 {
		q.arm(key, it, after)
	}
	if it.timer == nil && it.fails == 0 && !it.queued {
		delete(q.items, key)
	}
}

// close makes next return false and stops all timers.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, it := range q.items {
		it.stop()
	}
	q.some.Broadcast()
}
