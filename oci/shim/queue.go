package shim

import "sync"

// queue delivers events in order without ever holding up whoever puts them in.
type queue struct {
	out  chan Event
	stop chan struct{} // closed by abandon

	mu     sync.Mutex
	change *sync.Cond
	list   []Event
	ended  bool
}

func newQueue() *queue {
	q := &queue{out: make(chan Event), stop: make(chan struct{})}
	q.change = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, e)
	q.change.Signal()
}

// close ends the queue after what is in it.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.change.Signal()
}

// pump delivers until the queue has ended and is empty, or stop is closed.
func (q *queue) pump() {
	defer close(q.out)
	for {
		q.mu.Lock()
		for len(q.list) == 0 && !q.ended {
			q.change.Wait()
		}
		if len(q.list) == 0 {
			q.mu.Unlock()
			return
		}
		e := q.list[0]
		q.list = q.list[1:]
		q.mu.Unlock()
		select {
		case q.out <- e:
		case <-q.stop:
			return
		}
	}
}
