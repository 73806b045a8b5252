package fairness

import (
	"context"
	"math"
	"sync"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/util/shufflesharding"
)

// expected is how long a request is taken to last before it has ended.
const expected = 3 * time.Millisecond

// patience is how long a request waits at most: a quarter of how long it may take.
const patience = 15 * time.Second

// level is a priority level at work. It outlives changes of its configuration.
type level struct {
	name  string
	drops drops

	mu     sync.Mutex
	exempt bool
	share  share
	limit  int // seats that may be taken now
	seats  int // that are taken
	queues []*queue
	dealer *shufflesharding.Dealer
	hand   int // queues that one flow may use
	length int // of a queue
	wait   int // requests that wait
	asked  int // seats that wait
	clock  float64
	peak   int     // seats taken and asked for, at most since the last division
	demand float64 // the smoothed peaks
}

// share is what a level's configuration gives it of the server's seats: nominally, at least (the rest is lent to others)
// and at most (by borrowing).
type share struct{ nominal, least, most int }

// queue holds waiting requests of some flows, in order.
type queue struct {
	waiting []*waiter
	seats   int     // taken by its requests, or asked for
	start   float64 // virtual time at which its next request starts
}

// waiter is a request that waits.
type waiter struct {
	seats int
	free  chan struct{} // closed when it may go on
}

// The reasons of a refusal, upstream's names.
const (
	queueFull = "queue-full"
	noQueue   = "concurrency-limit"
	timeOut   = "time-out"
	cancelled = "cancelled"
)

// configure takes over a configuration.
func (l *level) configure(c *flowcontrolv1.PriorityLevelConfiguration, s share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.share = s
	l.exempt = c.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt
	if l.limit == 0 || l.limit < s.least || l.limit > s.most {
		l.limit = min(max(s.nominal, s.least), s.most)
	}
	n, hand, length := 0, 0, 0
	if lim := c.Spec.Limited; lim != nil && lim.LimitResponse.Queuing != nil {
		q := lim.LimitResponse.Queuing
		n, hand, length = int(q.Queues), int(q.HandSize), int(q.QueueLengthLimit)
	}
	l.length = length
	if l.wait == 0 && (n != len(l.queues) || hand != l.hand) { // else at the next change: those that wait keep their places
		l.queues, l.hand, l.dealer = nil, hand, nil
		if d, err := shufflesharding.NewDealer(n, hand); err == nil && n > 0 { // an error is a hand that validation refuses
			l.dealer = d
			for range n {
				l.queues = append(l.queues, &queue{start: l.clock})
			}
		}
	}
	l.dispatch()
}

// enter takes seats, waiting for them where the level has queues, and says whether it had to. A refusal has a reason. There
// is nothing to leave where there is no limit.
func (l *level) enter(ctx context.Context, hash uint64, seats int) (leave func(took time.Duration), waited bool, refusal string) {
	l.mu.Lock()
	if l.exempt {
		l.mu.Unlock()
		return nil, false, ""
	}
	seats = max(1, min(seats, l.limit)) // more than there are could never be had
	l.peak = max(l.peak, l.seats+l.asked+seats)
	if l.wait == 0 && l.seats+seats <= l.limit {
		l.seats += seats
		var q *queue
		if len(l.queues) > 0 {
			q = l.pick(hash)
			l.begin(q, seats)
			q.seats += seats
		}
		l.mu.Unlock()
		return l.leaver(q, seats), false, ""
	}
	if len(l.queues) == 0 {
		l.mu.Unlock()
		return nil, false, noQueue
	}
	q := l.pick(hash)
	if len(q.waiting) >= l.length {
		l.mu.Unlock()
		return nil, false, queueFull
	}
	w := &waiter{seats: seats, free: make(chan struct{})}
	if q.seats == 0 {
		q.start = math.Max(q.start, l.clock)
	}
	q.waiting = append(q.waiting, w)
	q.seats += seats
	l.wait++
	l.asked += seats
	l.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-w.free:
		return l.leaver(q, seats), true, ""
	case <-late.C:
		leave, refusal = l.giveUp(q, w, timeOut)
	case <-ctx.Done():
		leave, refusal = l.giveUp(q, w, cancelled)
	}
	return leave, true, refusal
}

// giveUp takes w out of its queue, unless it was let go meanwhile.
func (l *level) giveUp(q *queue, w *waiter, why string) (func(time.Duration), string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.free:
		return l.leaver(q, w.seats), ""
	default:
	}
	for i, x := range q.waiting {
		if x == w {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			break
		}
	}
	q.seats -= w.seats
	l.wait--
	l.asked -= w.seats
	l.dispatch() // one that needs fewer seats may be the first now
	return nil, why
}

// leaver gives seats back.
func (l *level) leaver(q *queue, seats int) func(time.Duration) {
	return func(took time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.seats -= seats
		if q != nil {
			q.seats -= seats
			q.start += float64(seats) * (took - expected).Seconds() // what it really used
		}
		if l.wait > 0 {
			l.dispatch()
		}
	}
}

// begin charges a queue for a request that starts.
func (l *level) begin(q *queue, seats int) {
	l.clock = math.Max(l.clock, q.start)
	q.start = math.Max(q.start, l.clock) + float64(seats)*expected.Seconds()
}

// dispatch lets requests go, those first whose queues have had least, until the next one does not fit.
func (l *level) dispatch() {
	for l.wait > 0 {
		var next *queue
		for _, q := range l.queues {
			if len(q.waiting) > 0 && (next == nil || q.start < next.start) {
				next = q
			}
		}
		w := next.waiting[0]
		if !l.exempt && l.seats+w.seats > l.limit && l.seats > 0 {
			return
		}
		next.waiting = next.waiting[1:]
		l.begin(next, w.seats)
		l.wait--
		l.asked -= w.seats
		l.seats += w.seats
		close(w.free)
	}
}

// pick deals a hand of queues to the flow and returns the one with least in it: two flows seldom share all of theirs, so that
// one that floods its queues leaves the other some.
func (l *level) pick(hash uint64) (best *queue) {
	l.dealer.Deal(hash, func(card int) {
		if q := l.queues[card]; best == nil || q.seats < best.seats {
			best = q
		}
	})
	return best
}
